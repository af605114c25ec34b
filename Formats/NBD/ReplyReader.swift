// SPDX-License-Identifier: BSD-2-Clause
// Replies of the transmission phase: a window of received bytes goes in, and one event after the other comes out.
//
// A read is answered with 0 only when each of its bytes has arrived once: whoever receives into a guest's memory relies on it.

/// What a server says next.
public enum ReplyEvent: BitwiseCopyable, Sendable, Equatable {
    /// The window has to have so many bytes, counted from where the next call begins; at most ``ReplyReader/longestMessage``.
    case needMore(Int)
    /// The request in a slot is answered: 0, or a positive errno of Linux. The slot is not used any more.
    case answered(slot: Int, error: Int32)
    /// Data: the caller takes `length` bytes of the stream, from the window or later, to `position` of the request's data. The next
    /// call begins behind them.
    case payload(slot: Int, position: UInt32, length: UInt32)
    /// Zeroes, which are not in the stream.
    case zeroes(slot: Int, position: UInt32, length: UInt32)
    /// All of ``ReplyReader/extents`` are those of a request.
    case extents(slot: Int)
    /// Nothing that the caller has to do: the reply is not complete.
    case passed
}

/// An event, and the bytes of the window that were read for it.
public struct ReplyStep: BitwiseCopyable, Sendable, Equatable {
    /// Bytes: the next call begins behind them, and behind a payload.
    public let consumed: Int
    /// What happened.
    public let event: ReplyEvent

    @inlinable @inline(__always)
    init(_ consumed: Int, _ event: ReplyEvent) { (self.consumed, self.event) = (consumed, event) }
}

/// Reads the replies of one connection.
public struct ReplyReader: Sendable {
    /// `NBD_SIMPLE_REPLY_MAGIC`
    @inlinable static var simple: UInt32 { 0x6744_6698 }
    /// `NBD_STRUCTURED_REPLY_MAGIC`
    @inlinable static var structured: UInt32 { 0x668e_33ef }
    /// Bytes of a simple reply without data.
    @inlinable static var simpleBytes: Int { 16 }
    /// Bytes of a chunk without its payload.
    @inlinable static var chunkBytes: Int { 20 }
    /// Bytes of a message that have to be in the window at once, at most: a window has room for them.
    @inlinable public static var longestMessage: Int { 8192 }
    /// Extents of one reply at most, as the specification recommends to servers.
    static let mostExtents: UInt32 = 1 << 20
    /// Extents that are kept of one reply; the caller asks again behind their end.
    public static let keptExtents = 1024
    /// Bytes of a server's text that are kept.
    static let keptText = 800

    @usableFromInline
    enum State: BitwiseCopyable, Sendable {
        /// A message begins.
        case message
        /// What was sent before completed the reply with this cookie.
        case answer(UInt64)
        /// So many extents of the reply with this cookie are missing.
        case extents(UInt64, left: UInt32, isLast: Bool)
        case failed
    }

    @usableFromInline var state = State.message
    @usableFromInline let isStructured: Bool
    private let allocationContext: UInt32?
    /// The extents of ``ReplyEvent/extents(slot:)``, from the request's offset.
    public private(set) var extents: [Extent] = []
    /// Bytes of the request that ``extents`` are not yet about.
    private var extentRoom: UInt32 = 0
    private var text: [UInt8] = []

    /// What the server wrote beside its last error, fit to be shown; empty: nothing.
    public var errorText: String { ShownText.of(text) }

    /// A reader for a connection whose handshake came to these facts.
    public init(_ facts: ExportFacts) {
        self.init(isStructured: facts.hasStructuredReplies, allocationContext: facts.allocationContext)
    }

    /// A reader for what was agreed on.
    public init(isStructured: Bool, allocationContext: UInt32? = nil) {
        (self.isStructured, self.allocationContext) = (isStructured, allocationContext)
    }

    /// True where one message has ended and the next has not begun.
    public var isBetweenMessages: Bool { if case .message = state { true } else { false } }

    /// Reads on at the beginning of `window`. After an error nothing more is read.
    @inlinable
    public mutating func next<Requests: OutstandingRequests & ~Copyable>(
        in window: RawSpan, _ requests: inout Requests
    ) throws(ProtocolError) -> ReplyStep {
        do throws(ProtocolError) {
            return try step(window, &requests)
        } catch {
            state = .failed
            throw error
        }
    }

    @inlinable @inline(__always)
    mutating func step<Requests: OutstandingRequests & ~Copyable>(
        _ window: RawSpan, _ requests: inout Requests
    ) throws(ProtocolError) -> ReplyStep {
        switch state {
        case .message: break
        case .answer(let cookie):
            state = .message
            return try end(0, cookie, &requests)
        case .extents(let cookie, let left, let isLast):
            return try readExtents(window, cookie, left, isLast, 0, &requests)
        case .failed: throw .failedBefore
        }
        guard window.byteCount >= Self.simpleBytes else { return ReplyStep(0, .needMore(Self.simpleBytes)) }
        let cookie: UInt64 = window.number(8)
        switch window.number(0, UInt32.self) {
        case Self.simple: return try simpleReply(window.number(4), cookie, &requests)
        case Self.structured: return try chunk(window, cookie, &requests)
        case let other: throw .magic(other)
        }
    }

