// SPDX-License-Identifier: BSD-2-Clause
// From one process that serves a disk to the next: standing by, the lock, and how the one before ended.
//
// A process that stands by does beforehand what needs no right to the disk: programs, libraries, connections. Then it says
// so on its channel and waits for a word there, and after that for the disk's lock. docs/recovery.md explains the order.
import BlockQueue
import Base
import CLinux
import Glibc
import Support

/// What a process that stands by is told when its turn comes.
struct StartCommand: Equatable {
    /// What it writes into the file of the lock where an xbbd of an earlier version lets it: its own name.
    let note: String
    /// How the process before it ended; nil: it lives, and the lock will tell.
    let predecessor: Predecessor?

    /// Reads "go 4711 123456 handed-over", or "go 4711 123456" where the process before still serves.
    init?(_ line: String) {
        let parts = line.split(separator: " ", maxSplits: 3).map(String.init)
        guard parts.count >= 3, parts[0] == "go", UInt64(parts[1]) != nil, UInt64(parts[2]) != nil else { return nil }
        note = "\(parts[1]) \(parts[2])\n"
        if parts.count == 3 {
            predecessor = nil
        } else {
            guard let end = Predecessor(parts[3]) else { return nil }
            predecessor = end
        }
    }
}

/// The right to serve a disk. Control thread only.
final class Succession {
    /// Lock marking this process as the disk's owner; nil if ownership is not tracked.
    private let lock: DiskLock?
    /// How the process ended that served the disk before.
    private(set) var predecessor: Predecessor
    private let log: Log

    /// Takes over the descriptor of the lock that this process was started with, nil for none.
    init(lock: Int32?, predecessor: Predecessor, log: Log) throws(OperationError) {
        self.lock = try lock.map { (descriptor) throws(OperationError) in try DiskLock(owning: descriptor) }
        self.predecessor = predecessor
        self.log = log
    }

    /// Prepares, says that it is ready, and returns true with the lock held when it is this process's turn; false where it
    /// is not needed any more. `prepare` is false where there is no disk to serve; `handOver` is asked, with the lock
    /// held, how the process that served when this one was ready has handed over; nil: it has not.
    func standBy(
        _ channel: Int32, signals: Int32, prepare: () throws(OperationError) -> Bool,
        handOver: (_ process: String) -> Predecessor?
    ) throws(OperationError) -> Bool {
        guard let lock else { throw OperationError(EINVAL, "stand by without a lock") }
        defer { close(channel) }
        // What ps(1) shows: whoever counts workers does not mean this one yet. The call copies the literal.
        unsafe pthread_setname_np(pthread_self(), "xbb-standby")
        guard try prepare() else { return false }
        KillPoint.reach(.prepared)
        // Read now: when the lock is free, xbbd may have written down this process already.
        let holder = lock.holder
        // The literal has these six bytes.
        guard unsafe Glibc.write(channel, "ready\n", 6) == 6 else { return false }
        guard let command = try awaitCommand(channel, signals) else {
            log.info("stood by and was not needed")
            return false
        }
        KillPoint.reach(.called)
        let saidSo = try lock.acquire()
        let end = saidSo ? Predecessor.handedOver : holder.flatMap(handOver)
        let found = end ?? .killed("before it had handed over")
        KillPoint.reach(.inherited)
        lock.write(note: command.note)
        // The call copies the literal.
        unsafe pthread_setname_np(pthread_self(), "xbb-vbd")
        // Who ended well may nevertheless have left something: its own note says so.
        predecessor = command.predecessor ?? found
        if found == .left { predecessor = .left }
        return true
    }

    /// nil where the other end is gone, or this process was told to end.
    private func awaitCommand(_ channel: Int32, _ signals: Int32) throws(OperationError) -> StartCommand? {
        var line: [UInt8] = []
        while true {
            var entries = [channel, signals].map { pollfd(fd: $0, events: Int16(POLLIN), revents: 0) }
            // The kernel writes to the two elements, which outlive the call.
            if unsafe poll(&entries, 2, -1) < 0 {
                if errno == EINTR { continue }
                throw OperationError(errno, "wait for the word to begin")
            }
            if entries[0].revents == 0 { return nil }
            var byte: UInt8 = 0
            // One byte, of a variable that outlives the call.
            let count = unsafe Glibc.read(channel, &byte, 1)
            if count < 0 && errno == EINTR { continue }
            if count <= 0 || line.count > 256 { return nil }
            if byte == UInt8(ascii: "\n") { break }
            line.append(byte)
        }
        guard let command = StartCommand(String(decoding: line, as: UTF8.self)) else {
            throw OperationError(EPROTO, "understand the word to begin")
        }
        return command
    }

    /// This process, as the one that serves; nil where xbbd has not written it down.
    var holder: String? { lock?.holder }

    /// Lets the next process begin: the last thing that this one does with the disk, whose storage is closed.
    func handOver() { lock?.handOver() }
}
