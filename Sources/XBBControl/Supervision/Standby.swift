// SPDX-License-Identifier: BSD-2-Clause
// A standby: a process that is prepared to serve a VBD while the worker still serves it.
import Base
import CLinux
import Glibc
import StorageKeeping

/// A standby worker, and the channel on which it reports that it is ready and is told to take over.
final class Standby {
    /// How long one may take until it is ready, in ns.
    static let timeLimit: UInt64 = 15 * RestartPolicy.second

    let process: WorkerProcess
    /// When it must be ready, in ns of CLOCK_MONOTONIC; nil once it is.
    private(set) var deadline: UInt64?
    /// It was told to take over.
    private(set) var isCalled = false
    /// The storage of the worker before that it was given.
    private var given: KeptStorage?
    /// nil when nothing more is expected from it.
    private(set) var channel: Descriptor?
    /// Where it gets the storage of the worker before, and leaves its own; nil for a program of an earlier version.
    let storage: StorageChannel?
    private var input = LineBuffer(limit: 64)
    private let lockPath: String

    /// Starts a standby with the lock's file as descriptor 3, the channel as descriptor 4 and, if it knows what to do with
    /// it, the one for storage as descriptor 5. `isPromised`: it will be given the storage of the worker before.
    init(
        _ arguments: [String], lockPath: String, keepsStorage: Bool, isPromised: Bool
    ) throws(OperationError) {
        self.lockPath = lockPath
        // Nothing that xbbd believes can be written by a worker: it gets the lock to wait for, and no more.
        let raw = unsafe clinux_open(lockPath, O_RDONLY | O_CLOEXEC | O_NOFOLLOW, 0)
        let lock = try Descriptor(raw, "open \(lockPath)")
        let (ours, theirs) = try Descriptor.socketPair(Int32(SOCK_STREAM.rawValue | SOCK_NONBLOCK.rawValue))
        channel = ours
        _ = clinux_fcntl_int(theirs.raw, F_SETFL, 0)
        let pair = keepsStorage ? try StorageChannel.pair() : nil
        if isPromised { pair?.own.send(.promised) }
        storage = pair?.own
        process = try WorkerProcess.spawn(arguments, kept: lock, second: theirs, third: pair?.other)
        deadline = clinux_monotonic_ns() &+ Self.timeLimit
    }

    /// Reads from the channel. Returns true if the standby has just become ready.
    func receiveReady(_ loop: EventLoop) -> Bool {
        guard let channel else { return false }
        switch channel.readAvailable(limit: 64) {
        case .wouldBlock: return false
        case .ended:
            // The process's pidfd reports its end.
            closeChannel(loop)
            return false
        case .bytes(let bytes): input.append(bytes)
        }
        guard let line = input.next(), line.elementsEqual("ready".utf8), deadline != nil else { return false }
        deadline = nil
        return true
    }

    /// Tells it to take over: from a worker that ended as `end` says, or from `serving`, which still serves if `end` is nil,
    /// with the storage that was kept. Returns false if the standby is not ready or gone. Throws if it cannot be written
    /// down who is to serve.
    func call(
        after end: WorkerExit?, from serving: ProcessIdentity?, with kept: KeptStorage?, _ loop: EventLoop
    ) throws(OperationError) -> Bool {
        guard let channel, deadline == nil, let identity = process.identity else { return false }
        // Before the word: from here on it is known where to look for the process that serves.
        try FileLock.write(
            end == nil ? LockNote(holder: serving, next: identity) : LockNote(holder: identity), to: lockPath)
        if let kept, let storage {
            guard storage.send(.keep(kept)) else { return false }
            given = kept
        }
        let word = "go \(identity.process) \(identity.startTicks)\(end.map { " \($0.asPredecessor)" } ?? "")\n"
        let bytes = [UInt8](word.utf8)
        guard channel.sendAvailable(bytes[...]) == bytes.count else { return false }
        isCalled = true
        closeChannel(loop)
        return true
    }

    /// Whether one that was called can serve the disk, of which these files are kept now. It was called while its predecessor
    /// served: had that opened its storage after that, or other storage, it would find the images locked by what is kept.
    func canServe(with kept: KeptStorage?) -> Bool {
        guard let kept, storage != nil else { return true }
        return given?.hasFiles(of: kept) == true
    }

    /// Stops reading from the channel.
    func closeChannel(_ loop: EventLoop) {
        if let channel { loop.remove(channel.raw) }
        channel = nil
    }
}

extension KeptStorage {
    /// The very same open files, not only the same images.
    fileprivate func hasFiles(of other: KeptStorage) -> Bool {
        images.elementsEqual(other.images) { $0.file === $1.file }
            && handles.elementsEqual(other.handles) { $0.file === $1.file }
    }
}
