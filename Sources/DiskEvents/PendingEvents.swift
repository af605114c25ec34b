// SPDX-License-Identifier: BSD-2-Clause
// Events of a worker that xbbd has not taken yet. Pure.
public import Support

/// Events in order, each with a number of this process. xbbd acknowledges what it has written down.
public struct PendingEvents: Sendable {
    /// The most that wait; of more, the oldest are dropped and counted.
    public static let limit = 64

    private var events: [(number: UInt64, json: JSON)] = []
    private var last: UInt64 = 0
    private var dropped: UInt64 = 0

    /// None.
    public init() {}

    /// True where there is nothing to tell.
    public var isEmpty: Bool { events.isEmpty }

    /// Adds an event that happened at `time`, in seconds since 1970.
    public mutating func add(_ kind: DiskEventKind, _ details: DiskEventDetails, time: Double) {
        last += 1
        let members: [JSON.Member] = [
            ("number", .integer(last)), ("event", .string(kind.rawValue)),
            ("time", .decimal((time * 1000).rounded() / 1000)),
        ]
        events.append((last, .object(members + details.members)))
        if events.count > Self.limit {
            events.removeFirst()
            dropped += 1
        }
    }

    /// Drops those up to this number.
    public mutating func acknowledge(_ number: UInt64) {
        events.removeAll { $0.number <= number }
    }

    /// What waits, and how many were dropped since this was asked for.
    public mutating func take() -> [JSON.Member] {
        defer { dropped = 0 }
        return [("events", .array(events.map(\.json))), ("dropped", .integer(dropped))]
    }
}
