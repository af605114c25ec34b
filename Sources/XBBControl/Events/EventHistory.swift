// SPDX-License-Identifier: BSD-2-Clause
// The last events of all disks, and what state they have brought each disk into. Pure.
import DiskEvents
import Support

/// Events in order. Of a state that a disk is in already, nothing is told again.
struct EventHistory {
    /// What a disk is, as its events tell it. A disk without a state is detached.
    struct DiskState: Equatable {
        var isConnected = false
        var isPaused = false
        var hasFailed = false
    }

    /// Events that are kept, of all disks and of one: a disk that makes many takes the place of its own.
    static let limit = 2048
    static let diskLimit = 256

    /// Names the numbering: another one begins anew.
    let epoch: String
    /// The sequence number of the next event.
    private(set) var next: UInt64
    private(set) var events: [DiskEvent] = []
    private(set) var states: [VBDAddress: DiskState]

    /// A new numbering, or one that goes on where `next` and `states` say.
    init(epoch: String, next: UInt64 = 1, states: [VBDAddress: DiskState] = [:]) {
        self.epoch = epoch
        self.next = max(next, 1)
        self.states = states
    }

    /// The events that this one means, in order: none where the disk is in that state already, and the attachment of one that
    /// was not known.
    func meaning(of kind: DiskEventKind, _ address: VBDAddress) -> [DiskEventKind] {
        let state = states[address]
        switch kind {
        case .attached: return state == nil ? [.attached] : []
        case .connected:
            if state?.isConnected == true { return [] }
            return state == nil ? [.attached, .connected] : [.connected]
        case .disconnected: return state?.isConnected == true ? [.disconnected] : []
        case .paused:
            if state?.isPaused == true { return [] }
            return state == nil ? [.attached, .paused] : [.paused]
        case .resumed: return state?.isPaused == true ? [.resumed] : []
        case .failed: return state?.hasFailed == true ? [] : [.failed]
        case .detached: return state == nil ? [] : [.detached]
        case .error, .resized, .workerReplaced, .limitReached, .imageDamaged: return [kind]
        }
    }

    /// Adds an event under the next number.
    mutating func add(
        _ kind: DiskEventKind, _ address: VBDAddress, _ details: DiskEventDetails, time: Double, suppressed: UInt64 = 0
    ) -> DiskEvent {
        let event = DiskEvent(
            sequence: next, time: time, address: address, kind: kind, details: details, suppressed: suppressed)
        take(event)
        return event
    }

    /// Takes an event whose number is the next one or beyond; nothing of an earlier one.
    mutating func take(_ event: DiskEvent) {
        guard event.sequence >= next, event.sequence < UInt64.max else { return }
        next = event.sequence + 1
        apply(event)
        if events.count(where: { $0.address == event.address }) >= Self.diskLimit,
            let oldest = events.firstIndex(where: { $0.address == event.address })
        {
            events.remove(at: oldest)
        } else if events.count >= Self.limit {
            events.removeFirst()
        }
        events.append(event)
    }

    private mutating func apply(_ event: DiskEvent) {
        var state = states[event.address]
        switch event.kind {
        case .attached: state = state ?? DiskState()
        case .connected:
            state = state ?? DiskState()
            state?.isConnected = true
            state?.hasFailed = false
        case .disconnected: state?.isConnected = false
        case .paused:
            state = state ?? DiskState()
            state?.isPaused = true
        case .resumed: state?.isPaused = false
        case .failed:
            state = state ?? DiskState()
            state?.hasFailed = true
        case .workerReplaced: state?.hasFailed = false
        case .detached: state = nil
        case .error, .resized, .limitReached, .imageDamaged: break
        }
        states[event.address] = state
    }

    // MARK: Reading

    /// What a reader gets.
    struct Part: Equatable {
        var events: ArraySlice<DiskEvent>
        /// Where the reader stands then.
        var next: UInt64
        /// Events that the reader has missed: they are not kept any more; nil: it stood in another epoch.
        var dropped: UInt64?
    }

