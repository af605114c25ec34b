// SPDX-License-Identifier: BSD-2-Clause
// A request that waits for its answer, as much of it as replies are checked against.

/// What the caller keeps of a request from sending it to its answer.
public struct Outstanding: BitwiseCopyable, Sendable {
    /// Bytes of the export.
    public let offset: UInt64
    /// Bytes.
    public let length: UInt32
    /// What was asked for.
    public let kind: Command.Kind
    /// A part of the reply has arrived.
    @usableFromInline var hasBegun = false
    /// Extents have arrived.
    @usableFromInline var hasExtents = false
    /// The first error of the reply, a positive errno; 0: none.
    @usableFromInline var error: Int32 = 0
    /// What of a read has arrived.
    @usableFromInline var cover = ReadCover()

    /// A request of which nothing has arrived.
    @inlinable
    public init(_ kind: Command.Kind, offset: UInt64, length: UInt32) {
        (self.kind, self.offset, self.length) = (kind, offset, length)
    }

    /// The same of a request's bytes.
    @inlinable
    public init(_ command: Command) { self.init(command.kind, offset: command.offset, length: command.length) }
}

/// The caller's requests that wait for answers. A reader uses a slot only between looking a cookie up and its next event.
public protocol OutstandingRequests: ~Copyable {
    /// The slot of the request with this cookie; nil: none waits with it. It may be any number that a hostile server chose.
    func slot(ofCookie cookie: UInt64) -> Int?
    /// The request in a slot that ``slot(ofCookie:)`` gave.
    subscript(slot: Int) -> Outstanding { get set }
}
