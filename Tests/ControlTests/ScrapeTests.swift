// SPDX-License-Identifier: BSD-2-Clause
// Metrics over HTTP: the request of a scraper, and the real program under scrapers of all kinds.
import Base
import CLinux
import Glibc
import Support
import Synchronization
import TestSupport
import Testing

@testable import XBBControl

@Suite struct ScrapeTests {
    private func request(_ text: String) -> ScrapeRequest? { ScrapeRequest(Array(text.utf8)) }

    @Test("requests that are answered with metrics") func good() {
        #expect(request("GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n") == .metrics(.prometheus, isHead: false))
        #expect(request("HEAD /metrics?x=1 HTTP/1.0\n\n") == .metrics(.prometheus, isHead: true))
        #expect(
            request("GET /metrics HTTP/1.1\r\naccept: application/openmetrics-text;version=1.0.0,text/plain\r\n\r\n")
                == .metrics(.openmetrics, isHead: false))
        #expect(request("GET http://localhost:9788/metrics HTTP/1.1\r\n\r\n") == .metrics(.prometheus, isHead: false))
    }

    @Test("requests that are refused, and those that are not complete") func bad() {
        #expect(request("GET /etc/passwd HTTP/1.1\r\n\r\n") == .refused(.notFound))
        #expect(request("GET /../metrics HTTP/1.1\r\n\r\n") == .refused(.notFound))
        #expect(request("POST /metrics HTTP/1.1\r\n\r\n") == .refused(.method))
        for text in ["\r\n", "GET\r\n\r\n", "GET  /metrics HTTP/1.1\n\n", "GET /metrics SMTP\n\n", "\u{0}\u{0}\n\n"] {
            #expect(request(text) == .refused(.badRequest), "\(text)")
        }
        #expect(request("") == nil && request("GET /metrics HTTP/1.1\r\nHost: a\r\n") == nil)
        #expect(request(String(repeating: "x", count: 8191)) == nil)
        #expect(request(String(repeating: "x", count: 8192)) == .refused(.tooLong))
        #expect(request(String(repeating: "x: y\r\n", count: 2000) + "\r\n") == .refused(.tooLong))
    }

    /// `xbbctl metrics --serve` as the service manager starts it, for as long as it is kept.
    private final class Server {
        let port: UInt16
        let program: Program

        init(_ lab: DaemonLab) throws {
            let (socket, port) = try listeningSocket()
            self.port = port
            // The child has it as descriptor 3.
            let command =
                "LISTEN_PID=$$ LISTEN_FDS=1 exec \(DaemonLab.products)/xbbctl metrics --serve --socket \(lab.socket)"
            program = try Program(["/bin/sh", "-c", command], kept: socket)
        }

        func connect() throws -> Descriptor { try ScrapeTests.connect(port) }

        func ask(_ text: String = "GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n") throws -> String {
            try ScrapeTests.answer(try connect(), text)
        }
    }

    private static func connect(_ port: UInt16) throws -> Descriptor {
        let file = try Descriptor(socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0), "socket")
        var address = sockaddr_in()
        address.sin_family = sa_family_t(AF_INET)
        address.sin_port = port.bigEndian
        address.sin_addr.s_addr = UInt32(0x7f00_0001).bigEndian
        let result = withUnsafePointer(to: &address) { pointer in
            pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                Glibc.connect(file.raw, $0, socklen_t(MemoryLayout<sockaddr_in>.size))
            }
        }
        try #require(result == 0)
        var limit = timeval(tv_sec: 30, tv_usec: 0)
        setsockopt(file.raw, SOL_SOCKET, SO_RCVTIMEO, &limit, socklen_t(MemoryLayout<timeval>.size))
        return file
    }

    private static func answer(_ socket: Descriptor, _ text: String) throws -> String {
        _ = socket.sendAvailable(Array(text.utf8)[...])
        var bytes: [UInt8] = []
        while case .bytes(let more) = socket.readAvailable() { bytes += more }
        return String(decoding: bytes, as: UTF8.self)
    }

    private func lab() throws -> DaemonLab {
        let lab = try DaemonLab()
        try lab.store.write("/local/domain/1/name", "web")
        _ = try lab.makeNode(1, 51712)
        try lab.startDaemon()
        try eventually("it is taken") { try lab.row("vbd/1/51712")?["state"]?.string == "initWait" }
        return lab
    }

    @Test("metrics in the format that was asked for, refusals, and the head alone") func formats() throws {
        let lab = try lab()
        let server = try Server(lab)
        let plain = try server.ask()
        #expect(plain.hasPrefix("HTTP/1.1 200 OK\r\n") && plain.contains("version=0.0.4"), "\(plain.prefix(300))")
        #expect(plain.contains(#"xbb_disk_info{domain="web",vdev="xvda",kind="vbd",domid="1""#), "\(plain)")
        let open = try server.ask("GET /metrics HTTP/1.1\r\nAccept: application/openmetrics-text\r\n\r\n")
        #expect(open.hasSuffix("# EOF\n") && open.contains("application/openmetrics-text; version=1.0.0"))
        let head = try server.ask("HEAD /metrics HTTP/1.1\r\n\r\n")
        #expect(head.hasPrefix("HTTP/1.1 200 OK\r\n") && head.hasSuffix("\r\n\r\n") && head.contains("Content-Length"))
        #expect(try server.ask("GET / HTTP/1.1\r\n\r\n").hasPrefix("HTTP/1.1 404"))
        #expect(try server.ask("PUT /metrics HTTP/1.1\r\n\r\n").hasPrefix("HTTP/1.1 405"))
        lab.killDaemons()
        try eventually("it is said that xbbd is gone") {
            let answer = try server.ask()
            return answer.hasPrefix("HTTP/1.1 503") && answer.contains("cannot reach xbbd")
        }
    }

    @Test("a hundred scrapers at once, beside some that send or read nothing and some that send nonsense")
    func many() throws {
        let lab = try lab()
        let server = try Server(lab)
        var silent: [Descriptor] = []
        for index in 0..<40 {
            let socket = try server.connect()
            if index % 2 == 0 { _ = socket.sendAvailable(Array("GET /met".utf8)[...]) }
            silent.append(socket)
        }
        let noise = try server.connect()
        let block = [UInt8](repeating: 0x80, count: 1 << 16)
        for _ in 0..<16 { _ = noise.sendAvailable(block[...]) }
        let scrapers = try (0..<100).map { _ in try server.connect() }
        for scraper in scrapers { _ = scraper.sendAvailable(Array("GET /metrics HTTP/1.1\r\n\r\n".utf8)[...]) }
        for scraper in scrapers {
            let answer = try Self.answer(scraper, "")
            #expect(answer.hasPrefix("HTTP/1.1 200 OK") && answer.contains("xbb_disks 1"), "\(answer.prefix(200))")
        }
        // A flood of connections takes the place of the oldest, and no memory.
        for _ in 0..<400 { silent.append(try server.connect()) }
        #expect(try server.ask().hasPrefix("HTTP/1.1 200 OK"))
        let open = DirectoryListing.names(in: "/proc/\(server.program.process.process)/fd").count
        #expect(open < MetricsServer.clientLimit + 32, "\(open) descriptors")
        // xbbd was asked a few times, and answers others.
        #expect(try lab.control(["list"]).exit == .clean)
        #expect(server.program.exit == nil)
    }

    /// A hundred disks, each with all operations counted: some hundred kilobytes of metrics.
    private static func manyDisks() -> JSON {
        let counted = JSON.object([
            (
                "counters",
                .object(MetricsFamilies.counterNames.map { JSON.Member($0, .integer(UInt64.max / 2)) })
            ), ("first_power", .integer(14)),
            (
                "latency",
                .object(
                    MetricsFamilies.operations.map { operation in
                        let buckets = JSON.array((0..<20).map { .integer($0 * 1_000_000) })
                        return (operation.name, .object([("count", .integer(20_000_000)), ("buckets", buckets)]))
                    })
            ),
        ])
        let rows = (0..<100).map { disk -> JSON in
            .object([
                ("vbd", .string("vbd/\(disk)/51712")), ("kind", .string("vbd")), ("domid", .integer(disk)),
                ("device", .string("xvda")), ("domain", .string("guest-\(disk)")), ("worker", .string("running")),
                ("starts", .integer(1)), ("counted", counted),
            ])
        }
        return .object([("version", .string("1")), ("vbds", .array(rows)), ("gathering_ns", .integer(1))])
    }

    @Test("scrapers that ask and do not read hold up nobody, and share one answer") func slow() throws {
        let (socket, port) = try listeningSocket()
        let metrics = Self.manyDisks()
        let size = MetricsReport.text(metrics, .prometheus).count
        // More than the kernel keeps for a scraper.
        #expect(size > 512 << 10)
        let asked = Mutex(0)
        let server = try MetricsServer(listeners: [socket], idleSeconds: 1) { () throws(ControlError) in
            asked.withLock { $0 += 1 }
            return metrics
        }
        let began = clinux_monotonic_ns()
        try withThread(
            { try? server.run() },
            whileRunning: {
                var slow = try (0..<100).map { _ in try Self.connect(port) }
                for scraper in slow { _ = scraper.sendAvailable(Array("GET /metrics HTTP/1.1\r\n\r\n".utf8)[...]) }
                // One byte each, which is more than nothing.
                for scraper in slow {
                    if case .bytes(let bytes) = scraper.readAvailable(limit: 1) { #expect(bytes == [0x48]) }
                }
                let answer = try Self.answer(try Self.connect(port), "GET /metrics HTTP/1.1\r\n\r\n")
                #expect(answer.hasPrefix("HTTP/1.1 200 OK") && answer.utf8.count > size)
                // One that reads after all gets all of it, if its time is not over.
                let late = try Self.answer(slow.removeLast(), "")
                let seconds = (clinux_monotonic_ns() - began) / 1_000_000_000
                #expect(
                    late.utf8.count >= size || seconds >= 9, "\(late.utf8.count) of \(size) bytes after \(seconds) s")
                let number = asked.withLock { $0 }
                #expect(number <= Int(seconds) + 2, "asked \(number) times in \(seconds) s")
            })
    }

    @Test("without a socket of the service manager it says who would pass one") func noSocket() throws {
        let lab = try DaemonLab()
        let (text, exit) = try lab.control(["metrics", "--serve", "--json"])
        #expect(exit == .failed(64), "\(text)")
    }

    @Test("a file is replaced as a whole, for all to read") func file() throws {
        let lab = try lab()
        let path = lab.root + "/xbb.prom"
        lab.put("xbb.prom", "old")
        #expect(try lab.control(["metrics", "--format", "prometheus", "--output", path]).exit == .clean)
        var status = stat()
        #expect(stat(path, &status) == 0 && status.st_mode & 0o777 == 0o644)
        let text = String(decoding: SmallFile.contents(path, limit: 1 << 20) ?? [], as: UTF8.self)
        #expect(text.contains("xbb_disks 1\n") && !text.contains("old"))
        #expect(DirectoryListing.names(in: lab.root).filter { $0.hasPrefix(".") } == [])
        let (said, exit) = try lab.control(["metrics", "--output", lab.root + "/none/xbb.prom"])
        #expect(exit == .failed(1), "\(said)")
    }
}