    /// A reply in one piece.
    @inlinable @inline(__always)
    mutating func simpleReply<Requests: OutstandingRequests & ~Copyable>(
        _ error: UInt32, _ cookie: UInt64, _ requests: inout Requests
    ) throws(ProtocolError) -> ReplyStep {
        guard let slot = requests.slot(ofCookie: cookie) else { throw .unknownCookie }
        let (kind, length) = (requests[slot].kind, requests[slot].length)
        if isStructured {
            guard kind != .read, kind != .blockStatus || error != 0 else { throw .simpleReply(kind) }
            guard !requests[slot].hasBegun else { throw .simpleReplyAfterChunks }
        } else {
            guard kind != .blockStatus || error != 0 else { throw .simpleReply(kind) }
            if kind == .read, error == 0, length > 0 {
                state = .answer(cookie)
                guard case .added = requests[slot].cover.add(0, to: length) else { throw .overlap }
                return ReplyStep(Self.simpleBytes, .payload(slot: slot, position: 0, length: length))
            }
        }
        return ReplyStep(Self.simpleBytes, .answered(slot: slot, error: errorNumber(error)))
    }

    /// One of the pieces of a reply.
    @inlinable @inline(__always)
    mutating func chunk<Requests: OutstandingRequests & ~Copyable>(
        _ window: RawSpan, _ cookie: UInt64, _ requests: inout Requests
    ) throws(ProtocolError) -> ReplyStep {
        guard isStructured else { throw .structuredReply }
        guard window.byteCount >= Self.chunkBytes else { return ReplyStep(0, .needMore(Self.chunkBytes)) }
        let isLast = window.number(4, UInt16.self) & 1 != 0
        let type: UInt16 = window.number(6)
        let length: UInt32 = window.number(16)
        guard let slot = requests.slot(ofCookie: cookie) else { throw .unknownCookie }
        let kind = requests[slot].kind
        switch type {
        case 0:
            guard length == 0 else { throw .chunkLength(type: type, length) }
            guard isLast else { throw .emptyChunk }
            return try end(Self.chunkBytes, cookie, &requests)
        case 1:
            guard kind == .read else { throw .chunk(type: type, kind) }
            guard length > 8 else { throw .chunkLength(type: type, length) }
            guard window.byteCount >= Self.chunkBytes + 8 else {
                return ReplyStep(0, .needMore(Self.chunkBytes + 8))
            }
            let position = try cover(window.number(20), length &- 8, isLast, cookie, slot, &requests)
            return ReplyStep(Self.chunkBytes + 8, .payload(slot: slot, position: position, length: length &- 8))
        case 2:
            guard kind == .read else { throw .chunk(type: type, kind) }
            guard length == 12 else { throw .chunkLength(type: type, length) }
            guard window.byteCount >= Self.chunkBytes + 12 else {
                return ReplyStep(0, .needMore(Self.chunkBytes + 12))
            }
            let size: UInt32 = window.number(28)
            guard size > 0 else { throw .chunkLength(type: type, 0) }
            let position = try cover(window.number(20), size, isLast, cookie, slot, &requests)
            return ReplyStep(Self.chunkBytes + 12, .zeroes(slot: slot, position: position, length: size))
        default: return try rareChunk(window, type, length, isLast, cookie, slot, &requests)
        }
    }

    /// Bytes that are there or about to come: inside of the request, for the first time, and all of them where they are the last.
    /// Returns their place in the request.
    @inlinable @inline(__always)
    mutating func cover<Requests: OutstandingRequests & ~Copyable>(
        _ offset: UInt64, _ length: UInt32, _ isLast: Bool, _ cookie: UInt64, _ slot: Int, _ requests: inout Requests
    ) throws(ProtocolError) -> UInt32 {
        let (start, whole) = (requests[slot].offset, requests[slot].length)
        let position = offset &- start
        guard offset >= start, position < UInt64(whole), UInt64(length) <= UInt64(whole) &- position else {
            throw .outside
        }
        let first = UInt32(truncatingIfNeeded: position)
        switch requests[slot].cover.add(first, to: first &+ length) {
        case .added: break
        case .overlaps: throw .overlap
        case .full: throw .scattered
        }
        requests[slot].hasBegun = true
        if isLast {
            // Before its last bytes are taken: nobody has to undo anything.
            guard requests[slot].error != 0 || requests[slot].cover.isWhole(whole) else { throw .incomplete(.read) }
            state = .answer(cookie)
        }
        return first
    }

