// SPDX-License-Identifier: BSD-2-Clause
// The way of requests to the server and back: many at once in each system call, and without an allocation.
import CGnuTLS
import Glibc
import NBD
import PluginAPI
import PluginKit

/// The requests of a connection that wait for answers.
@safe
struct FlightTable: OutstandingRequests, ~Copyable {
    /// What replies are checked against.
    private let outstanding: UnsafeMutablePointer<Outstanding>
    /// 0: the slot is free.
    private let cookies: UnsafeMutablePointer<UInt64>
    /// The host's requests.
    private let requests: UnsafeMutablePointer<UnsafeMutablePointer<xbb_req>?>
    /// The bytes of requests, 32 for each.
    private let headers: UnsafeMutableRawPointer
    /// Free slots are the first ``freeCount``.
    private let free: UnsafeMutablePointer<UInt16>
    private(set) var freeCount = FlightLog.slots
    private let mixer: Cookies
    private var number: UInt64 = 0

    init() {
        let slots = FlightLog.slots
        unsafe outstanding = .allocate(capacity: slots)
        unsafe cookies = .allocate(capacity: slots)
        unsafe requests = .allocate(capacity: slots)
        unsafe headers = .allocate(byteCount: slots * 32, alignment: 16)
        unsafe free = .allocate(capacity: slots)
        unsafe outstanding.initialize(repeating: Outstanding(.flush, offset: 0, length: 0), count: slots)
        unsafe cookies.initialize(repeating: 0, count: slots)
        unsafe requests.initialize(repeating: nil, count: slots)
        for slot in 0..<slots { unsafe free[slot] = UInt16(truncatingIfNeeded: slots - 1 - slot) }
        mixer = Cookies(secret: UInt64.random(in: .min ... .max))
    }

    deinit {
        unsafe outstanding.deallocate()
        unsafe cookies.deallocate()
        unsafe requests.deallocate()
        unsafe headers.deallocate()
        unsafe free.deallocate()
    }

    @inline(__always)
    func slot(ofCookie cookie: UInt64) -> Int? {
        let slot = Int(truncatingIfNeeded: mixer.number(of: cookie)) & (FlightLog.slots - 1)
        return unsafe cookie != 0 && cookies[slot] == cookie ? slot : nil
    }

    /// `slot` is one of the table's own: below ``FlightLog/slots``.
    subscript(slot: Int) -> Outstanding {
        @inline(__always) _read { yield unsafe outstanding[slot & (FlightLog.slots - 1)] }
        @inline(__always) _modify { yield unsafe &outstanding[slot & (FlightLog.slots - 1)] }
    }

    /// Takes a slot; there is a free one. Writes the request's bytes.
    @inline(__always)
    mutating func begin(
        _ request: UnsafeMutablePointer<xbb_req>, _ kind: Command.Kind, _ flags: CommandFlags
    ) -> Int {
        freeCount -= 1
        let slot = unsafe Int(free[freeCount])
        var cookie: UInt64 = 0
        // 0 is that of a free slot.
        while cookie == 0 {
            number &+= 1
            cookie = mixer.cookie(of: number << 8 | UInt64(truncatingIfNeeded: slot))
        }
        let hasPlace = kind != .flush
        let command = unsafe Command(
            kind, flags: flags, cookie: cookie, offset: hasPlace ? request.pointee.offset : 0,
            length: hasPlace ? UInt32(truncatingIfNeeded: request.pointee.length) : 0)
        unsafe command.encode(to: UnsafeMutableRawBufferPointer(start: headers + slot * 32, count: Command.byteCount))
        unsafe outstanding[slot] = Outstanding(command)
        unsafe cookies[slot] = cookie
        unsafe requests[slot] = request
        return slot
    }

