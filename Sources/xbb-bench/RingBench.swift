// SPDX-License-Identifier: BSD-2-Clause
// One frontend and one ring, with each backend in turn.
import BlockQueue
import PluginHost
import Blkif
import Blkfront
import CEcho
import CLinux
import Glibc
import Memory
import Synchronization
import Xen
import XenLoopback
import Support

/// The parameters of a measurement.
struct RingBenchSettings {
    var pluginDirectory = "build/release/lib/xbb/plugins"
    var repeats = 5
    var requests: UInt64 = 2_000_000
    var pollNanoseconds: UInt64 = 0
    var spins = 0
    var depths = [1, 32, 256]
    var backends = [RingBackend.xbb, .xbbWithCopy, .echo]
    /// The part of the disk that is read, in MiB.
    var diskMebibytes: UInt64 = 1024
    /// Sectors of a request, 1 to 8.
    var sectors: UInt8 = 8
}

/// A backend in the comparison: XBB with a plugin, or the C echo backend.
struct RingBackend: Hashable {
    let name: String
    /// The plugin's format; nil for the C echo backend.
    var format: String?
    var directory: String?
    var options: [String: String] = [:]
    var copies = false

    static let xbb = RingBackend(name: "xbb", format: "null", options: ["size": "1G", "read-zeroes": "off"])
    static let xbbWithCopy = RingBackend(
        name: "xbb_with_copy", format: "null", options: ["size": "1G", "read-zeroes": "on"], copies: true)
    static let echo = RingBackend(name: "c_echo")
    static let all = [xbb, xbbWithCopy, echo]

    /// The plugin at `path`, called xbb-NAME.so; nil for another name.
    static func plugin(_ path: String) -> RingBackend? {
        let parts = path.split(separator: "/", omittingEmptySubsequences: false)
        guard let file = parts.last, file.hasPrefix("xbb-"), file.hasSuffix(".so") else { return nil }
        let name = String(file.dropFirst(4).dropLast(3))
        let folder = parts.dropLast().joined(separator: "/")
        return RingBackend(name: name, format: name, directory: parts.count > 1 ? folder : ".", copies: true)
    }
}

final class RingBench {
    private let settings: RingBenchSettings
    private let directory: String
    private let xen: LoopbackXen
    private let guest: LoopbackDomain
    private let references: [UInt32]
    private let log = Log(name: "xbb-bench", level: .warning)
    private static let ringPages = 8
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
            var times: [RingBackend: [Double]] = [:]
            var details: [RingBackend: [(String, JSON)]] = [:]
            for _ in 0..<settings.repeats {
                for backend in settings.backends {
                    let run = try measure(backend, depth: depth)
                    rates[backend, default: []].append(run.rate)
                    times[backend, default: []].append(run.hostNanoseconds)
                    details[backend] = run.detail
                }
            }
            for backend in settings.backends {
                let sorted = (rates[backend] ?? []).sorted()
                guard let low = sorted.first, let high = sorted.last else { continue }
                let median = sorted[sorted.count / 2]
                var row: [(String, JSON)] = [
                    ("backend", .string(backend.name)), ("depth", .integer(UInt64(depth))),
                    ("requests_per_s_median", .integer(UInt64(median))), ("requests_per_s_min", .integer(UInt64(low))),
                    ("requests_per_s_max", .integer(UInt64(high))),
                ]
                if backend.format != nil {
                    row += spread("host_ns_per_request", times[backend] ?? [])
                    if let first = settings.backends.first, backend != first, backend.directory != nil {
                        let pairs = zip(times[backend] ?? [], times[first] ?? [])
                        row += spread("host_ns_more_than_\(first.name)", pairs.map { $0 - $1 })
                    }
                }
                row += details[backend] ?? []
                rows.append(.object(row))
            }
        }
        print(JSON.object([("ring", .array(rows))]).serialized)
        xen.stop()
        unsafe unlink("\(directory)/lock")
        unsafe rmdir(directory)
    }

    /// Median and extremes, in tenths.
    private func spread(_ name: String, _ values: [Double]) -> [(String, JSON)] {
        let sorted = values.sorted()
        guard let low = sorted.first, let high = sorted.last else { return [] }
        return [("median", sorted[sorted.count / 2]), ("min", low), ("max", high)].map { part, value in
            ("\(name)_\(part)", .number("\((value * 10).rounded() / 10)"))
        }
    }

    private struct Measurement {
        /// Requests per second.
        let rate: Double
        /// Processor time per request in ns, of all threads except the frontend's.
        let hostNanoseconds: Double
        let detail: [(String, JSON)]
    }

    private func measure(_ backend: RingBackend, depth: Int) throws -> Measurement {
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
            ring: front, references: references, depth: depth, pages: settings.diskMebibytes << 8, scattered: true,
            sectors: settings.sectors)
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
        let (start, busy) = (clinux_monotonic_ns(), hostTime())
        let result = try drive(requests)
        let (elapsed, used) = (clinux_monotonic_ns() - start, hostTime() - busy)
        let after = stop.counters()
        stop.end()
        if result.errors > 0 { fail("\(backend.name): \(result.errors) errors") }
        var detail: [(String, JSON)] = [
            ("frontend_waits", .integer(result.waits)), ("frontend_notifications", .integer(result.notifications)),
        ]
        for (name, value) in after { detail.append((name, .integer(value &- (before[name] ?? 0)))) }
        return Measurement(
            rate: Double(requests) / (Double(elapsed) / 1e9), hostNanoseconds: Double(used) / Double(requests),
            detail: detail)
    }

    /// Processor time of the process in ns, without this thread, which is the frontend's.
    private func hostTime() -> Int {
        func time(_ clock: clockid_t) -> Int {
            var value = timespec()
            unsafe clock_gettime(clock, &value)
            return value.tv_sec * 1_000_000_000 + value.tv_nsec
        }
        return time(CLOCK_PROCESS_CPUTIME_ID) - time(CLOCK_THREAD_CPUTIME_ID)
    }

    /// A running backend.
    private struct Running {
        let counters: () -> [String: UInt64]
        let end: () -> Void
    }

    private func start(_ backend: RingBackend, ring: [UInt32], port: EventPort) throws -> Running {
        guard let format = backend.format else { return try startEcho(ring, port) }
        let source = DiskSource(format: format, path: "", options: backend.options)
        return try startHost(
            source, backend.directory ?? settings.pluginDirectory, ring, port, copies: backend.copies)
    }

    private func startHost(
        _ source: DiskSource, _ directory: String, _ ring: [UInt32], _ port: EventPort, copies: Bool
    ) throws -> Running {
        let device = try PluginDevice(source, directories: [directory], log: log, onNotify: { _ in })
        try device.start()
        let statistics = QueueStatistics()
        var tuning = QueueTuning()
        tuning.pollNanoseconds = settings.pollNanoseconds
        let queue = try QueueThread(
            platform: xen.platform(copiesData: copies), device: device,
            configuration: QueueConfiguration(
                domain: guest.id, index: 0, ringReferences: ring, eventChannel: port, abi: .native,
                disk: OfferedFeatures(sectorCount: device.info.sectorCount), tuning: tuning),
            statistics: statistics, log: log, onFailure: { fail($0.description) })
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