    /// The end of a structured reply, or of a simple one with data.
    @inlinable @inline(__always)
    func end<Requests: OutstandingRequests & ~Copyable>(
        _ consumed: Int, _ cookie: UInt64, _ requests: inout Requests
    ) throws(ProtocolError) -> ReplyStep {
        // The caller may have given the request up while its data came.
        guard let slot = requests.slot(ofCookie: cookie) else { throw .unknownCookie }
        let (kind, error) = (requests[slot].kind, requests[slot].error)
        if error == 0 {
            guard kind != .read || requests[slot].cover.isWhole(requests[slot].length) else { throw .incomplete(kind) }
            guard kind != .blockStatus || requests[slot].hasExtents else { throw .incomplete(kind) }
        }
        return ReplyStep(consumed, .answered(slot: slot, error: error))
    }

    /// Extents and errors.
    @usableFromInline
    mutating func rareChunk<Requests: OutstandingRequests & ~Copyable>(
        _ window: RawSpan, _ type: UInt16, _ length: UInt32, _ isLast: Bool, _ cookie: UInt64, _ slot: Int,
        _ requests: inout Requests
    ) throws(ProtocolError) -> ReplyStep {
        let kind = requests[slot].kind
        if type & 1 << 15 != 0 { return try errorChunk(window, type, length, isLast, cookie, slot, &requests) }
        guard type == 5, kind == .blockStatus else { throw .chunk(type: type, kind) }
        guard length >= 12, length % 8 == 4, length / 8 <= Self.mostExtents else {
            throw .chunkLength(type: type, length)
        }
        guard window.byteCount >= Self.chunkBytes + 4 else { return ReplyStep(0, .needMore(Self.chunkBytes + 4)) }
        let context: UInt32 = window.number(20)
        guard context == allocationContext, !requests[slot].hasExtents else { throw .context(context) }
        (requests[slot].hasBegun, requests[slot].hasExtents) = (true, true)
        (extents, extentRoom) = ([], requests[slot].length)
        return try readExtents(window, cookie, length / 8, isLast, Self.chunkBytes + 4, &requests)
    }

    /// As many extents as the window has behind `start`.
    @usableFromInline
    mutating func readExtents<Requests: OutstandingRequests & ~Copyable>(
        _ window: RawSpan, _ cookie: UInt64, _ count: UInt32, _ isLast: Bool, _ start: Int, _ requests: inout Requests
    ) throws(ProtocolError) -> ReplyStep {
        var (place, left) = (start, count)
        while left > 0, window.byteCount - place >= 8 {
            let length: UInt32 = window.number(place)
            // The last one may go beyond the request; nothing follows it then.
            guard length > 0, extentRoom > 0 else { throw .extents }
            if extents.count < Self.keptExtents {
                extents.append(Extent(length: min(length, extentRoom), state: window.number(place + 4)))
            }
            extentRoom -= min(length, extentRoom)
            (place, left) = (place + 8, left - 1)
        }
        guard left == 0 else {
            state = .extents(cookie, left: left, isLast: isLast)
            return ReplyStep(place, .needMore(8))
        }
        guard let slot = requests.slot(ofCookie: cookie) else { throw .unknownCookie }
        state = isLast ? .answer(cookie) : .message
        return ReplyStep(place, .extents(slot: slot))
    }

    private mutating func errorChunk<Requests: OutstandingRequests & ~Copyable>(
        _ window: RawSpan, _ type: UInt16, _ length: UInt32, _ isLast: Bool, _ cookie: UInt64, _ slot: Int,
        _ requests: inout Requests
    ) throws(ProtocolError) -> ReplyStep {
        let hasPlace = type == 1 << 15 | 2
        let least: UInt32 = hasPlace ? 14 : 6
        guard length >= least, length <= UInt32(Self.longestMessage - Self.chunkBytes) else {
            throw .chunkLength(type: type, length)
        }
        let whole = Self.chunkBytes + Int(length)
        guard window.byteCount >= whole else { return ReplyStep(0, .needMore(whole)) }
        let error: UInt32 = window.number(20)
        let textLength: UInt16 = window.number(24)
        guard UInt32(textLength) <= length - least else { throw .chunkLength(type: type, length) }
        guard error != 0 else { throw .errorZero }
        let textEnd = Self.chunkBytes + 6 + Int(textLength)
        if hasPlace {
            let place = window.number(textEnd, UInt64.self)
            let start = requests[slot].offset
            guard place >= start, place - start < UInt64(requests[slot].length) else { throw .outside }
        }
        text = (textEnd - Int(textLength)..<textEnd).prefix(Self.keptText).map { window.byte($0) }
        requests[slot].hasBegun = true
        if requests[slot].error == 0 { requests[slot].error = errorNumber(error) }
        if isLast { return try end(whole, cookie, &requests) }
        return ReplyStep(whole, .passed)
    }
}

/// A positive errno of Linux for an error of a server, 0 for 0. The specification's numbers are Linux's; all others are `EINVAL`.
@inlinable
public func errorNumber(_ wire: UInt32) -> Int32 {
    switch wire {
    // EPERM, EIO, ENOMEM, EINVAL, ENOSPC, EOVERFLOW, EOPNOTSUPP, ESHUTDOWN
    case 0, 1, 5, 12, 22, 28, 75, 95, 108: Int32(truncatingIfNeeded: wire)
    default: 22
    }
}