    /// Gives a slot back, and the request that was in it.
    @inline(__always)
    mutating func end(_ slot: Int) -> UnsafeMutablePointer<xbb_req>? {
        let slot = slot & (FlightLog.slots - 1)
        guard let request = unsafe requests[slot] else { return nil }
        unsafe requests[slot] = nil
        unsafe cookies[slot] = 0
        unsafe free[freeCount] = UInt16(truncatingIfNeeded: slot)
        freeCount += 1
        return unsafe request
    }

    /// The cookie of the request in a slot.
    @inline(__always)
    func cookie(_ slot: Int) -> UInt64 { unsafe cookies[slot & (FlightLog.slots - 1)] }

    /// The bytes of the request in a slot.
    @inline(__always)
    func header(_ slot: Int) -> UnsafeMutableRawPointer { unsafe headers + (slot & (FlightLog.slots - 1)) * 32 }

    /// The buffers of the request in a slot; none where it has none.
    @inline(__always)
    func buffers(_ slot: Int) -> UnsafeBufferPointer<iovec> {
        guard let request = unsafe requests[slot & (FlightLog.slots - 1)], let parts = unsafe request.pointee.iov else {
            return unsafe UnsafeBufferPointer(start: nil, count: 0)
        }
        return unsafe UnsafeBufferPointer(start: parts, count: Int(request.pointee.iovcnt))
    }
}

/// A queue, which has a connection of its own.
///
/// `@unchecked Sendable`: its thread alone uses it.
@safe
final class NBDQueue: StorageQueue, @unchecked Sendable {
    /// Buffers of a request at most.
    static let mostBuffers = 512
    /// Of a system call.
    private static let mostVectors = 1024
    /// Reads of so many bytes are received into their buffers at once; smaller ones come in many with one call, and are copied.
    private static let directBytes: UInt64 = 64 << 10
    /// What is received beside such reads: the next headers.
    private static let headerRoom = 512

    private let device: NBDDevice
    private let link: Link
    private let log: FlightLog
    private let index: Int
    private let part: FlightLog.Part
    private let knowsFastZero: Bool
    private let handle: OpaquePointer
    private let complete: HostComplete
    private var watch: Watch?
    private var isWaitingForRoom = false
    private var isLost = false

    private var flights = FlightTable()
    private var reader: ReplyReader
    /// Slots whose bytes are not all sent, in order, and how many bytes of the first one are.
    private let outgoing: UnsafeMutablePointer<UInt16>
    private var (outgoingHead, outgoingCount, sentOfFirst) = (0, 0, 0)
    private let vectors: UnsafeMutablePointer<iovec>
    /// What was received and not yet read: this range of the buffer.
    private var (start, end) = (0, 0)
    /// Data of a read that are next in the stream: bytes that are left, and where they belong.
    private var (payloadSlot, payloadPosition, payloadLeft) = (0, 0, 0)
    /// A flush of the plugin's own, and whom its answer is for.
    private let ownFlush: UnsafeMutablePointer<xbb_req>
    private var flushed: ((Int32) -> Void)?
    private let queue: HostQueue
    /// Reads in flight that are received without a copy, and all others.
    private var (largeReads, others) = (0, 0)

    init(
        _ device: NBDDevice, _ link: Link, _ facts: ExportFacts, _ log: FlightLog, _ index: Int,
        _ parameters: QueueParameters
    ) throws(PluginError) {
        (self.device, self.link, self.log, self.index) = (device, link, log, index)
        part = log.part(index)
        knowsFastZero = facts.flags.contains(.fastZero)
        unsafe handle = parameters.queue.handle
        unsafe complete = parameters.queue.complete
        reader = ReplyReader(facts)
        unsafe outgoing = .allocate(capacity: FlightLog.slots)
        unsafe vectors = .allocate(capacity: Self.mostVectors)
        unsafe ownFlush = .allocate(capacity: 1)
        unsafe ownFlush.initialize(to: xbb_req())
        queue = parameters.queue
        watch = try parameters.queue.watch(link.socket) { [unowned self] events in
            if events.contains(.write), isWaitingForRoom { send() }
            if events.contains(.read) { receive() }
        }
    }

