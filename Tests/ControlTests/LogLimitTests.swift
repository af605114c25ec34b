// SPDX-License-Identifier: BSD-2-Clause
// How much is logged about a disk, and that nobody waits for who reads it.
import Base
import CLinux
import Glibc
import Testing

@testable import Support

@Suite struct LogLimitTests {
    private static let second: UInt64 = 1_000_000_000

    @Test("a place in the code has ten lines at once, and one a second") func ofAPlace() {
        let limit = LogLimit(now: 0)
        let place = LogLimit.Place("a.swift", 1)
        let passed = (0..<1000).count { _ in limit.admit(.error, place, now: 0) != nil }
        #expect(passed == 10)
        #expect(limit.admit(.error, place, now: Self.second) == 990)
        #expect(limit.admit(.error, place, now: Self.second) == nil)
    }

    @Test("noise of one place does not hide another one") func ofAnotherPlace() {
        let limit = LogLimit(now: 0)
        for time in 0..<600 as Range<UInt64> {
            for _ in 0..<100 { _ = limit.admit(.warning, LogLimit.Place("a.swift", 1), now: time * Self.second / 10) }
        }
        #expect(limit.admit(.info, LogLimit.Place("a.swift", 2), now: 60 * Self.second) == 0)
    }

    @Test("all levels and all places together have a limit") func ofAllPlaces() {
        let limit = LogLimit(now: 0)
        var passed = 0
        for place in 0..<500 as Range<UInt> {
            for level in [LogLevel.error, .warning, .info] {
                for _ in 0..<3 where limit.admit(level, LogLimit.Place("a.swift", place), now: 0) != nil { passed += 1 }
            }
        }
        #expect(passed == Int(LogLimit.allBurst))
        let details = (0..<100_000).count { index in
            limit.admit(.debug, LogLimit.Place("b.swift", UInt(index % 100)), now: 0) != nil
        }
        #expect(details > Int(LogLimit.allBurst) && details <= 3000)
    }

    @Test("what was dropped is told once, also where no further line comes") func dropped() {
        let limit = LogLimit(now: 0)
        let place = LogLimit.Place("a.swift", 1)
        #expect(limit.deadline == .max)
        for _ in 0..<110 { _ = limit.admit(.error, place, now: 0) }
        #expect(limit.deadline == 10 * Self.second)
        #expect(limit.takeDropped(now: Self.second) == nil)
        #expect(limit.takeDropped(now: 10 * Self.second) == 100)
        #expect(limit.takeDropped(now: 30 * Self.second) == nil)
        #expect(limit.admit(.error, place, now: 30 * Self.second) == 0)
        for _ in 0..<20 { _ = limit.admit(.error, place, now: 30 * Self.second) }
        #expect(limit.takeDropped(now: 31 * Self.second, isLast: true) == 11)
    }

    @Test("a log of a disk goes through its limit") func log() throws {
        var ends: [Int32] = [-1, -1]
        #expect(pipe2(&ends, O_CLOEXEC) == 0)
        let (reader, writer) = (Descriptor(owning: ends[0]), Descriptor(owning: ends[1]))
        let log = Log(name: "xbb", level: .info, sink: LogSink(descriptor: writer.raw, journal: nil))
            .about(domain: 1, device: 51712, limit: LogLimit())
        for index in 0..<500 { log.error("bad \(index)") }
        log.info("good")
        log.tellDropped(isLast: true)
        var bytes: [UInt8] = []
        if case .bytes(let written) = reader.readAvailable() { bytes = written }
        let lines = String(decoding: bytes, as: UTF8.self).split(separator: "\n")
        #expect(lines.count == 12, "\(lines)")
        #expect(lines.contains("xbb: good"))
        #expect(lines.last?.contains("490 more lines were not logged") == true)
    }

    /// Pipes, and sockets like the journal's.
    @Test("a reader that stalls stops nobody", arguments: [false, true]) func stall(_ isSocket: Bool) throws {
        var ends: [Int32] = [-1, -1]
        if isSocket {
            #expect(socketpair(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0, &ends) == 0)
        } else {
            #expect(pipe2(&ends, O_CLOEXEC) == 0)
        }
        let (reader, writer) = (Descriptor(owning: ends[0]), Descriptor(owning: ends[1]))
        _ = clinux_fcntl_int(reader.raw, F_SETFL, O_NONBLOCK)
        let log = Log(name: "xbb", level: .info, sink: LogSink(descriptor: writer.raw, journal: nil))
        // Returns at all: nobody reads.
        for index in 0..<20_000 { log.info("line \(index)") }
        // The flags of the descriptor, which other processes may share, are as they were.
        #expect(clinux_fcntl_int(writer.raw, F_GETFL, 0) & O_NONBLOCK == 0)
        func read() -> [Substring] {
            var all: [UInt8] = []
            while case .bytes(let bytes) = reader.readAvailable(), !bytes.isEmpty { all += bytes }
            return String(decoding: all, as: UTF8.self).split(separator: "\n")
        }
        let written = read()
        #expect(written.count > 100 && written.count < 20_000)
        for (index, line) in written.enumerated() { #expect(line == "xbb: line \(index)") }
        log.info("later")
        #expect(
            read() == ["xbb: \(20_000 - written.count) lines were lost: nobody read the log for a while", "xbb: later"])
    }
}
