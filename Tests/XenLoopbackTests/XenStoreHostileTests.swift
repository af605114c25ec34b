// SPDX-License-Identifier: BSD-2-Clause
// The daemon with clients that break the protocol, do not read, or come in masses; and its own coming and going.
import Base
import CLinux
import Glibc
import TestSupport
import Testing
import Xen

@testable import XenLoopback

/// Resident memory of this process in bytes.
private func residentBytes() -> Int {
    guard let file = fopen("/proc/self/statm", "r") else { return 0 }
    defer { fclose(file) }
    let fields = TestTool(file).line()?.split(separator: " ") ?? []
    return (fields.count > 1 ? Int(fields[1]) ?? 0 : 0) * 4096
}

/// Processor time of this process in nanoseconds.
private func processorTime() -> Int {
    var time = timespec()
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time)
    return time.tv_sec * 1_000_000_000 + time.tv_nsec
}

extension XenStoreTests {
    @Suite struct XenStoreHostileTests {
        @Test(arguments: [1, 2, 3] as [UInt64])
        func junkEndsTheConnectionAndNothingElse(seed: UInt64) throws {
            var random = SplitMix64(seed: seed)
            let daemon = try TestDaemon()
            try daemon.server.addDomain(1)
            let store = try daemon.open()
            for _ in 0..<200 {
                let socket = try daemon.connect(as: 1)
                let length = Int.random(in: 1...20000, using: &random)
                socket.send((0..<length).map { _ in .random(in: 0 ... .max, using: &random) })
            }
            #expect(try store.text("/local/domain/1/name") == "Domain-1", "seed \(seed)")
        }

        @Test func aLengthBeyondTheMaximumEndsTheConnection() throws {
            let daemon = try TestDaemon()
            let socket = try daemon.connect()
            socket.send(message(2, "/tool|"))
            #expect(socket.receiveMessage()?.type == 2)
            socket.send(message(2, "")[..<12] + [0xFF, 0xFF, 0xFF, 0x7F])
            #expect(socket.receiveMessage() == nil)
            let store = try daemon.open()
            #expect(try store.text("/tool") == "")
        }