    /// At most `limit` events from the cursor on.
    func part(from cursor: EventCursor?, limit: Int = 512) -> Part {
        guard let cursor else { return part(from: events.first?.sequence ?? next, limit, isFirst: true) }
        if cursor.epoch.map({ $0 == epoch }) ?? true, cursor.sequence <= next {
            return part(from: cursor.sequence, limit, isFirst: cursor.sequence == 0)
        }
        // A number of another epoch says nothing of this one.
        var part = part(from: events.first?.sequence ?? next, limit, isFirst: true)
        part.dropped = nil
        return part
    }

    private func part(from sequence: UInt64, _ limit: Int, isFirst: Bool) -> Part {
        // Numbers rise, but some may be missing.
        let start = events.firstIndex { $0.sequence >= sequence } ?? events.endIndex
        let found = events[start...].prefix(limit)
        let end = found.endIndex == events.endIndex ? next : (found.last?.sequence ?? next - 1) + 1
        let dropped = isFirst ? 0 : end - min(sequence, end) - UInt64(found.count)
        return Part(events: found, next: end, dropped: dropped)
    }

    // MARK: On disk

    /// The line before the events: where they begin, and what was before them.
    var header: JSON {
        .object([
            ("epoch", .string(epoch)), ("next", .integer(next)),
            (
                "disks",
                .object(
                    states.sorted { $0.key < $1.key }.map { address, state in
                        let words = [
                            state.isConnected ? "connected" : nil, state.isPaused ? "paused" : nil,
                            state.hasFailed ? "failed" : nil,
                        ]
                        return ("\(address)", .string(words.compactMap { $0 }.joined(separator: " ")))
                    })
            ),
        ])
    }

    /// All that there is, to be read by ``init(lines:)``.
    var text: [UInt8] {
        var bytes = Array((header.serialized + "\n").utf8)
        for event in events { bytes += Self.line(event) }
        return bytes
    }

    /// An event's line.
    static func line(_ event: DiskEvent) -> [UInt8] { Array((JSON.object(event.members).serialized + "\n").utf8) }

    /// Reads ``text`` and what was added to it by ``line(_:)``; nil where it is nothing of the kind. A line that was not written
    /// to its end is left out, and so is one whose number is not above all before it.
    init?(text: [UInt8]) {
        var lines = text.split(separator: UInt8(ascii: "\n"), omittingEmptySubsequences: false)[...]
        // Behind the last line feed stands nothing, or a part of a line.
        _ = lines.popLast()
        guard let first = lines.popFirst(), let header = Self.json(first),
            let epoch = header["epoch"]?.string, EventCursor.isEpoch(epoch), let next = header["next"]?.unsigned
        else { return nil }
        var states: [VBDAddress: DiskState] = [:]
        for member in header["disks"]?.members ?? [] {
            let parts = member.name.split(separator: "/")
            guard parts.count == 3, let address = VBDAddress(kind: parts[0], domain: parts[1], device: parts[2]) else {
                continue
            }
            let words = member.value.string?.split(separator: " ") ?? []
            states[address] = DiskState(
                isConnected: words.contains("connected"), isPaused: words.contains("paused"),
                hasFailed: words.contains("failed"))
        }
        var last: UInt64 = 0
        let found = lines.compactMap { Self.json($0).flatMap { DiskEvent($0) } }.filter { event in
            defer { last = max(last, event.sequence) }
            return event.sequence > last
        }
        // Events before the header's number are in its states; they are kept to be told.
        self.init(epoch: epoch, next: next, states: states)
        events = found.filter { $0.sequence < next }.suffix(Self.limit)
        for event in found where event.sequence >= next { take(event) }
    }

    private static func json(_ line: ArraySlice<UInt8>) -> JSON? {
        do throws(JSONError) { return try JSON(parsing: Array(line)) } catch { return nil }
    }
}
