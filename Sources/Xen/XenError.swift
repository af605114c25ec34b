// SPDX-License-Identifier: BSD-2-Clause
// What can go wrong at the Xen seam.
import CLinux

/// An operation of the XenStore, the grant table or the event channels that failed.
public struct XenError: Error, Equatable, Sendable, CustomStringConvertible {
    /// The errno of the failed call, positive.
    public let code: Int32
    /// What was tried, with its arguments: "read /local/domain/1/name".
    public let operation: String

    /// An error of `operation` with a positive errno.
    public init(_ code: Int32, _ operation: String) {
        self.code = code
        self.operation = operation
    }

    /// True if the node does not exist (ENOENT).
    public var isNotFound: Bool { code == ENOENT }

    /// The operation and the text of the errno.
    public var description: String {
        "\(operation): \(errnoText(code))"
    }
}

/// The text of a positive errno, as strerror gives it.
public func errnoText(_ code: Int32) -> String {
    guard let text = unsafe strerror(code) else { return "error \(code)" }
    return unsafe String(cString: text)
}

/// The number that Xen gives to a domain; 0 is the control domain.
public typealias DomainID = UInt16
