// SPDX-License-Identifier: BSD-2-Clause
// Which requests of a dead process have been answered.
//
// The successor of a process that was killed has (a) the receive buffer of the dead one: any bytes, among them old ones, and nobody
// says where the last of them is; and (b) what the connection still brings. A request is answered if the end of its reply stands in
// one of them, or begins in (a) and ends at the beginning of (b). Where messages begin is not known, so each place is looked at.
//
// Data of reads stand there, too, and a guest chooses them. A header has its magic number and the whole cookie, 64 bits that the
// guest would have to guess (Cookies): with n requests in question and p places at which its data could be a header, they are
// mistaken for an answer with a probability of at most n * p / 2^64. For a header that is cut after k bytes the two parts together
// have the same 64 bits, so each of the 15 values of k has that bound, too. In all that is 2^-28 for 1024 requests and 4 MiB of
// which each byte was made for that; data by chance have the magic number at one place of 2^31.
//
// What (a) must keep: whoever moves bytes within the receive buffer may be killed half-way, and a header that is torn then is not
// found. So bytes are copied to a place that does not overlap them, and the old ones stay until that is done.

/// Finds answers to requests in bytes without knowing where a message begins. Linear in the number of bytes.
public struct AnswerScan: Sendable {
    /// Requests for which no answer was found: it may have been lost, or never sent.
    public private(set) var unanswered: Set<UInt64>

    /// Buffers of the dead process, for headers that begin in them.
    private var buffers: [[UInt8]] = []
    /// The beginning of the stream, as much of it as a header that begins in a buffer can end with.
    private var beginning: [UInt8] = []
    /// The stream's last bytes: a header that is not all there.
    private var tail: [UInt8] = []

    /// Bytes of a header as far as its cookie.
    static let headerBytes = 16
    private static let simple: UInt32 = 0x6744_6698
    private static let structured: UInt32 = 0x668e_33ef

    /// A scan for these cookies, which are of requests that change the export: their replies have no data.
    public init(outstanding: some Sequence<UInt64>) { unanswered = Set(outstanding) }

    /// Looks at a buffer of the dead process, before anything is appended. A copy is kept.
    public mutating func scanBuffer(_ bytes: RawSpan) {
        find(in: bytes)
        buffers.append(Self.copy(bytes, 0..<bytes.byteCount))
    }

    /// Looks at what the connection brought next.
    public mutating func append(_ bytes: RawSpan) {
        if beginning.count < Self.headerBytes - 1 {
            let known = beginning.count
            beginning += Self.copy(bytes, 0..<min(bytes.byteCount, Self.headerBytes - 1 - known))
            // A header of which so many bytes are in the stream: each number is looked at once.
            for rest in known + 1..<beginning.count + 1 { findSplit(Self.headerBytes - rest) }
        }
        // A header between the last piece and this one, then those within this one.
        let edge = tail + Self.copy(bytes, 0..<min(bytes.byteCount, Self.headerBytes - 1))
        find(in: edge)
        find(in: bytes)
        tail = Array(
            (tail + Self.copy(bytes, max(0, bytes.byteCount - Self.headerBytes + 1)..<bytes.byteCount)).suffix(15))
    }

    /// The same of an array.
    public mutating func scanBuffer(_ bytes: [UInt8]) {
        find(in: bytes)
        buffers.append(bytes)
    }

    /// The same of an array.
    public mutating func append(_ bytes: [UInt8]) {
        let span = bytes.span
        // Bytes of any value are valid bytes.
        append(unsafe span.bytes)
    }

    private static func copy(_ bytes: RawSpan, _ range: Range<Int>) -> [UInt8] { range.map { bytes.byte($0) } }

    private mutating func find(in bytes: [UInt8]) {
        let span = bytes.span
        // Bytes of any value are valid bytes.
        find(in: unsafe span.bytes)
    }

    /// Headers that are all there.
    private mutating func find(in bytes: RawSpan) {
        guard !unanswered.isEmpty, bytes.byteCount >= Self.headerBytes else { return }
        for place in 0...bytes.byteCount - Self.headerBytes {
            let magic: UInt32 = bytes.number(place)
            guard magic == Self.simple || magic == Self.structured else { continue }
            if Self.isEnd(magic, bytes.number(place + 4)) { unanswered.remove(bytes.number(place + 8)) }
        }
    }

    /// True if a header with this magic number ends a reply to a request without data: each simple one does, and a chunk that is the
    /// last one and either empty or an error.
    private static func isEnd(_ magic: UInt32, _ word: UInt32) -> Bool {
        magic == simple || (word >> 16 & 1 != 0 && (word & 0xffff == 0 || word & 0x8000 != 0))
    }

    /// Headers whose first `count` bytes, 1 to 15, are at any place of a buffer, and all others at the beginning of the stream.
    private mutating func findSplit(_ count: Int) {
        guard !unanswered.isEmpty else { return }
        let rest = Array(beginning.prefix(Self.headerBytes - count))
        if count <= 8 {
            // The whole cookie is in the stream.
            let cookie = rest.number(8 - count, UInt64.self)
            guard unanswered.contains(cookie) else { return }
            for start in parts(count) where isHeader(start + rest) {
                unanswered.remove(cookie)
                return
            }
        } else {
            // Cookies by the part that is in the buffer, of those that end as the stream begins.
            let shift = UInt64(Self.headerBytes - count) * 8
            let end = rest.number(0, UInt64.self) >> (64 - shift)
            var wanted: [UInt64: [UInt64]] = [:]
            for cookie in unanswered where cookie & (1 << shift - 1) == end {
                wanted[cookie >> shift, default: []].append(cookie)
            }
            guard !wanted.isEmpty else { return }
            for start in parts(count) where isHeader(start + rest) {
                for cookie in wanted[(start + rest).number(8, UInt64.self) >> shift] ?? [] { unanswered.remove(cookie) }
            }
        }
    }

    private func isHeader(_ bytes: [UInt8]) -> Bool {
        let magic: UInt32 = bytes.number(0)
        return (magic == Self.simple || magic == Self.structured) && Self.isEnd(magic, bytes.number(4))
    }

    /// What may be the first `count` bytes of a header in the buffers.
    private func parts(_ count: Int) -> some Sequence<[UInt8]> {
        let (first, second) = (Array(Self.simple.wire.prefix(count)), Array(Self.structured.wire.prefix(count)))
        return buffers.lazy.flatMap { buffer in
            (0..<max(0, buffer.count - count + 1)).lazy
                .filter { place in
                    guard buffer[place] == first[0] || buffer[place] == second[0] else { return false }
                    return buffer[place...].starts(with: first) || buffer[place...].starts(with: second)
                }
                .map { Array(buffer[$0..<$0 + count]) }
        }
    }
}
