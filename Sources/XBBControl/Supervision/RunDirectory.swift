// SPDX-License-Identifier: BSD-2-Clause
// The files in /run/xbb: xbbd's lock and socket, and a lock, a socket and a journal for each VBD.
import Base
import CLinux
import Glibc

/// The run directory and the names of its files.
struct RunDirectory {
    let path: String

    /// Makes the directory (0755) and its parents. Throws if the directory or its name is not usable.
    init(_ path: String) throws(ControlError) {
        self.path = path
        // The longest socket name must fit into sockaddr_un.
        let longest = path.utf8.count + "/vbd--32751-2147483647.sock".utf8.count + 32
        guard longest < 108, path.utf8.first == UInt8(ascii: "/") else {
            throw ControlError("run directory '\(path)': expected an absolute path of at most 48 bytes")
        }
        var made = ""
        for name in path.split(separator: "/") {
            made += "/" + name
            if unsafe mkdir(made, 0o755) != 0 && errno != EEXIST {
                throw ControlError("make run directory \(made): \(errnoText(errno))")
            }
        }
        if unsafe mkdir(emptyDirectory, 0o555) != 0 && errno != EEXIST {
            throw ControlError("make \(emptyDirectory): \(errnoText(errno))")
        }
    }

    /// xbbd's own socket.
    var socket: String { path + "/xbbd.sock" }
    /// The lock of the one xbbd that serves this directory.
    var lock: String { path + "/xbbd.lock" }
    /// The history of events.
    var events: String { path + "/events" }
    /// The lock of a worker of the xbbd whose socket is at `socket`.
    static func workerLock(_ address: VBDAddress, beside socket: String) -> String {
        InstallPaths.folder(of: socket) + "/vbd-\(address.fileName).lock"
    }

    /// The root directory of confined workers: nobody can create a file in it.
    var emptyDirectory: String { path + "/empty" }

    /// The control socket of a worker.
    func workerSocket(_ address: VBDAddress) -> String { "\(path)/vbd-\(address.fileName).sock" }

    /// The worker's record of requests in flight, for its successor.
    func workerJournal(_ address: VBDAddress) -> String { "\(path)/vbd-\(address.fileName).journal" }

    /// What xbbd has stored of a disk's open files with the service manager.
    func workerStorage(_ address: VBDAddress) -> String { "\(path)/vbd-\(address.fileName).storage" }

    /// What a worker counted and xbbctl changed, for its successor. Workers find the name by that of the journal.
    func workerStatistics(_ address: VBDAddress) -> String { "\(path)/vbd-\(address.fileName).stats" }

    /// The last lines of a worker's log. Workers find the name by that of the journal.
    func workerLog(_ address: VBDAddress) -> String { "\(path)/vbd-\(address.fileName).log" }

    /// The limits that a disk's control group was given.
    func workerGroup(_ address: VBDAddress) -> String { "\(path)/vbd-\(address.fileName).group" }

    /// The lock of a worker.
    func workerLock(_ address: VBDAddress) -> String { "\(path)/vbd-\(address.fileName).lock" }

    /// All files of a disk, the lock last.
    func files(of address: VBDAddress) -> [String] {
        [
            workerSocket(address), workerJournal(address), workerStatistics(address), workerLog(address),
            workerStorage(address), workerGroup(address), workerLock(address),
        ]
    }

    /// The disks that have a file here.
    var disks: Set<VBDAddress> {
        Set(
            DirectoryListing.names(in: path).compactMap { name in
                guard name.hasPrefix("vbd-"), let dot = name.lastIndex(of: "."),
                    let address = VBDAddress(fileName: name[..<dot].dropFirst(4)),
                    files(of: address).contains("\(path)/\(name)")
                else { return nil }
                return address
            })
    }
}

/// An exclusive flock(2) on a file, which is created if it does not exist.
///
/// The lock belongs to the open file, not to the process: a child that inherits the descriptor also holds it. So a
/// worker's lock is held until its last process has ended, or until the worker unlocks it because it has handed over.
struct FileLock {
    /// The locked file, read-only and close-on-exec. A worker gets this one, and must not be able to write what xbbd believes.
    let file: Descriptor
    /// What stood in the file when it was locked.
    let note: String
    let path: String

    /// The result of an attempt to lock.
    enum Attempt {
        /// The lock is ours.
        case taken(FileLock)
        /// Another process holds it, and this stands in the file.
        case held(note: String)
    }

    /// What a worker of an earlier version writes into the file that gave its disk up for a successor.
    static let handedOver = "handed over\n"

    /// What stands in the file at `path`; "" if it cannot be read.
    static func note(_ path: String) -> String {
        let raw = unsafe clinux_open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0)
        guard raw >= 0, case .bytes(let note) = Descriptor(owning: raw).readAvailable(limit: 512) else { return "" }
        return String(decoding: note, as: UTF8.self)
    }

    /// Tries to lock `path` without waiting. Throws if the file cannot be opened.
    static func attempt(_ path: String) throws(OperationError) -> Attempt {
        let raw = unsafe clinux_open(path, O_RDONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0o600)
        let file = try Descriptor(raw, "open \(path)")
        let isTaken = flock(raw, LOCK_EX | LOCK_NB) == 0
        if !isTaken, errno != EWOULDBLOCK { throw OperationError(errno, "lock \(path)") }
        var note = ""
        if case .bytes(let bytes) = file.readAvailable(limit: 512) { note = String(decoding: bytes, as: UTF8.self) }
        return isTaken ? .taken(FileLock(file: file, note: note, path: path)) : .held(note: note)
    }

    /// The same for half a second: a process that one which died was about to start has its descriptors until it begins.
    static func attemptPatiently(_ path: String) throws(OperationError) -> Attempt {
        for _ in 0..<50 {
            if case .taken(let lock) = try attempt(path) { return .taken(lock) }
            usleep(10_000)
        }
        return try attempt(path)
    }

    /// True while any process holds the lock of `path`. Does not create the file.
    static func isHeld(_ path: String) -> Bool {
        let raw = unsafe clinux_open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW, 0)
        guard raw >= 0 else { return false }
        let file = Descriptor(owning: raw)
        return flock(file.raw, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK
    }

    /// Writes into the file who holds the lock, for whoever looks later.
    func write(note: String) throws(OperationError) { try Self.write(note: note, to: path) }

    /// Writes into the file of a lock, whose descriptor is for reading. A reader may see a longer note's rest behind a shorter
    /// one.
    static func write(note: String, to path: String) throws(OperationError) {
        let file = try Descriptor(
            unsafe clinux_open(path, O_WRONLY | O_CLOEXEC | O_NOFOLLOW, 0), "open \(path) to write who serves")
        let bytes = Array(note.utf8)
        let count = unsafe bytes.withUnsafeBytes { unsafe pwrite(file.raw, $0.baseAddress, $0.count, 0) }
        if count != bytes.count { throw OperationError(count < 0 ? errno : ENOSPC, "write who serves into \(path)") }
        _ = ftruncate(file.raw, off_t(bytes.count))
    }
}
