// SPDX-License-Identifier: BSD-2-Clause
// The log of requests that outlives a process, and what its successor waits for. The files of the plugin are compiled into this test: a
// plugin shows its entry point alone.
import CGnuTLS
import Foundation
import Glibc
import Testing

@testable import PluginKit

/// A connection of a process that died, and its server's end of it.
///
/// `@unchecked Sendable`: the successor's thread uses the log, and the rest under the lock.
private final class DeadConnection: @unchecked Sendable {
    let log: FlightLog
    let before: Generation
    let server: Int32
    private let done = NSLock()
    private var isDone = false

    init() throws {
        log = try FlightLog()
        var ends: [Int32] = [0, 0]
        try #require(socketpair(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0, &ends) == 0)
        before = Generation(log, [(0, ends[0])], base: 0)
        server = ends[1]
    }

    deinit { close(server) }

    /// Notes a write as sent.
    func write(_ cookie: UInt64, slot: Int) {
        log.part(0).offer(slot, cookie: cookie)
        log.part(0).sent(slot)
    }

    /// The server's answer to a request without data.
    static func answer(_ cookie: UInt64) -> [UInt8] {
        [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0] + withUnsafeBytes(of: cookie.bigEndian) { Array($0) }
    }

    func send(_ bytes: [UInt8]) { #expect(Glibc.send(server, bytes, bytes.count, 0) == bytes.count) }

    /// Waits as a successor does, on a thread of its own.
    func begin(timeout: UInt64 = 0) {
        let before = before
        Thread { [self] in
            let fence = Fence(host: HostDisk(disk: nil), server: "nbd://test/", timeout: timeout) {
                socket, milliseconds in
                var entry = pollfd(fd: socket ?? -1, events: Int16(POLLIN), revents: 0)
                return poll(&entry, 1, Int32(milliseconds)) > 0
            }
            fence.wait(for: before)
            done.withLock { isDone = true }
        }.start()
    }

    var isOver: Bool { done.withLock { isDone } }

    func awaitEnd() throws {
        for _ in 0..<3000 where !isOver { usleep(10_000) }
        try #require(isOver, "it waits for ever")
        #expect(log.isSettled && log.isClear)
    }
}

@Suite struct FlightLogTests {
    @Test func itKnowsWhatIsUnderWay() throws {
        let log = try FlightLog()
        let part = log.part(3)
        #expect(log.isClear)
        part.offer(5, cookie: 77)
        #expect(part.outstanding.cookies == [77] && !part.outstanding.isSentWhole)
        part.sent(5)
        #expect(part.outstanding.cookies == [77] && part.outstanding.isSentWhole)
        #expect(log.part(2).outstanding.cookies.isEmpty && !log.isClear)
        // What was cut off is nothing that a server does.
        part.cut(5)
        #expect(part.outstanding.cookies.isEmpty)
        part.offer(6, cookie: 78)
        part.sent(6)
        part.end(6)
        #expect(log.isClear)
    }

    /// A process that dies between the two words of a note has left one that counts as not sent, or none.
    @Test func aTornNoteIsNoRequestThatWasSent() throws {
        let log = try FlightLog()
        let part = log.part(0)
        part.offer(9, cookie: 1)
        part.sent(9)
        part.end(9)
        // The cookie is there, the state is that of before.
        let place = 4096 + 9 * 16
        var word: UInt64 = 2
        #expect(pwrite(log.file, &word, 8, off_t(place)) == 8)
        #expect(part.outstanding.cookies == [2] && !part.outstanding.isSentWhole)
    }

    @Test func theNextProcessReadsIt() throws {
        let log = try FlightLog()
        log.part(7).offer(255, cookie: 1 << 63)
        log.note(failure: ETIMEDOUT, of: 7)
        log.noteEncryption(of: 7)
        log.isBehindUnknown = true
        let next = try #require(try FlightLog.inherited(dup(log.file)))
        #expect(next.part(7).outstanding.cookies == [1 << 63] && !next.isClear)
        #expect(next.failure(of: 7) == ETIMEDOUT && next.failure(of: 6) == 0)
        #expect(next.isEncrypted(7) && !next.isEncrypted(0) && next.isBehindUnknown)
        next.isSettled = true
        #expect(log.isSettled && log.isClear)
    }

