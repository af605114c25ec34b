// SPDX-License-Identifier: BSD-2-Clause
// A client with its requests, whose replies come out of a row of bytes in pieces by chance.
import NBD
import TestSupport

/// Requests that wait, by number of their slots.
struct SentRequests: OutstandingRequests {
    private var requests: [Outstanding] = []
    private(set) var cookies: [UInt64: Int] = [:]

    mutating func send(_ cookie: UInt64, _ request: Outstanding) -> Int {
        requests.append(request)
        cookies[cookie] = requests.count - 1
        return requests.count - 1
    }

    mutating func forget(_ slot: Int) { cookies = cookies.filter { $0.value != slot } }

    func slot(ofCookie cookie: UInt64) -> Int? { cookies[cookie] }
    subscript(slot: Int) -> Outstanding {
        get { requests[slot] }
        set { requests[slot] = newValue }
    }
}

/// The client, and what it received.
struct ReplyWorld {
    private(set) var sent = SentRequests()
    var reader: ReplyReader
    /// Bytes of each request as they were received; what never arrived is 0xee.
    private(set) var data: [[UInt8]] = []
    /// How often each byte of a request arrived.
    private(set) var arrivals: [[UInt8]] = []
    private(set) var answers: [Int: Int32] = [:]
    private(set) var extents: [Int: [Extent]] = [:]
    /// What must never happen.
    private(set) var faults: [String] = []

    init(isStructured: Bool, context: UInt32? = nil) {
        reader = ReplyReader(isStructured: isStructured, allocationContext: context)
    }

    @discardableResult
    mutating func send(_ kind: Command.Kind, _ cookie: UInt64, offset: UInt64 = 0, length: UInt32 = 0) -> Int {
        data.append([UInt8](repeating: 0xee, count: kind == .read ? Int(length) : 0))
        arrivals.append([UInt8](repeating: 0, count: kind == .read ? Int(length) : 0))
        return sent.send(cookie, Outstanding(kind, offset: offset, length: length))
    }

    private mutating func arrive(_ slot: Int, _ position: UInt32, _ bytes: some Collection<UInt8>) {
        for (index, byte) in bytes.enumerated() {
            let place = Int(position) + index
            guard data[slot].indices.contains(place) else {
                faults.append("a byte behind the end of request \(slot)")
                return
            }
            data[slot][place] = byte
            arrivals[slot][place] &+= 1
        }
    }

    /// Takes a stream in pieces; nil: all of it was taken, but for a message that is not complete.
    mutating func take(_ stream: [UInt8], _ random: inout SplitMix64) -> ProtocolError? {
        var (start, end, idle) = (0, 0, 0)
        while true {
            let window = stream.span.bytes.extracting(start..<end)
            let step: ReplyStep
            do throws(ProtocolError) {
                step = try reader.next(in: window, &sent)
            } catch {
                return error
            }
            if step.consumed > window.byteCount { return fault("more consumed than there is") }
            start += step.consumed
            idle = step.consumed > 0 ? 0 : idle + 1
            if idle > 4 { return fault("no progress") }
            switch step.event {
            case .needMore(let count):
                if end - start >= count { return fault("\(count) bytes wanted, which are there") }
                if count > ReplyReader.longestMessage { return fault("\(count) bytes wanted") }
                if end == stream.count { return nil }
                end += 1 + random.below(min(stream.count - end, random.onceIn(3) ? 10_000 : 40))
                idle = 0
            case .payload(let slot, let position, let length):
                let bytes = stream[start..<min(stream.count, start + Int(length))]
                arrive(slot, position, bytes)
                start += bytes.count
                end = max(end, start)
                if bytes.count < Int(length) { return nil }
                idle = 0
            case .zeroes(let slot, let position, let length):
                arrive(slot, position, repeatElement(0, count: Int(length)))
            case .extents(let slot): extents[slot] = reader.extents
            case .answered(let slot, let error): answer(slot, error)
            case .passed: break
            }
            if !faults.isEmpty { return nil }
        }
    }

    private mutating func answer(_ slot: Int, _ error: Int32) {
        if answers[slot] != nil || !sent.cookies.values.contains(slot) {
            faults.append("request \(slot) is answered twice")
        }
        if error < 0 { faults.append("error \(error)") }
        if error == 0, !arrivals[slot].allSatisfy({ $0 == 1 }) {
            faults.append("a read is answered that has not arrived")
        }
        if arrivals[slot].contains(where: { $0 > 1 }) { faults.append("a byte of a read arrived twice") }
        answers[slot] = error
        sent.forget(slot)
    }

    private mutating func fault(_ words: String) -> ProtocolError? {
        faults.append(words)
        return nil
    }
}