    deinit {
        unsafe outgoing.deallocate()
        unsafe vectors.deallocate()
        unsafe ownFlush.deallocate()
    }

    func queueClosed() {
        watch?.remove()
        watch = nil
        device.closed(self)
    }

    /// Asks the server for a flush while the host submits nothing; any thread. `done` gets 0 or a positive errno on the queue's thread, or
    /// nothing where the queue ends before.
    func flush(_ done: @escaping @Sendable (Int32) -> Void) {
        queue.post { [self] in
            guard !isLost, flushed == nil, flights.freeCount > 0 else { return done(EIO) }
            flushed = done
            let slot = unsafe flights.begin(ownFlush, .flush, [])
            others += 1
            unsafe outgoing[(outgoingHead + outgoingCount) & (FlightLog.slots - 1)] = UInt16(truncatingIfNeeded: slot)
            outgoingCount += 1
            if !isWaitingForRoom { send() }
        }
    }

    func submit(_ batch: inout RequestBatch) {
        while !isLost, flights.freeCount > 0, let request = batch.next() { enqueue(request) }
        if !isWaitingForRoom { send() }
    }

    @inline(__always)
    private func enqueue(_ request: consuming Request) {
        let kind: Command.Kind
        var flags: CommandFlags = request.isForced ? .forcedAccess : []
        switch request.operation {
        case .read: kind = .read
        case .write: kind = .write
        case .flush: kind = .flush
        case .discard: kind = .trim
        case .writeZeroes:
            kind = .writeZeroes
            if !request.mayDeallocate { flags.insert(.noHole) }
            if request.mustBeFast {
                guard knowsFastZero else { return request.complete(.unsupported) }
                flags.insert(.fastZero)
            }
        }
        if kind == .read, request.length >= Self.directBytes { largeReads += 1 } else { others += 1 }
        let pointer = unsafe request.release()
        let slot = unsafe flights.begin(pointer, kind, flags)
        unsafe outgoing[(outgoingHead + outgoingCount) & (FlightLog.slots - 1)] = UInt16(truncatingIfNeeded: slot)
        outgoingCount += 1
    }

    // MARK: Sending

    private func send() {
        while outgoingCount > 0, !isLost {
            let (count, offered) = gather()
            let sent = unsafe link.send(UnsafeBufferPointer(start: vectors, count: count))
            advance(max(sent, 0), offered)
            if sent < 0 {
                guard sent == -Int(EAGAIN) else { return lose(Int32(clamping: -sent)) }
                if !isWaitingForRoom { watch?.listen(for: [.read, .write]) }
                isWaitingForRoom = true
                return
            }
        }
        if isWaitingForRoom { watch?.listen(for: .read) }
        isWaitingForRoom = false
    }

    /// Fills the vectors with as much of what is to be sent as they have room for, at least one request, and notes that it is about to be
    /// sent; returns how many vectors there are, and of how many requests.
    private func gather() -> (vectors: Int, requests: Int) {
        var (count, bytes) = (0, 0)
        for place in 0..<outgoingCount {
            let slot = unsafe Int(outgoing[(outgoingHead + place) & (FlightLog.slots - 1)])
            let buffers = unsafe flights.buffers(slot)
            let isWrite = flights[slot].kind == .write
            guard count + 1 + (isWrite ? buffers.count : 0) <= Self.mostVectors, bytes < link.mostSent else {
                return (count, place)
            }
            bytes += Command.byteCount + (isWrite ? Int(flights[slot].length) : 0)
            if Self.changes(flights[slot].kind) { part.offer(slot, cookie: flights.cookie(slot)) }
            var skip = place == 0 ? sentOfFirst : 0
            if skip < Command.byteCount {
                unsafe vectors[count] = iovec(
                    iov_base: flights.header(slot) + skip, iov_len: Command.byteCount - skip)
                count += 1
                skip = 0
            } else {
                skip -= Command.byteCount
            }
            guard isWrite else { continue }
            for index in buffers.indices {
                let buffer = unsafe buffers[index]
                let length = unsafe buffer.iov_len
                guard skip < length, let base = unsafe buffer.iov_base else {
                    skip -= length
                    continue
                }
                unsafe vectors[count] = iovec(iov_base: base + skip, iov_len: length - skip)
                count += 1
                skip = 0
            }
        }
        return (count, outgoingCount)
    }