        @Test func requestsCutAnywhereAreAnsweredInOrder() throws {
            let daemon = try TestDaemon()
            let socket = try daemon.connect()
            var stream: [UInt8] = []
            for index in 0..<100 { stream += message(11, "/n/\(index)|\(index)", id: UInt32(index)) }
            for byte in stream.prefix(200) { socket.send([byte]) }
            socket.send(Array(stream.dropFirst(200)))
            for index in 0..<100 { #expect(socket.receiveMessage()?.requestID == UInt32(index)) }
            // A part of a request and then nothing is no reason to wait.
            socket.send(Array(message(11, "/n|x").prefix(9)))
            #expect(try daemon.open().text("/n/99") == "99")
        }

        @Test func aClientThatOnlyAsksIsPausedAndServedWhenItReads() throws {
            let daemon = try TestDaemon()
            let store = try daemon.open()
            try store.write("/v", [UInt8](repeating: 1, count: 4000), in: .none)
            let socket = try daemon.connect()
            let flags = clinux_fcntl_int(socket.descriptor, F_GETFL, 0)
            _ = clinux_fcntl_int(socket.descriptor, F_SETFL, flags | O_NONBLOCK)
            // Until the daemon reads no more: its memory for this client, and the kernel's, are full.
            let request = message(2, "/v|")
            var sent = 0
            var pauses = 0
            while pauses < 20 {
                let count = request.withUnsafeBytes { Glibc.send(socket.descriptor, $0.baseAddress, $0.count, 0) }
                if count == request.count {
                    sent += 1
                    pauses = 0
                } else {
                    try #require(count < 0 && errno == EAGAIN)
                    pauses += 1
                    usleep(5000)
                }
            }
            #expect(sent > 10)
            #expect(try store.text("/tool") == "")
            _ = clinux_fcntl_int(socket.descriptor, F_SETFL, flags)
            for _ in 0..<sent { #expect(socket.receiveMessage()?.payload.count == 4000) }
        }

        @Test func aWatcherThatNeverReadsIsDropped() async {
            await #expect(processExitsWith: .success) {
                let daemon = try TestDaemon()
                try daemon.server.addDomain(1)
                let store = try daemon.open()
                let guest = try daemon.open(as: 1)
                // Never reads again once its watches are set.
                let lazy = try daemon.connect()
                for token in 0..<5 { lazy.send(4, "/local/domain/1/data|\(token)|") }
                // All are set once the last one is answered.
                var answers = 0
                while answers < 5 { if lazy.receiveMessage()?.type == 4 { answers += 1 } }
                try guest.write("data/warm", "1")
                let before = residentBytes()
                // One node over and over, then always another one.
                let writer = try daemon.connect(as: 1)
                var done = 0
                func write(_ requests: [UInt8], _ count: Int) {
                    writer.send(requests)
                    for _ in 0..<count { if writer.receiveMessage()?.type != 16 { done += 1 } }
                }
                for round in 0..<1000 {
                    write((0..<100).flatMap { message(11, "data/x|\(round) \($0)") }, 100)
                }
                for round in 0..<50 {
                    write(
                        (0..<100).flatMap {
                            message(11, "data/\(round)-\($0)|") + message(13, "data/\(round)-\($0)|")
                        }, 200)
                }
                #expect(done == 110_000)
                #expect(residentBytes() - before < 16 << 20)
                while lazy.receiveMessage() != nil {}
                #expect(try store.text("/local/domain/1/data/warm") == "1")
                #expect(try store.list("/local/domain/1/data", in: .none) == ["warm", "x"])
            }
        }

        @Test func aGuestHasSoManyConnectionsAndDomain0More() throws {
            let daemon = try TestDaemon()
            try daemon.server.addDomain(1)
            var sockets = try (0..<16).map { _ in try daemon.connect(as: 1) }
            for socket in sockets {
                socket.send(2, "name|")
                #expect(socket.receiveMessage()?.type == 2)
            }
            let refused = try daemon.connect(as: 1)
            refused.send(2, "name|")
            #expect(refused.receiveMessage() == nil)
            let control = try (0..<100).map { _ in try daemon.connect() }
            for socket in control {
                socket.send(2, "/tool|")
                #expect(socket.receiveMessage()?.type == 2)
            }
            sockets.removeLast()
            var isServed = false
            while !isServed {
                let socket = try daemon.connect(as: 1)
                socket.send(2, "name|")
                isServed = socket.receiveMessage()?.type == 2
            }
        }

        @Test func clientsThatComeAndGoCostNothing() throws {
            let daemon = try TestDaemon()
            for index in 0..<2000 {
                let socket = try daemon.connect()
                if index % 3 > 0 { socket.send(4, "/|\(index)|") }
                if index % 3 > 1 { _ = socket.receiveMessage() }
            }
            var status = stat()
            var open = 0
            for descriptor in 0..<Int32(1024) where fstat(descriptor, &status) == 0 { open += 1 }
            #expect(open < 500)
            #expect(try daemon.open().text("/tool") == "")
        }

        @Test func withoutDescriptorsClientsWaitAndTheDaemonDoesNotSpin() async {
            await #expect(processExitsWith: .success) {
                let daemon = try TestDaemon()
                let store = try daemon.open()
                #expect(try store.text("/tool") == "")
                // The next connection takes the last descriptor, and there is none for the daemon's end.
                let spare = socket(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0)
                close(spare)
                var limit = rlimit()
                getrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit)
                let before = limit.rlim_cur
                limit.rlim_cur = rlim_t(spare + 1)
                setrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit)
                let late = try daemon.connect()
                late.send(2, "/tool|")
                let start = processorTime()
                usleep(400_000)
                #expect(processorTime() - start < 300_000_000)
                #expect(try store.text("/tool") == "")
                limit.rlim_cur = before
                setrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit)
                #expect(late.receiveMessage()?.type == 2)
            }
        }

        @Test func anIdleDaemonSleeps() async {
            await #expect(processExitsWith: .success) {
                let daemon = try TestDaemon()
                try daemon.server.addDomain(1)
                let socket = try daemon.connect(as: 1)
                socket.send(4, "data|t|")
                _ = socket.receiveMessage()
                let start = processorTime()
                usleep(400_000)
                #expect(processorTime() - start < 300_000_000)
            }
        }

        @Test func domainsChangeWhileClientsWork() throws {
            let daemon = try TestDaemon()
            let store = try daemon.open()
            let server = daemon.server
            try server.addDomain(100)
            let threads = (1...4).map { number in
                TestThread {
                    for round in 0..<50 {
                        let domain = DomainID(number * 10 + round % 3)
                        guard (try? server.addDomain(domain)) != nil else { return }
                        server.removeDomain(domain)
                    }
                }
            }
            for round in 0..<500 { try store.write("/round", "\(round)") }
            threads.forEach { $0.join() }
            #expect(try store.list("/local/domain", in: .none) == ["0", "100"])
            #expect(try store.text("/round") == "499")
        }
    }

    @Suite struct XenStoreServerTests {
        @Test func aDeadServersSocketIsReplacedAndALivingOnesIsNot() throws {
            let daemon = try TestDaemon()
            let path = daemon.server.socketPath(of: 0)
            #expect(path == daemon.directory + "/xenstored.sock")
            #expect(throws: OperationError(EADDRINUSE, "listen at \(path)")) {
                try XenStoreServer(directory: daemon.directory)
            }
            #expect(try daemon.open().text("/tool") == "")
            daemon.server.stop()
            #expect(access(path, F_OK) != 0)
            // A socket without a listener, as after a crash.
            let left = clinux_unix_listen(path, Int32(SOCK_STREAM.rawValue), 1)
            close(left)
            #expect(access(path, F_OK) == 0)
            let second = try XenStoreServer(directory: daemon.directory)
            #expect(try daemon.open().text("/tool") == "")
            var status = stat()
            #expect(stat(path, &status) == 0 && status.st_mode & 0o777 == 0o600)
            second.stop()
            second.stop()
            #expect(throws: OperationError(ESHUTDOWN, "add domain 1")) { try second.addDomain(1) }
            second.removeDomain(1)
            let file = fopen(path, "w")
            fclose(file)
            #expect(throws: OperationError(EADDRINUSE, "listen at \(path)")) {
                try XenStoreServer(directory: daemon.directory)
            }
            unlink(path)
        }

        @Test func aPathThatCannotBeIsRefused() {
            #expect(throws: OperationError.self) { try XenStoreServer(directory: "/none/such") }
            #expect(throws: OperationError.self) {
                try XenStoreServer(directory: "/tmp/" + String(repeating: "x", count: 100))
            }
        }

        @Test func manyServersComeAndGo() throws {
            for _ in 0..<50 {
                let daemon = try TestDaemon()
                try daemon.server.addDomain(1)
                let socket = try daemon.connect(as: 1)
                socket.send(2, "name|")
                #expect(socket.receiveMessage().map { text($0.payload) } == "Domain-1")
            }
        }
    }
}
