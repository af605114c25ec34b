// SPDX-License-Identifier: BSD-2-Clause
// The error of every operation that can fail for a reason outside this program.
import CLinux

/// Why something could not be done: its kind, what was tried or what is wrong, and what is behind it.
///
/// The reason is said once: an error that is passed on unchanged keeps its text, and one that is put into a larger context
/// names itself as the ``Source`` of the new one.
public struct OperationError: Error, Equatable, Sendable, CustomStringConvertible {
    /// What kind of trouble it is; callers decide by it.
    public enum Kind: Sendable, Equatable {
        /// A call of the system, of Xen or of a library failed
        case system
        /// There is no such plugin
        case missing
        /// A plugin's file or its directory could be changed by somebody else than root or ourselves
        case untrusted
        /// The file is no plugin of an ABI that this host knows
        case incompatible
        /// What a plugin says of itself or of a disk breaks the rules of the ABI
        case invalid
        /// An option is unknown, missing or has a wrong value
        case option
        /// An image or a device cannot be opened or examined
        case open
        /// What an earlier process left of its requests cannot be gone on with
        case journal
        /// A queue cannot run, or does not read its ring any more
        case queue
    }

    /// What is behind an error.
    public indirect enum Source: Sendable, Equatable {
        /// Nothing: the context says it all
        case none
        /// A positive errno
        case errno(Int32)
        /// A positive errno, which the context says in better words
        case told(Int32)
        /// Another error
        case error(OperationError)
    }

    /// The kind of trouble.
    public let kind: Kind
    /// What was tried, with its arguments ("read /local/domain/1/name"), or a sentence that says what is wrong.
    public let context: String
    /// What is behind it.
    public let source: Source

    /// A call that failed with a positive errno; `operation` is what was tried: "open /dev/xen/gntdev".
    public init(_ code: Int32, _ operation: String) {
        self.init(.system, operation, .errno(code))
    }

    /// A sentence for the operator: what is wrong, with what, and what to do.
    public init(_ kind: Kind, _ context: String) {
        self.init(kind, context, .none)
    }

    /// All of it.
    public init(_ kind: Kind, _ context: String, _ source: Source) {
        self.kind = kind
        self.context = context
        self.source = source
    }

    /// The same error, said in a larger context.
    public func within(_ context: String, _ kind: Kind? = nil) -> OperationError {
        OperationError(kind ?? self.kind, context, .error(self))
    }

    /// The errno at the root of it, positive; 0 where there is none.
    public var code: Int32 {
        switch source {
        case .none: 0
        case .errno(let code), .told(let code): code
        case .error(let error): error.code
        }
    }

    /// True if something does not exist (ENOENT).
    public var isNotFound: Bool { code == ENOENT }

    /// The name of a positive errno: "ENOSPC", or "errno 1234".
    public static func errnoName(_ code: Int32) -> String {
        guard let name = unsafe clinux_errno_name(code) else { return "errno \(code)" }
        return unsafe String(cString: name)
    }

    /// For the operator: the context, then what is behind it.
    public var description: String {
        switch source {
        case .none, .told: context
        case .errno(let code): "\(context): \(errnoText(code))"
        case .error(let error): "\(context): \(error)"
        }
    }
}

/// The text of a positive errno, as strerror(3) gives it.
public func errnoText(_ code: Int32) -> String {
    guard let text = unsafe strerror(code) else { return "error \(code)" }
    return unsafe String(cString: text)
}
