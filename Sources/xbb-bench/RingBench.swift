// SPDX-License-Identifier: BSD-2-Clause
// One frontend, one ring, and the backends in turn.
import Blkif
import Blkfront
import CEcho
import CLinux
import Glibc
import Memory
import Synchronization
import XBBHost
import Xen
import XenLoopback
import Support

/// What to measure.
struct RingBenchSettings {
    var pluginDirectory = "build/release/lib/xbb/plugins"
    var repeats = 5
    var requests: UInt64 = 2_000_000
    var pollNanoseconds: UInt64 = 0
    var spins = 0
    var depths = [1, 32, 256]
    var backends = RingBackend.allCases
}

/// The backends that are compared.
enum RingBackend: String, CaseIterable {
    case xbb
    case xbbWithCopy = "xbb_with_copy"
    case echo = "c_echo"
}

final class RingBench {
    private let settings: RingBenchSettings
    private let directory: String
    private let xen: LoopbackXen
    private let guest: LoopbackDomain
    private let references: [UInt32]
    private let log = Log(name: "xbb-bench", level: .warning)
    private static let ringPages = 8
    private static let diskPages: UInt64 = 1 << 18

    init(_ settings: RingBenchSettings) throws {
        self.settings = settings
        directory = "/tmp/xbb-bench-\(getpid())"
        xen = try LoopbackXen(directory: directory)
        guest = try LoopbackDomain(directory: directory, pages: 2048)
        let domain = guest
        let first = try domain.allocateFrames(256)
        references = try (0..<256).map { try domain.grantAccess(to: 0, frame: first + UInt32($0), readOnly: false) }
    }

    func run() throws {
        var rows: [JSON] = []
        for depth in settings.depths {
            var rates: [RingBackend: [Double]] = [:]
            var details: [RingBackend: [(String, JSON)]] = [:]
            for _ in 0..<settings.repeats {
                for backend in settings.backends {
                    let (rate, detail) = try measure(backend, depth: depth)
                    rates[backend, default: []].append(rate)
                    details[backend] = detail
                }
            }
            for backend in settings.backends {
                let sorted = (rates[backend] ?? []).sorted()
                guard let low = sorted.first, let high = sorted.last else { continue }
                let median = sorted[sorted.count / 2]
                var row: [(String, JSON)] = [
                    ("backend", .string(backend.rawValue)), ("depth", .integer(UInt64(depth))),
                    ("requests_per_s_median", .integer(UInt64(median))), ("requests_per_s_min", .integer(UInt64(low))),
                    ("requests_per_s_max", .integer(UInt64(high))),
                ]
                row += details[backend] ?? []
                rows.append(.object(row))
            }
        }
        print(JSON.object([("ring", .array(rows))]).serialized)
        xen.stop()
    }

    private func measure(_ backend: RingBackend, depth: Int) throws -> (Double, [(String, JSON)]) {
        let requests = depth == 1 ? settings.requests / 20 : settings.requests
        let first = try guest.allocateFrames(Self.ringPages)
        defer { guest.freeFrames(first, count: Self.ringPages) }
        let ring = try (0..<Self.ringPages).map {
            try guest.grantAccess(to: 0, frame: first + UInt32($0), readOnly: false)
        }
        defer { for reference in ring { _ = guest.endAccess(reference) } }
        let port = try guest.allocatePort(for: 0)
        defer { port.close() }
        let front = FrontRing(initializing: guest.pages(at: first, count: Self.ringPages), abi: .native)
        var load = BenchFrontend(
            ring: front, references: references, depth: depth, pages: Self.diskPages, scattered: true)
        let stop = try start(backend, ring: ring, port: port.number)
        func drive(_ count: UInt64) throws -> BenchFrontend.Result {
            try load.run(
                responses: count, spins: settings.spins,
                notify: { do { try port.notify() } catch {} },
                wait: {
                    if port.wait(milliseconds: 100) { _ = port.takePending() }
                    port.unmask()
                })
        }
        _ = try drive(min(requests / 10, 100_000))
        let before = stop.counters()
        let start = clinux_monotonic_ns()
        let result = try drive(requests)
        let elapsed = clinux_monotonic_ns() - start
        let after = stop.counters()
        stop.end()
        if result.errors > 0 { fail("\(backend.rawValue): \(result.errors) errors") }
        var detail: [(String, JSON)] = [
            ("frontend_waits", .integer(result.waits)), ("frontend_notifications", .integer(result.notifications)),
        ]
        for (name, value) in after { detail.append((name, .integer(value &- (before[name] ?? 0)))) }
        return (Double(requests) / (Double(elapsed) / 1e9), detail)
    }

    /// A running backend.
    private struct Running {
        let counters: () -> [String: UInt64]
        let end: () -> Void
    }

    private func start(_ backend: RingBackend, ring: [UInt32], port: EventPort) throws -> Running {
        switch backend {
        case .echo: return try startEcho(ring, port)
        case .xbb, .xbbWithCopy: return try startHost(ring, port, copies: backend == .xbbWithCopy)
        }
    }

    private func startHost(_ ring: [UInt32], _ port: EventPort, copies: Bool) throws -> Running {
        let source = DiskSource(
            format: "null", path: "", options: ["size": "1G", "read-zeroes": copies ? "on" : "off"])
        let device = try PluginDevice(
            source, directories: [settings.pluginDirectory], log: log, onNotify: { _ in })
        try device.start()
        let statistics = QueueStatistics()
        let queue = try QueueThread(
            platform: xen.platform(copiesData: copies), device: device,
            configuration: QueueConfiguration(
                domain: guest.id, index: 0, ringReferences: ring, eventChannel: port, abi: .native,
                disk: DiskLimits(sectorCount: device.info.sectorCount), pollNanoseconds: settings.pollNanoseconds),
            statistics: statistics, log: log, faultLimit: RateLimit(), onFailure: { fail($0.text) })
        try queue.start()
        queue.beginTaking()
        return Running(
            counters: {
                [
                    "host_sleeps": statistics.value(.sleeps),
                    "host_notifications": statistics.value(.notifications_sent),
                    "host_copy_calls": statistics.value(.grant_copy_calls),
                    "host_events": statistics.value(.events_received),
                ]
            },
            end: {
                queue.stop()
                device.close()
            })
    }

    private func startEcho(_ ring: [UInt32], _ port: EventPort) throws -> Running {
        let echo = try EchoBackend(platform: xen.platform(), ring: ring, domain: guest.id, port: port)
        return Running(counters: { [:] }, end: { echo.end() })
    }
}