    /// Whether a successor has to know of a request: one that changes the disk.
    @inline(__always)
    private static func changes(_ kind: Command.Kind) -> Bool { kind != .read && kind != .flush }

    /// So many more bytes are with the kernel, of as many requests as were offered.
    private func advance(_ sent: Int, _ offered: Int) {
        var (sent, left) = (sent, offered)
        while left > 0 {
            let slot = unsafe Int(outgoing[outgoingHead])
            let isWrite = flights[slot].kind == .write
            let whole = Command.byteCount + (isWrite ? Int(flights[slot].length) : 0)
            guard sent >= whole - sentOfFirst else { break }
            sent -= whole - sentOfFirst
            sentOfFirst = 0
            part.sent(slot)
            outgoingHead = (outgoingHead + 1) & (FlightLog.slots - 1)
            outgoingCount -= 1
            left -= 1
        }
        guard left > 0 else { return }
        sentOfFirst += sent
        // Of the first a part was sent, now or before; of the others nothing.
        for place in 0..<left {
            let slot = unsafe Int(outgoing[(outgoingHead + place) & (FlightLog.slots - 1)])
            if place == 0, sentOfFirst > 0 { part.cut(slot) } else { part.end(slot) }
        }
    }

    // MARK: Receiving

    private func receive() {
        // The queue has other things to do, too; what is left in the socket calls again. What GnuTLS has taken out of it does not.
        var rounds = 0
        while !isLost, rounds < 64 || link.isEncrypted {
            rounds += 1
            let (vectorCount, asked) = prepare()
            let received = unsafe link.receive(UnsafeMutableBufferPointer(start: vectors, count: vectorCount))
            guard received > 0 else {
                if received != -Int(EAGAIN) { lose(Int32(clamping: -received)) }
                return
            }
            let direct = min(received, payloadLeft)
            if start == end {
                payloadLeft -= direct
                payloadPosition += direct
                end += received - direct
            } else {
                end += received
            }
            guard read() else { return }
            // Less than was asked for: that was all. TLS may have more.
            if received < asked, !link.isEncrypted { return }
        }
    }

    /// Says where to receive: vectors, and bytes in them. The window is empty where data are missing.
    private func prepare() -> (vectors: Int, bytes: Int) {
        let buffer = unsafe part.buffer
        if start == end {
            (start, end) = (0, 0)
        } else if buffer.count - end < ReplyReader.longestMessage, end - start < start, let base = buffer.baseAddress {
            // Part of a message: the places do not overlap. A successor that looks for answers here finds one of the two.
            unsafe memcpy(base, base + start, end - start)
            (start, end) = (0, end - start)
        }
        var (count, bytes, skip) = (0, 0, payloadPosition)
        if payloadLeft > 0 {
            let parts = unsafe flights.buffers(payloadSlot)
            for place in parts.indices where count < Self.mostVectors - 1 && bytes < payloadLeft {
                let part = unsafe parts[place]
                let length = unsafe part.iov_len
                guard skip < length, let base = unsafe part.iov_base else {
                    skip -= length
                    continue
                }
                let some = min(length - skip, payloadLeft - bytes)
                unsafe vectors[count] = iovec(iov_base: base + skip, iov_len: some)
                count += 1
                bytes += some
                skip = 0
            }
            // What follows goes into the buffer only behind all of the data.
            guard bytes == payloadLeft else { return (count, bytes) }
        }
        let room = largeReads > 0 && others == 0 ? min(Self.headerRoom, buffer.count - end) : buffer.count - end
        unsafe vectors[count] = iovec(iov_base: buffer.baseAddress.map { unsafe $0 + end }, iov_len: room)
        return (count + 1, bytes + room)
    }

