// SPDX-License-Identifier: BSD-2-Clause
// What a worker answers on its control socket.
import BlockQueue
import PluginHost
import Glibc
import XenBus
import Support

extension VBDWorker {
    /// The reply to one line.
    func answer(_ line: String) -> JSON {
        let words = line.split(separator: " ").map(String.init)
        switch words.first {
        case "ping" where words.count == 1: return .object([("pid", .integer(Int64(getpid())))])
        case "show" where words.count == 1: return show()
        case "stats" where words.count == 1: return stats()
        case "set" where words.count == 3:
            var changed = tunables
            if let problem = changed.set(words[1], words[2]) { return .object([("error", .string(problem))]) }
            tunables = changed
            for queue in queues {
                queue.setTuning(tunables.tuning, pollNanoseconds: tunables.pollMicroseconds * 1000)
            }
            log.info("\(words[1]) is \(words[2]) now")
            return .object([("tunables", tunables.json)])
        default:
            return .object([("error", .string("expected: ping, show, stats, or set KEY VALUE"))])
        }
    }

    private func show() -> JSON {
        let parts = options.backendPath.split(separator: "/").map(String.init)
        func text(_ value: String?) -> JSON { value.map { .string($0) } ?? .null }
        return .object([
            ("backend_path", .string(options.backendPath)), ("domid", .integer(UInt64(frontendDomain))),
            ("device", text(parts.last)), ("pid", .integer(Int64(getpid()))),
            ("state", text(machine.state.map { "\($0)" })),
            ("stage", .string(stageName)), ("format", text(device?.source.format)),
            ("path", text(device?.source.path)), ("plugin", text(device?.library.name)),
            (
                "images",
                .array(
                    (device?.images ?? []).map {
                        .object([("format", .string($0.format)), ("path", .string($0.path))])
                    })
            ),
            ("plugin_version", text(device?.library.version)),
            ("read_only", device.map { .bool($0.isReadOnly) } ?? .null),
            ("sectors", device.map { .integer($0.info.sectorCount) } ?? .null),
            ("logical_block", device.map { .integer(UInt64($0.info.logicalBlock)) } ?? .null),
            ("physical_block", device.map { .integer(UInt64($0.info.physicalBlock)) } ?? .null),
            ("queues", .integer(UInt64(queues.count))),
            ("ring_pages", .integer(UInt64(connection?.rings.first?.pageReferences.count ?? 0))),
            ("xenstore", .string(isStoreLost ? "lost" : "connected")), ("abi", text(connection?.ringProtocol.rawValue)),
            ("tunables", tunables.json),
        ])
    }

    private var stageName: String {
        switch machine.stage {
        case .idle: "idle"
        case .resting: "resting"
        case .opening: "opening"
        case .ready: "ready"
        case .connecting: "connecting"
        case .discarding: "discarding"
        case .connected: "connected"
        case .draining: "draining"
        case .closing: "closing"
        case .ended: "ended"
        }
    }

    private func stats() -> JSON {
        let counters = QueueCounter.allCases.map { counter -> (String, JSON) in
            ("\(counter)", .integer(statistics.reduce(0) { $0 &+ $1.value(counter) }))
        }
        let perQueue = statistics.map { queue -> JSON in
            .object(QueueCounter.allCases.map { ("\($0)", .integer(queue.value($0))) })
        }
        let latencies = LatencyClass.allCases.map { latency -> (String, JSON) in
            var all = LatencyHistogram()
            for queue in statistics { all.merge(queue.histogram(latency)) }
            return (
                "\(latency)",
                .object([
                    ("count", .integer(all.total)), ("p50", .integer(all.percentile(0.5))),
                    ("p90", .integer(all.percentile(0.9))), ("p99", .integer(all.percentile(0.99))),
                    ("p999", .integer(all.percentile(0.999))), ("max", .integer(all.percentile(1))),
                    ("histogram", .array(all.buckets.map { .array([.integer($0.bound), .integer($0.count)]) })),
                ])
            )
        }
        let violations = queues.reduce(UInt64(0)) { $0 &+ $1.violations }
        return .object([
            ("totals", .object(counters + [("plugin_bad_completions", .integer(violations))])),
            ("latency_ns", .object(latencies)), ("queues", .array(perQueue)),
        ])
    }
}
