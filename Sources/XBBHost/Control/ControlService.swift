// SPDX-License-Identifier: BSD-2-Clause
// What a worker answers on its control socket.
import BlockQueue
import PluginHost
import Base
import CLinux
import Glibc
import Support
import Xen
import XenBus

/// Reads lines and answers them as JSON. Control thread only.
struct ControlService<Platform: XenPlatform> {
    let disk: ServedDisk<Platform>
    let nodes: NodeStore
    let stalls: [Stall]
    let trouble: DiskTrouble
    let events: EventPort
    /// The last error that was reported; nil since a frontend is served.
    let problem: String?
    let log: Log
    /// Gets what the negotiation has to know of a new size.
    let onResize: (VBDMachine.Event) -> Void

    /// Calls `reply` once: at once, but for `pause`, which is answered when nothing is in flight, and `stats`, which asks the
    /// plugin first.
    func answer(_ line: String, _ machine: VBDMachine, _ reply: @escaping (JSON) -> Void) {
        let words = line.split(separator: " ").map(String.init)
        switch words.first {
        case "ping" where words.count == 1: reply(.object([("pid", .integer(Int64(getpid())))]))
        case "show" where words.count == 1: reply(show(machine))
        case "stats" where words.count == 1: disk.askPlugin { reply(stats(plugin: $0)) }
        case "events" where words.count == 2 || (words.count == 3 && words[2] == "wait"):
            let levels = { [disk] in
                [("open", JSON.bool(disk.device != nil)), ("paused", JSON.bool(disk.isPauseWanted))]
            }
            events.ask(after: UInt64(words[1]) ?? 0, waits: words.count == 3, levels: levels, reply)
        case "metrics" where words.count == 1: reply(metrics(machine))
        case "log" where words.count == 1: reply(.object([("events", .array(lines))]))
        case "pause" where words.count == 2 || words.count == 3 && words[2] == "brief":
            pause(words[1], isBrief: words.count == 3, reply)
        case "resume" where words.count == 1:
            let wasPaused = disk.isPauseWanted
            if wasPaused { log.info("going on after the pause") }
            disk.resume()
            nodes.forgetPause(log)
            // With this goes out what holds now.
            if wasPaused { events.emit(.resumed) }
            reply(.object([("paused", .bool(false)), ("tried_again", .integer(disk.tryHeldAgain()))]))
        case "resize" where words.count == 2 || words.count == 3 && words[2] == "force":
            resize(words[1], force: words.count == 3, reply)
        case "extents" where words.count == 2: extents(words[1], reply)
        case "set" where words.count >= 3 && words.count % 2 == 1:
            let changes = stride(from: 1, to: words.count, by: 2).map { (name: words[$0], value: words[$0 + 1]) }
            if let problem = disk.change(changes) { return reply(.object([("error", .string(problem))])) }
            log.info(changes.map { "\($0.name) is \($0.value) now" }.joined(separator: ", "))
            reply(.object([("tunables", disk.tunables.json)]))
        default:
            let expected =
                "expected: ping, show, stats, metrics, events NUMBER [wait], log, pause SECONDS [brief], resume, "
                + "resize BYTES [force], extents OFFSET, or set KEY VALUE [KEY VALUE]..."
            reply(.object([("error", .string(expected))]))
        }
    }

    private func resize(_ word: String, force: Bool, _ reply: @escaping (JSON) -> Void) {
        let bytes = UInt64(word)
        guard bytes != nil || word == "-" else {
            return reply(.object([("error", .string("expected a number of bytes, or -"))]))
        }
        let (disk, log, onResize) = (disk, log, onResize)
        disk.resize(to: bytes, force: force) { result in
            switch result {
            case .failure(let error): reply(.object([("error", .string(error.description))]))
            case .success(let event):
                let sectors = disk.device?.info.sectorCount ?? 0
                log.info("the disk was resized and has \(sectors) sectors now")
                onResize(event)
                reply(.object([("sectors", .integer(sectors))]))
            }
        }
    }

    private func extents(_ word: String, _ reply: @escaping (JSON) -> Void) {
        guard let offset = UInt64(word), let device = disk.device else {
            return reply(.object([("error", .string("expected a number of bytes, of a disk whose storage is open"))]))
        }
        disk.calls.make("extents()") { () throws(OperationError) in
            try device.extents(from: offset)
        } _: { result in
            switch result {
            case .failure(let error): reply(.object([("error", .string(error.description))]))
            case .success(let found):
                let ranges = found.ranges.map { range -> JSON in
                    .array([.integer(range.offset), .integer(range.length), .integer(range.flags)])
                }
                reply(
                    .object([("ranges", .array(ranges)), ("next", found.next.map { .integer($0) } ?? .null)]))
            }
        }
    }

    /// The last lines, where they have no file.
    private var lines: [JSON] {
        (log.history?.lines ?? []).map { line in
            .object([
                ("time", .decimal((line.time * 1000).rounded() / 1000)), ("level", .string(line.level.word)),
                ("text", .string(line.text)),
            ])
        }
    }

