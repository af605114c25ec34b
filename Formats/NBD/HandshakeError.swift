// SPDX-License-Identifier: BSD-2-Clause
// Why a handshake came to no export.

/// A handshake that failed, in words for the operator.
public struct HandshakeError: Error, Equatable, Sendable {
    /// What kind of failure it is.
    public enum Kind: Sendable, Equatable {
        /// What was received is not the protocol.
        case broken
        /// The server keeps to the protocol and wants or lacks something that cannot be done without.
        case unsupported
        /// TLS is demanded, and the server has none.
        case withoutTLS
        /// The server demands TLS.
        case wantsTLS
        /// The server has no such export.
        case noSuchExport
        /// The server refuses for another reason.
        case refused
        /// The server is being shut down: later it may be there again.
        case shutdown
    }

    /// What kind of failure it is.
    public let kind: Kind
    /// One sentence; what it quotes of the server has no control characters.
    public let message: String

    init(_ kind: Kind, _ message: String) { (self.kind, self.message) = (kind, message) }

    /// The failure of a server that breaks a rule: `what` follows "the NBD server breaks the protocol: ".
    static func broken(_ what: String) -> HandshakeError {
        HandshakeError(.broken, "the NBD server breaks the protocol: \(what)")
    }
}
