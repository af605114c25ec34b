// SPDX-License-Identifier: BSD-2-Clause
// What stands in the file of a lock, and whether it is true: xbbd alone writes it, and believes of it only what the kernel
// confirms.
import Base
import CLinux
import Glibc

/// Who has a disk's lock, and who was called to have it next.
struct LockNote: Equatable {
    /// The process that xbbd started with the lock, or called when the one before had ended.
    var holder: ProcessIdentity?
    /// The process that was called while ``holder`` still served.
    var next: ProcessIdentity?

    private static let nextWord = "next "
    /// Bytes of every note. One write replaces all of the note before, so that nobody reads parts of both.
    static let size = 96

    /// Nobody is known.
    init(holder: ProcessIdentity? = nil, next: ProcessIdentity? = nil) {
        self.holder = holder
        self.next = next
    }

    /// Reads ``bytes``, or the note of an earlier version. What is neither names nobody.
    init(reading bytes: some Sequence<UInt8>) {
        for line in String(decoding: Array(bytes), as: UTF8.self).split(separator: "\n") {
            if line.hasPrefix(Self.nextWord) {
                next = next ?? ProcessIdentity(note: String(line.dropFirst(Self.nextWord.count)))
            } else {
                holder = holder ?? ProcessIdentity(note: String(line))
            }
        }
    }

    /// Reads the same as text.
    init(reading text: String) { self.init(reading: Array(text.utf8)) }

    /// "4711 123456" and, behind "next", the other one; filled up with line feeds, which earlier versions pass over.
    var bytes: [UInt8] {
        let text = (holder?.note ?? "") + (next.map { Self.nextWord + $0.note } ?? "")
        let bytes = Array(text.utf8.prefix(Self.size))
        return bytes + Array(repeating: UInt8(ascii: "\n"), count: Self.size - bytes.count)
    }
}

extension FileLock {
    /// Writes into the file who holds the lock, for an xbbd that starts.
    func write(_ note: LockNote) throws(OperationError) { try Self.write(note, to: path) }

    /// Writes into the file of a lock.
    static func write(_ note: LockNote, to path: String) throws(OperationError) {
        try write(note: String(decoding: note.bytes, as: UTF8.self), to: path)
    }
}

/// What the kernel says of a lock's file and the processes that have it open.
struct LockFileFacts {
    /// The file's number in its file system.
    private let number: String
    /// The file as locks are listed: device and number, "00:1a:4711".
    private let name: String

    /// Looks at an open file by means of a lock of another kind (F_OFD_SETLK), which goes with the descriptor. nil where the
    /// kernel does not tell.
    init?(_ path: String) {
        let raw = unsafe clinux_open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW, 0)
        guard raw >= 0 else { return nil }
        let file = Descriptor(owning: raw)
        var lock = Glibc.flock()
        lock.l_type = Int16(F_RDLCK)
        lock.l_whence = Int16(SEEK_SET)
        // The kernel reads the structure, which is ours.
        guard unsafe clinux_fcntl_pointer(file.raw, clinux_F_OFD_SETLK, &lock) == 0 else { return nil }
        let lines = Self.lines(getpid(), "\(file.raw)")
        guard let name = lines.lazy.compactMap({ Self.lockedFile($0, kind: "OFDLCK") }).first,
            let number = name.split(separator: ":").last
        else { return nil }
        self.name = name
        self.number = String(number)
    }

    /// True if an open file of the process has the flock(2) on this one.
    func isLocked(by process: Int32) -> Bool {
        contains(process) { Self.lockedFile($0, kind: "FLOCK") == name }
    }

    /// True if the process has the file open. Linux before 5.14 does not tell; then it has not.
    func isOpen(in process: Int32) -> Bool {
        contains(process) { $0.hasPrefix("ino:") && $0.split(separator: "\t").last.map(String.init) == number }
    }

    private func contains(_ process: Int32, _ isMeant: (Substring) -> Bool) -> Bool {
        DirectoryListing.names(in: "/proc/\(process)/fdinfo").contains {
            Self.lines(process, $0).contains(where: isMeant)
        }
    }

    /// proc_pid_fdinfo(5). Reading it does not touch the open file, which may be on a server that does not answer.
    private static func lines(_ process: Int32, _ descriptor: String) -> [Substring] {
        let text = SmallFile.contents("/proc/\(process)/fdinfo/\(descriptor)", limit: 4096) ?? []
        return String(decoding: text, as: UTF8.self).split(separator: "\n")
    }

    /// The file of "lock:	1: FLOCK  ADVISORY  WRITE 4711 00:1a:4711 0 EOF".
    private static func lockedFile(_ line: Substring, kind: String) -> String? {
        let words = line.split { $0 == " " || $0 == "\t" }
        guard words.first == "lock:", words.count > 6, words[2] == kind else { return nil }
        return String(words[6])
    }
}