    private func show(_ machine: VBDMachine) -> JSON {
        let node = disk.connection?.node
        let drainingSince = disk.drain?.began
        let entries: [(String, JSON)] = [
            ("backend_path", .string(nodes.backendPath)), ("domid", .integer(UInt64(nodes.frontendDomain))),
            ("device", text(nodes.backendPath.split(separator: "/").last.map(String.init))),
            ("pid", .integer(Int64(getpid()))), ("state", text(machine.state.map { "\($0)" })),
            ("stage", .string(stage(machine))),
        ]
        let connection: [(String, JSON)] = [
            ("queues", .integer(UInt64(disk.queues.count))),
            ("ring_pages", .integer(UInt64(node?.rings.first?.pageReferences.count ?? 0))),
            ("xenstore", .string(nodes.isLost ? "lost" : "connected")), ("abi", text(node?.ringProtocol.rawValue)),
            ("intake", .string(disk.intake.rawValue)), ("paused_seconds", pauseLeft),
            ("in_flight", .integer(disk.requestsInFlight)),
            ("throttled", .integer(UInt64(clamping: disk.throttledRequests))),
            (
                "draining_seconds",
                drainingSince.map { .integer((clinux_monotonic_ns() &- $0) / 1_000_000_000) } ?? .null
            ),
            ("journal", text(disk.isConnected ? disk.journal.isKept ? "file" : "memory" : nil)),
            ("tunables", disk.tunables.json),
        ]
        let now = clinux_monotonic_ns()
        let stalled: [(String, JSON)] = [("stalled", .array(stalls.map { $0.json(now) }))]
        let reasons: [(String, JSON)] = [
            ("trouble", text(trouble.text(of: disk))), ("problem", text(problem)), ("stopped", trouble.json),
        ]
        return .object(entries + (opening(machine) ?? storage) + connection + stalled + reasons + errors)
    }

    /// The stage; of a storage that is being opened, for how long.
    private func stage(_ machine: VBDMachine) -> String {
        opening(machine)?.first?.1.unsigned.map { "opening for \($0) s" } ?? machine.stage.name
    }

    /// What is known of a storage that is being opened; nil where none is.
    private func opening(_ machine: VBDMachine) -> [(String, JSON)]? {
        guard case .opening(let request) = machine.stage, let running = disk.calls.running else { return nil }
        let seconds = (clinux_monotonic_ns() &- running.began) / 1_000_000_000
        return [
            ("opening_seconds", .integer(seconds)), ("path", .string(request.image.path)),
            ("format", .string(request.image.format.name)),
        ]
    }

    /// Errors of the storage.
    private var errors: [(String, JSON)] {
        let counts = disk.storageErrors.map { entry -> JSON in
            .object([
                ("operation", .string("\(entry.operation)")),
                ("errno", entry.code == 0 ? .null : .string(OperationError.errnoName(entry.code))),
                ("count", .integer(entry.count)),
            ])
        }
        let last = disk.lastStorageError.map { error -> JSON in
            .object([
                ("operation", .string("\(error.operation)")), ("sector", .integer(error.firstSector)),
                ("sectors", .integer(error.sectorCount)), ("errno", .string(OperationError.errnoName(error.code))),
                ("text", .string(errnoText(error.code))), ("time", .integer(error.time)),
            ])
        }
        return [("errors", .array(counts)), ("last_error", last ?? .null)]
    }

    private var storage: [(String, JSON)] {
        let device = disk.device
        let images = (device?.images ?? []).map { image -> JSON in
            .object([("format", .string(image.format)), ("path", .string(image.path))])
        }
        return [
            ("format", text(device?.source.format)), ("path", text(device?.source.path)),
            ("plugin", text(device?.library.name)), ("images", .array(images)),
            ("plugin_version", text(device?.library.version)),
            ("read_only", device.map { .bool($0.isReadOnly) } ?? .null),
            ("sectors", device.map { .integer($0.info.sectorCount) } ?? .null),
            ("logical_block", device.map { .integer(UInt64($0.info.logicalBlock)) } ?? .null),
            ("physical_block", device.map { .integer(UInt64($0.info.physicalBlock)) } ?? .null),
        ]
    }

    private func text(_ value: String?) -> JSON { value.map { .string($0) } ?? .null }

    private func stats(plugin: JSON) -> JSON {
        let statistics = disk.statistics
        let counters = QueueCounter.allCases.map { counter -> (String, JSON) in
            (counter.name, .integer(statistics.reduce(0) { $0 &+ $1.value(counter) }))
        }
        let perQueue = statistics.map { queue -> JSON in
            .object(QueueCounter.allCases.map { ($0.name, .integer(queue.value($0))) })
        }
        let latencies = LatencyClass.allCases.map { latency -> (String, JSON) in
            var all = LatencyHistogram()
            for queue in statistics { all.merge(queue.histogram(latency)) }
            return (
                latency.name,
                .object([
                    ("count", .integer(all.total)), ("p50", .integer(all.percentile(0.5))),
                    ("p90", .integer(all.percentile(0.9))), ("p99", .integer(all.percentile(0.99))),
                    ("p999", .integer(all.percentile(0.999))), ("max", .integer(all.percentile(1))),
                    ("histogram", .array(all.buckets.map { .array([.integer($0.bound), .integer($0.count)]) })),
                ])
            )
        }
        return .object(
            [
                ("totals", .object(counters + [("plugin_bad_completions", .integer(disk.violations))])),
                ("latency_ns", .object(latencies)), ("queues", .array(perQueue)),
                ("plugin", plugin), ("stopped", trouble.json),
            ] + errors)
    }
}

extension VBDMachine.Stage {
    /// One word for operators.
    fileprivate var name: String {
        switch self {
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
}
