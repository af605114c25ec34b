// SPDX-License-Identifier: BSD-2-Clause
// Events as they are kept: numbers, states, gaps, and the file that the next xbbd reads.
import DiskEvents
import Support
import Testing

@testable import XBBControl

@Suite struct EventHistoryTests {
    private static let epoch = "0123456789abcdef"

    private func address(_ device: UInt32 = 51712) throws -> VBDAddress {
        try #require(VBDAddress(kind: "vbd", domain: 1, device: device))
    }

    /// Adds what `kind` means.
    private func tell(_ kind: DiskEventKind, _ address: VBDAddress, in history: inout EventHistory) {
        for told in history.meaning(of: kind, address) {
            _ = history.add(told, address, DiskEventDetails(), time: 5)
        }
    }

    @Test("what holds already is not told again, and what goes before is") func states() throws {
        var history = EventHistory(epoch: Self.epoch)
        let disk = try address()
        for kind in [
            .disconnected, .resumed, .detached, .connected, .connected, .attached, .paused, .paused, .resumed, .resumed,
            .disconnected, .disconnected, .error, .error, .failed, .failed, .workerReplaced, .failed, .detached,
            .detached,
        ] as [DiskEventKind] { tell(kind, disk, in: &history) }
        #expect(
            history.events.map(\.kind) == [
                .attached, .connected, .paused, .resumed, .disconnected, .error, .error, .failed, .workerReplaced,
                .failed, .detached,
            ])
        #expect(history.events.map(\.sequence) == Array(1...11) && history.next == 12 && history.states.isEmpty)
    }

    @Test("a reader that goes on from where it was misses nothing") func reading() throws {
        var history = EventHistory(epoch: Self.epoch)
        var cursor = EventCursor(epoch: Self.epoch, sequence: history.next)
        var seen: [UInt64] = []
        for round in 0..<50 {
            for _ in 0..<(round % 4) { tell(.error, try address(), in: &history) }
            repeat {
                let part = history.part(from: cursor, limit: 2)
                #expect(part.dropped == 0)
                seen += part.events.map(\.sequence)
                cursor = EventCursor(epoch: Self.epoch, sequence: part.next)
            } while cursor.sequence < history.next
        }
        #expect(seen == Array(1..<history.next))
    }

    @Test("what is not kept any more is a gap of as many") func gaps() throws {
        var history = EventHistory(epoch: Self.epoch)
        let quiet = try address(51728)
        tell(.attached, quiet, in: &history)
        for _ in 0..<1000 { tell(.error, try address(), in: &history) }
        // One disk takes the place of its own events alone.
        #expect(history.events.count == EventHistory.diskLimit + 1 && history.events[0].address == quiet)
        let all = history.part(from: EventCursor(epoch: nil, sequence: 1))
        #expect(all.events.count == 257 && all.dropped == UInt64(1000 - EventHistory.diskLimit) && all.next == 1002)
        #expect(history.part(from: EventCursor(epoch: nil, sequence: 1001)).dropped == 0)
        for device in UInt32(0)..<3000 { tell(.attached, try address(device), in: &history) }
        #expect(history.events.count == EventHistory.limit)
        let cut = history.part(from: EventCursor(epoch: nil, sequence: 1002), limit: 10)
        #expect(cut.events.count == 10 && cut.dropped == cut.next - 1002 - 10)
        // Another numbering, and a number that there was none of.
        for cursor in [EventCursor(epoch: "00000000000000ff", sequence: 1), EventCursor(epoch: nil, sequence: 99_999)] {
            let part = history.part(from: cursor, limit: 1)
            #expect(part.dropped == nil && part.events.first == history.events.first)
        }
    }

    @Test("the next xbbd goes on with numbers, events and states, also where the last line was cut off")
    func file() throws {
        var history = EventHistory(epoch: Self.epoch)
        let disk = try address()
        for kind in [.connected, .paused, .error] as [DiskEventKind] { tell(kind, disk, in: &history) }
        var text = history.text
        let more = history.add(
            .error, disk, DiskEventDetails([("errno", .string("EIO")), ("sector", .integer(7))]), time: 9.5,
            suppressed: 3)
        text += EventHistory.line(more)
        let read = try #require(EventHistory(text: text))
        #expect(read.epoch == Self.epoch && read.next == history.next && read.states == history.states)
        #expect(read.events == history.events)
        let before = text.count - EventHistory.line(more).count
        for end in before..<text.count {
            let cut = try #require(EventHistory(text: Array(text[..<end])))
            #expect(cut.next == history.next - 1 && cut.states == history.states)
        }
        for junk in ["", "x", "{}\n", "{\"epoch\":\"x\",\"next\":1}\n", "[1]\n{}\n"] {
            #expect(EventHistory(text: Array(junk.utf8)) == nil, "\(junk)")
        }
        // Lines that are none are left out.
        let odd = Array("{\"seq\":1,\"time\":1e99}\nnull\n\u{0}\n".utf8)
        #expect(EventHistory(text: history.text + odd)?.events == history.events)
    }

    @Test("a time that a file or a worker tells more exactly is the same before and after it is written")
    func milliseconds() throws {
        let disk = try address()
        var history = EventHistory(epoch: Self.epoch)
        for time in [17000.00005, 0.1 + 0.2, 1_700_000_000.123_456_7, 99_999_999_999.9995] {
            _ = history.add(.error, disk, DiskEventDetails(), time: time)
        }
        #expect(EventHistory(text: history.text)?.events == history.events)
        #expect(history.events.map(\.time) == [17000, 0.3, 1_700_000_000.123, 100_000_000_000])
    }

    @Test("lines of a damaged file whose numbers do not rise are left out: nobody is told an event twice") func rising()
        throws
    {
        func line(_ sequence: UInt64) throws -> [UInt8] {
            EventHistory.line(
                DiskEvent(
                    sequence: sequence, time: 1, address: try address(), kind: .error, details: DiskEventDetails()))
        }
        let header = Array("{\"epoch\":\"\(Self.epoch)\",\"next\":7,\"disks\":{}}\n".utf8)
        let text = try header + [3, 1, 3, 5, 4, 9, 8, 9, 10].map(line).joined()
        let history = try #require(EventHistory(text: text))
        #expect(history.events.map(\.sequence) == [3, 5, 9, 10] && history.next == 11)
        let part = history.part(from: EventCursor(epoch: nil, sequence: 1), limit: 2)
        #expect(part.events.map(\.sequence) == [3, 5] && part.next == 6)
    }

    @Test("of what a worker says, names that are known are taken, and text without control characters") func details() {
        let details = DiskEventDetails([
            ("text", .string("a\u{1b}[2J\nb\u{9b}\u{2028}" + String(repeating: "x", count: 1000))),
            ("seq", .integer(9)),
            ("text", .string("again")), ("evil", .string("x")), ("count", .string("x")), ("sector", .integer(-1)),
            ("errno", .string("EIO")), ("sectors", .integer(8)),
        ])
        #expect(details.members.map(\.name) == ["text", "errno", "sectors"])
        let text = details.members[0].value.string ?? ""
        #expect(text.hasPrefix("a?[2J?b??x") && text.count == 300)
    }

    @Test("a worker's events wait for xbbd, the oldest are dropped and counted") func pending() {
        var pending = PendingEvents()
        for _ in 0..<(PendingEvents.limit + 3) { pending.add(.error, DiskEventDetails(), time: 1) }
        let first = JSON.object(pending.take())
        #expect(first["dropped"]?.unsigned == 3 && first["events"]?.elements.count == PendingEvents.limit)
        #expect(first["events"]?.elements.first?["number"]?.unsigned == 4)
        pending.acknowledge(60)
        #expect(JSON.object(pending.take())["events"]?.elements.count == PendingEvents.limit + 3 - 60)
        pending.acknowledge(.max)
        #expect(pending.isEmpty)
    }

    @Test("places among events", arguments: ["1", "0", "0123456789abcdef:7"]) func cursor(_ text: String) throws {
        #expect(try #require(EventCursor(parsing: text)).description == text)
    }

    @Test("what is no place", arguments: ["", "x", "-1", "01", "1:1", "0123456789ABCDEF:1", "::", "0123456789abcdef:"])
    func noCursor(_ text: String) { #expect(EventCursor(parsing: text) == nil) }
}
