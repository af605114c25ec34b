// SPDX-License-Identifier: BSD-2-Clause
// Why a control call failed, in words for the operator, and its way into the caller's xbb_error.
import Glibc
import PluginAPI

/// The failure of a control call.
public struct PluginError: Error {
    /// A positive errno value.
    public let code: Int32
    /// One sentence that says what to do about it, where there is something to do.
    public let message: String

    /// A failure with its own words.
    public init(_ code: Int32, _ message: String) {
        self.code = code
        self.message = message
    }

    /// The failure of a system call: `what` followed by the system's words for `code`.
    public init(system what: String, _ code: Int32 = errno) {
        let words = unsafe strerror(code).map { unsafe String(cString: $0) } ?? "error \(code)"
        self.init(code, "\(what): \(words)")
    }

    /// What the disk was configured with is wrong: EINVAL.
    public static func invalid(_ message: String) -> PluginError { PluginError(EINVAL, message) }

    /// Fills in the caller's `xbb_error` and gives the negative errno to return.
    public func report(to error: UnsafeMutablePointer<xbb_error>?) -> Int32 {
        unsafe message.withCString { text in unsafe xbb_set_error(error, -code, text) }
    }
}
