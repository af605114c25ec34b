// SPDX-License-Identifier: BSD-2-Clause
// A process that is prepared to serve a VBD while the worker still serves it.
import Base
import CLinux
import Glibc

/// A worker that stands by, and the channel on which it says that it is ready and is told when its turn comes.
final class Standby {
    /// How long one may take until it is ready, in ns.
    static let patience: UInt64 = 15 * RestartPolicy.second

    let process: WorkerProcess
    /// When it must be ready, in ns; nil once it is.
    private(set) var deadline: UInt64?
    /// It was told that its turn has come.
    private(set) var isCalled = false
    /// nil when nothing is awaited from it any more.
    private(set) var channel: Descriptor?
    private var input = LineBuffer(limit: 64)
    private let identity: ProcessIdentity?

    /// Starts a worker with the lock's file as its descriptor 3 and the channel as 4.
    init(_ arguments: [String], lockPath: String) throws(OperationError) {
        let raw = unsafe clinux_open(lockPath, O_RDWR | O_CLOEXEC | O_NOFOLLOW, 0)
        let lock = try Descriptor(raw, "open \(lockPath)")
        var ends: [Int32] = [-1, -1]
        let type = Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue | SOCK_NONBLOCK.rawValue)
        if unsafe socketpair(AF_UNIX, type, 0, &ends) != 0 { throw OperationError(errno, "make a pair of sockets") }
        channel = Descriptor(owning: ends[0])
        let theirs = Descriptor(owning: ends[1])
        _ = clinux_fcntl_int(theirs.raw, F_SETFL, 0)
        process = try WorkerProcess.spawn(arguments, kept: lock, second: theirs)
        identity = ProcessIdentity(running: process.process)
        deadline = clinux_monotonic_ns() &+ Self.patience
    }

    /// Reads what it said; true when it became ready by that.
    func takeWord(_ loop: EventLoop) -> Bool {
        guard let channel else { return false }
        switch channel.readAvailable(limit: 64) {
        case .wouldBlock: return false
        case .ended:
            // Its end is told by its process's descriptor.
            closeChannel(loop)
            return false
        case .bytes(let bytes): input.append(bytes)
        }
        guard let line = input.next(), line.elementsEqual("ready".utf8), deadline != nil else { return false }
        deadline = nil
        return true
    }

    /// Tells it that its turn has come, after a worker that ended so; nil: after one that still serves. False where it is gone.
    func call(after end: WorkerExit?, _ loop: EventLoop) -> Bool {
        guard let channel, deadline == nil, let identity else { return false }
        let word = "go \(identity.process) \(identity.startTicks)\(end.map { " \($0.asPredecessor)" } ?? "")\n"
        let bytes = [UInt8](word.utf8)
        guard channel.sendAvailable(bytes[...]) == bytes.count else { return false }
        isCalled = true
        closeChannel(loop)
        return true
    }

    /// Nothing is read any more.
    func closeChannel(_ loop: EventLoop) {
        if let channel { loop.remove(channel.raw) }
        channel = nil
    }
}