    /// Memory that its owner could take away, or that is another's, is not mapped.
    @Test func foreignMemoryIsRefused() throws {
        let log = try FlightLog()
        var status = stat()
        #expect(fstat(log.file, &status) == 0)
        for (size, isSealed, mark) in [
            (status.st_size, false, true), (status.st_size - 1, true, true), (status.st_size, true, false),
        ] {
            let file = cgnutls_memory("foreign")
            #expect(ftruncate(file, size) == 0)
            if mark {
                var bytes = [UInt8](repeating: 0, count: 8)
                #expect(pread(log.file, &bytes, 8, 0) == 8 && pwrite(file, bytes, 8, 0) == 8)
            }
            if isSealed { #expect(cgnutls_seal(file) == 0) }
            let other = dup(file)
            #expect(throws: PluginError.self) { try FlightLog.inherited(file) }
            // One of another version says at the same place that nothing is left to wait for.
            var settled: UInt64 = 1
            #expect(pwrite(other, &settled, 8, 8) == 8)
            if !mark || !isSealed { #expect(try FlightLog.inherited(other) == nil) }
        }
        // Nobody changes the size of one that is a log.
        #expect(ftruncate(log.file, 0) != 0)
    }
}

@Suite struct FenceTests {
    @Test func eachWriteIsWaitedFor() throws {
        let dead = try DeadConnection()
        dead.write(11, slot: 0)
        dead.write(12, slot: 1)
        dead.begin()
        dead.send(DeadConnection.answer(12))
        #expect(!dead.isOver)
        // One that is cut into pieces.
        dead.send(Array(DeadConnection.answer(11).prefix(9)))
        #expect(!dead.isOver)
        dead.send(Array(DeadConnection.answer(11).dropFirst(9)))
        try dead.awaitEnd()
    }

    /// They had arrived, and nobody had read them.
    @Test func answersThatHadArrivedCount() throws {
        let dead = try DeadConnection()
        dead.write(11, slot: 0)
        let answer = DeadConnection.answer(11)
        dead.log.part(0).buffer[1000..<1016].copyBytes(from: answer)
        dead.begin()
        try dead.awaitEnd()
    }

    @Test func answersOfOthersDoNotCount() throws {
        let dead = try DeadConnection()
        dead.write(11, slot: 0)
        dead.begin()
        dead.send(DeadConnection.answer(12) + [UInt8](repeating: 0x67, count: 100_000))
        #expect(!dead.isOver)
        dead.send(DeadConnection.answer(11))
        try dead.awaitEnd()
    }

    @Test(arguments: [true, false]) func aServerThatEndsDoesNothingMore(_ isKilled: Bool) throws {
        let dead = try DeadConnection()
        dead.write(11, slot: 0)
        dead.begin()
        #expect(!dead.isOver)
        // With something unread: the other end gets an error, as of a server that was killed.
        if isKilled { #expect(Glibc.send(dead.before.sockets[0].socket, "x", 1, 0) == 1) }
        shutdown(dead.server, Int32(SHUT_RDWR))
        try dead.awaitEnd()
    }

    /// What was not sent whole is never answered: the server is told that nothing follows, and closes.
    @Test func aServerIsToldWhereARequestWasCutOff() throws {
        let dead = try DeadConnection()
        dead.log.part(0).offer(0, cookie: 11)
        dead.begin()
        var byte: UInt8 = 0
        #expect(recv(dead.server, &byte, 1, 0) == 0, "nothing follows")
        #expect(!dead.isOver)
        shutdown(dead.server, Int32(SHUT_RDWR))
        try dead.awaitEnd()
    }

    /// The network gave the connection up: time is what the administrator says, and nothing else.
    @Test func whatNobodyKnowsIsNotGuessed() throws {
        let dead = try DeadConnection()
        dead.write(11, slot: 0)
        dead.log.note(failure: ETIMEDOUT, of: 0)
        dead.begin()
        shutdown(dead.server, Int32(SHUT_RDWR))
        let other = try DeadConnection()
        other.write(11, slot: 0)
        other.log.note(failure: ETIMEDOUT, of: 0)
        other.begin(timeout: 1)
        try other.awaitEnd()
        #expect(!dead.isOver)
    }
}
