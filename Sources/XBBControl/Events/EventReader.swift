// SPDX-License-Identifier: BSD-2-Clause
// A reader of events, which goes on when xbbd is restarted.
import CLinux
import Glibc
public import Support

/// Asks xbbd for events, one answer after the other. An xbbd that is being restarted is waited for.
public struct EventReader {
    /// Where the reader stands; nil: at the oldest event that is kept.
    public var cursor: EventCursor?
    /// The last answer did not have all that there is.
    public private(set) var hasMore = false

    private let path: String
    private let end: UInt64
    private var client: ControlClient?
    private var hasAnswered = false
    /// How long xbbd may be away.
    private static let patience: UInt64 = 30 * RestartPolicy.second

    /// A reader at xbbd's socket. Nothing takes longer than until `end`, in ns of CLOCK_MONOTONIC, or little longer.
    public init(path: String, end: UInt64 = .max) {
        self.path = path
        self.end = end
    }

    /// Goes behind the last event.
    public mutating func skip() throws(ControlError) {
        // Only where the last answer ends counts.
        repeat { _ = try next(waits: false) } while hasMore
    }

    /// The next answer; if it `waits`, it comes when there is something, or after some seconds.
    public mutating func next(waits: Bool) throws(ControlError) -> JSON {
        // With little time left it is looked at now and then instead.
        let isShort = end != .max && end &- min(end, clinux_monotonic_ns()) < 12 * RestartPolicy.second
        if waits, isShort { usleep(50_000) }
        let answer = try ask(.events(cursor, waits: waits && !isShort)).value
        let next = answer["next"]?.unsigned ?? 0
        hasMore = (answer["events"]?.elements.count ?? 0) >= 512
        cursor = EventCursor(epoch: answer["epoch"]?.string, sequence: next)
        return answer
    }

    /// Asks something. Once xbbd has answered, an end of the connection is no error for a while.
    public mutating func ask(_ request: ControlRequest) throws(ControlError) -> ControlAnswer {
        let deadline = min(end, clinux_monotonic_ns() &+ Self.patience)
        while true {
            do throws(ControlError) {
                if client == nil { client = try ControlClient(path: path) }
                guard let answer = try client?.call(request) else { continue }
                hasAnswered = true
                return answer
            } catch {
                client = nil
                guard error.status == .unreachable, hasAnswered, clinux_monotonic_ns() < deadline else { throw error }
                usleep(100_000)
            }
        }
    }
}

/// Events as lines.
public enum EventReports {
    private static func isAbout(_ event: JSON, _ vbd: VBDReference?) -> Bool {
        guard let vbd else { return true }
        guard event["domid"]?.unsigned == UInt64(vbd.domain), event["devid"]?.unsigned == UInt64(vbd.device) else {
            return false
        }
        return vbd.kind.map { event["vbd"]?.string?.hasPrefix("\($0)/") == true } ?? true
    }

    /// An answer with the events of one disk alone; gaps are of all disks.
    public static func filtered(_ answer: JSON, of vbd: VBDReference?) -> JSON {
        .object(
            answer.members.map { member in
                guard member.name == "events" else { return member }
                return (member.name, .array(member.value.elements.filter { isAbout($0, vbd) }))
            })
    }

    /// One line for each event, and one for a gap before them.
    public static func lines(_ answer: JSON, of vbd: VBDReference?, json: Bool) -> [String] {
        var lines: [String] = []
        if answer["gap"] == .bool(true) {
            if json {
                lines.append(
                    JSONForm.line(
                        .object([
                            ("epoch", answer["epoch"] ?? .null), ("event", .string("gap")),
                            ("dropped", answer["dropped"] ?? .null),
                        ])))
            } else if let dropped = answer["dropped"]?.unsigned {
                lines.append("-- \(dropped) events are not kept any more --")
            } else {
                lines.append("-- events are numbered anew: those between are not known --")
            }
        }
        for event in answer["events"]?.elements ?? [] where isAbout(event, vbd) {
            lines.append(json ? JSONForm.line(event) : text(event))
        }
        return lines
    }

    private static func text(_ event: JSON) -> String {
        let shown = ["epoch", "seq", "time", "event", "vbd", "domid", "devid", "device", "text"]
        let facts = event.members.filter { !shown.contains($0.name) }.map { "\($0.name)=\(Reports.cell($0.value))" }
        let words = [
            Reports.cell(event["seq"]), LocalTime.text(event["time"]),
            Reports.cell(event["vbd"]), Reports.cell(event["event"]),
        ]
        return TextTable.printable(
            (words + facts + (event["text"]?.string.map { ["(\($0))"] } ?? [])).joined(separator: " "))
    }
}

/// A state of a disk that somebody may wait for.
public enum AwaitedState: String, CaseIterable, Sendable {
    /// The storage is open.
    case attached
    /// A guest is served.
    case connected
    /// The disk is attached, and no guest is served.
    case disconnected
    /// The disk is paused.
    case paused
    /// The disk has its storage, and is not paused.
    case running
    /// Nobody serves the disk.
    case failed
    /// There is no such disk.
    case detached

    /// Whether an answer to `state` says so.
    public func holds(_ answer: JSON) -> Bool {
        func isSet(_ name: String) -> Bool { answer[name] == .bool(true) }
        return switch self {
        case .attached: isSet("attached")
        case .connected: isSet("connected")
        case .disconnected: isSet("attached") && !isSet("connected")
        case .paused: isSet("paused")
        case .running: isSet("running")
        case .failed: isSet("failed")
        case .detached: !isSet("known") && !isSet("attached")
        }
    }

    /// What an answer to `state` says, for people.
    public static func text(_ answer: JSON) -> String {
        let states = allCases.filter { $0.holds(answer) }.map(\.rawValue)
        return "it is \(states.isEmpty ? "not attached" : states.joined(separator: ", "))"
    }
}
