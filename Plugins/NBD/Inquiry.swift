// SPDX-License-Identifier: BSD-2-Clause
// What of an export is allocated, asked on a connection of its own beside those of the queues.
import Glibc
import NBD
import PluginKit

/// A connection for questions. One thread at a time.
final class Inquiry {
    let link: Link
    private var reader: ReplyReader
    private var question = Question()
    private let cookies = Cookies(secret: UInt64.random(in: .min ... .max))
    private var number: UInt64 = 0
    private var isBroken = false

    /// The one question that waits for an answer.
    private struct Question: OutstandingRequests {
        var cookie: UInt64 = 0
        var outstanding = Outstanding(.blockStatus, offset: 0, length: 0)

        func slot(ofCookie cookie: UInt64) -> Int? { cookie == self.cookie && cookie != 0 ? 0 : nil }
        subscript(slot: Int) -> Outstanding {
            get { outstanding }
            set { outstanding = newValue }
        }
    }

    init(_ link: Link, _ facts: ExportFacts) {
        self.link = link
        reader = ReplyReader(facts)
    }

    /// Extents from `offset` on, of at most `length` bytes: one at least.
    func extents(from offset: UInt64, length: UInt32) throws(PluginError) -> [Extent] {
        try ask(.blockStatus, "the server does not say what is allocated", offset: offset, length: length)
        return reader.extents
    }

    /// Makes durable what was answered on all connections.
    func flush() throws(PluginError) { try ask(.flush, "the server's flush") }

    private func ask(
        _ kind: Command.Kind, _ what: String, offset: UInt64 = 0, length: UInt32 = 0
    ) throws(PluginError) {
        guard !isBroken else {
            throw PluginError(ENOTCONN, "the connection for questions is broken until the disk is opened anew")
        }
        isBroken = true
        number &+= 1
        let command = Command(kind, cookie: cookies.cookie(of: number), offset: offset, length: length)
        question = Question(cookie: command.cookie, outstanding: Outstanding(command))
        try link.write(command.bytes)
        var window: [UInt8] = []
        while true {
            let step: ReplyStep
            do throws(ProtocolError) {
                // Bytes of any value are valid bytes.
                step = try unsafe reader.next(in: window.span.bytes, &question)
            } catch {
                throw PluginError(EPROTO, error.message)
            }
            window.removeFirst(min(step.consumed, window.count))
            switch step.event {
            case .answered(_, let error):
                isBroken = false
                guard error == 0 else { throw PluginError(system: what, error) }
                return
            case .needMore(let count):
                guard window.count < count else { continue }
                var room = [UInt8](repeating: 0, count: 16384)
                let received = try link.receive(into: &room)
                guard received > 0 else {
                    throw PluginError(ECONNRESET, "the server closed the connection for questions")
                }
                window += room[..<received]
            case .payload, .zeroes: throw PluginError(EPROTO, "the server sends data that nobody asked for")
            case .extents, .passed: break
            }
        }
    }
}

extension NBDDevice: MappedDisk {
    func map(from offset: UInt64, length: UInt64, _ report: (MappedRange) -> Bool) throws(PluginError) {
        guard let inquiry else {
            throw PluginError(
                EOPNOTSUPP,
                "\(server) does not say what is allocated: it has no base:allocation, or allows one connection alone")
        }
        let size = info.size
        let end = offset.addingReportingOverflow(length).overflow ? size : min(size, offset + length)
        var place = offset
        while place < end {
            // A whole number of the server's blocks.
            let wanted = UInt32(min(end - place, 1 << 30))
            for extent in try inquiry.extents(from: place, length: wanted) {
                var kind: MappedRange.Kind = extent.isHole ? .hole : []
                if extent.isZero { kind.insert(.zeroes) }
                guard report(MappedRange(place, UInt64(extent.length), kind)) else { return }
                place += UInt64(extent.length)
            }
        }
    }
}
