// SPDX-License-Identifier: BSD-2-Clause
// What stands in /run/xbb: xbbd's lock and socket, and a lock, a socket and a journal for each VBD.
import Base
import CLinux
import Glibc

/// The directory and the names in it.
struct RunDirectory {
    let path: String

    /// Makes the directory (0755) with its parents. Throws what is wrong with it or its name.
    init(_ path: String) throws(ControlError) {
        self.path = path
        // The longest name of a socket must fit into sockaddr_un.
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
    /// Held by the one xbbd that serves this directory.
    var lock: String { path + "/xbbd.lock" }

    /// The root directory of confined workers: nobody can make a file there.
    var emptyDirectory: String { path + "/empty" }

    /// The control socket of a worker.
    func workerSocket(_ address: VBDAddress) -> String { "\(path)/vbd-\(address.fileName).sock" }

    /// What a worker writes down of requests in flight, for the one after it.
    func workerJournal(_ address: VBDAddress) -> String { "\(path)/vbd-\(address.fileName).journal" }

    /// The lock of a worker.
    func workerLock(_ address: VBDAddress) -> String { "\(path)/vbd-\(address.fileName).lock" }
}

/// An exclusive flock(2) on a file that is made where there is none.
///
/// The lock belongs to the open file, not to the process: a child that inherits the descriptor goes on holding it, so
/// that a worker holds it until its last process has ended, or until it unlocks it because it has handed over.
struct FileLock {
    /// The locked file, close-on-exec.
    let file: Descriptor

    /// What an attempt to lock gave.
    enum Attempt {
        /// The lock is ours.
        case taken(FileLock)
        /// Somebody else has it, and wrote this into the file.
        case held(note: String)
    }

    /// Tries to lock `path` without waiting.
    static func attempt(_ path: String) throws(OperationError) -> Attempt {
        let raw = unsafe clinux_open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0o600)
        let file = try Descriptor(raw, "open \(path)")
        if flock(raw, LOCK_EX | LOCK_NB) == 0 { return .taken(FileLock(file: file)) }
        guard errno == EWOULDBLOCK else { throw OperationError(errno, "lock \(path)") }
        guard case .bytes(let note) = file.readAvailable(limit: 128) else { return .held(note: "") }
        return .held(note: String(decoding: note, as: UTF8.self))
    }

    /// True while somebody holds the lock of `path`. No file is made.
    static func isHeld(_ path: String) -> Bool {
        let raw = unsafe clinux_open(path, O_RDWR | O_CLOEXEC | O_NOFOLLOW, 0)
        guard raw >= 0 else { return false }
        let file = Descriptor(owning: raw)
        return flock(file.raw, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK
    }

    /// Writes into the file who holds the lock.
    func write(note: String) {
        _ = ftruncate(file.raw, 0)
        let bytes = [UInt8](note.utf8)
        _ = unsafe bytes.withUnsafeBytes { unsafe pwrite(file.raw, $0.baseAddress, $0.count, 0) }
    }
}
