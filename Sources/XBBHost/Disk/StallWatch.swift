// SPDX-License-Identifier: BSD-2-Clause
// What does not end: a plugin's call, a request, a queue.
import BlockQueue
import Support

/// Something that has lasted for too long.
struct Stall: Equatable {
    /// What of a disk does not end.
    enum Subject: Equatable {
        /// A control call of the plugin, or a queue's opening or closing.
        case call(String)
        /// A request of this queue.
        case request(UnansweredRequest, queue: Int)
    }

    let subject: Subject
    /// The plugin, if it is known yet.
    let plugin: String?
    /// Since when at the latest, in ns of the monotonic clock.
    let since: UInt64

    /// For operators, without its time.
    var text: String {
        let plugin = plugin.map { "plugin '\($0)' " } ?? "the storage "
        switch subject {
        case .call(let name): return "\(plugin)does not return from \(name)"
        case .request(let request, let queue): return "\(plugin)does not answer a \(request.text) (queue \(queue))"
        }
    }

    func seconds(_ now: UInt64) -> UInt64 { (now > since ? now &- since : 0) / 1_000_000_000 }

    func json(_ now: UInt64) -> JSON {
        let what: [(String, JSON)] =
            switch subject {
            case .call(let name): [("call", .string(name))]
            case .request(let request, let queue):
                [
                    ("operation", .string(request.operation)), ("sector", .integer(request.firstSector)),
                    ("sectors", .integer(request.sectorCount)), ("queue", .integer(UInt64(queue))),
                ]
            }
        return .object(
            [("plugin", plugin.map { .string($0) } ?? .null)] + what + [("seconds", .integer(seconds(now)))])
    }
}

/// Looks at requests now and then: one that is the oldest of its queue each time is on its way at least since the first time.
struct RequestWatch {
    private var seen: [Int: (request: UnansweredRequest, since: UInt64)] = [:]

    /// Looks at all queues: `oldest` is the oldest request of each, by the queue's number.
    mutating func look(_ oldest: [Int: UnansweredRequest], now: UInt64) {
        var next: [Int: (request: UnansweredRequest, since: UInt64)] = [:]
        for (queue, request) in oldest {
            let before = seen[queue]
            next[queue] = (request, before?.request.number == request.number ? before?.since ?? now : now)
        }
        seen = next
    }

    /// Those that have been on their way for `limit` ns, the oldest first.
    func stalls(plugin: String?, limit: UInt64, now: UInt64) -> [Stall] {
        seen.filter { now &- $0.value.since >= limit }
            .map { Stall(subject: .request($0.value.request, queue: $0.key), plugin: plugin, since: $0.value.since) }
            .sorted { $0.since < $1.since }
    }
}