    /// Reads all messages that were received whole; false where the connection is given up.
    private func read() -> Bool {
        while true {
            if payloadLeft > 0 {
                copyPayload()
                if payloadLeft > 0 { return true }
            }
            let step: ReplyStep
            do throws(ProtocolError) {
                // The window is a part of the buffer, which lives as long as the log.
                let window = unsafe UnsafeRawBufferPointer(rebasing: part.buffer[start..<end]).bytes
                step = try reader.next(in: window, &flights)
            } catch {
                return give(up: error)
            }
            start += step.consumed
            switch step.event {
            case .needMore: return true
            case .answered(let slot, let error):
                guard error != ESHUTDOWN else {
                    lose(ESHUTDOWN)
                    return false
                }
                finish(slot, error)
            case .payload(let slot, let position, let length):
                (payloadSlot, payloadPosition, payloadLeft) = (slot, Int(position), Int(length))
            case .zeroes(let slot, let position, let length): fill(slot, Int(position), Int(length))
            case .extents, .passed: break
            }
        }
    }

    @inline(__always)
    private func finish(_ slot: Int, _ error: Int32) {
        let outstanding = (kind: flights[slot].kind, length: flights[slot].length)
        if outstanding.kind == .read, outstanding.length >= Self.directBytes { largeReads -= 1 } else { others -= 1 }
        part.end(slot)
        guard let request = unsafe flights.end(slot) else { return }
        if unsafe request == ownFlush {
            flushed?(error)
            flushed = nil
            return
        }
        unsafe complete(handle, request, error == 0 ? 0 : -error)
    }

    /// Copies what is there of the data of a read from the window to its buffers.
    private func copyPayload() {
        let count = min(payloadLeft, end - start)
        guard count > 0, let base = unsafe part.buffer.baseAddress else { return }
        var done = 0
        unsafe forEachPart(payloadSlot, payloadPosition, count) { memory, some in
            unsafe memcpy(memory, base + start + done, some)
            done += some
        }
        start += count
        payloadPosition += count
        payloadLeft -= count
    }

    private func fill(_ slot: Int, _ position: Int, _ count: Int) {
        unsafe forEachPart(slot, position, count) { memory, some in unsafe memset(memory, 0, some) }
    }

    /// Walks over `count` bytes of a request's buffers from `position` on.
    @inline(__always)
    private func forEachPart(_ slot: Int, _ position: Int, _ count: Int, _ body: (UnsafeMutableRawPointer, Int) -> Void)
    {
        var (skip, left) = (position, count)
        let parts = unsafe flights.buffers(slot)
        for index in parts.indices {
            guard left > 0 else { return }
            let part = unsafe parts[index]
            let length = unsafe part.iov_len
            guard skip < length, let base = unsafe part.iov_base else {
                skip -= length
                continue
            }
            let some = min(length - skip, left)
            unsafe body(base + skip, some)
            skip = 0
            left -= some
        }
    }

    // MARK: The end of the connection

    /// The server broke a rule: nothing that it sends can be read any more. It is told that nothing follows, and closes the connection.
    private func give(up error: ProtocolError) -> Bool {
        device.host.log(.error, "\(device.server): \(error.message)")
        log.noteClosing(of: index)
        _ = cgnutls_end_sending(link.socket)
        lose(EPROTO)
        return false
    }

    /// The connection is of no use any more. Requests without an answer are the successor's.
    private func lose(_ code: Int32) {
        guard !isLost else { return }
        isLost = true
        log.note(failure: code, of: index)
        watch?.remove()
        watch = nil
        let reason =
            switch code {
            case 0: "the server closed the connection"
            case ESHUTDOWN: "the server is being shut down"
            case EPROTO: "the connection is given up"
            default: PluginError(system: "the connection broke", code).message
            }
        device.host.log(.error, "\(device.server): \(reason)")
        device.host.notify(.reopen)
    }
}
