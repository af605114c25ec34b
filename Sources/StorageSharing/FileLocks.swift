// SPDX-License-Identifier: BSD-2-Clause
// Locks of files that other programs hold, and who those are.
import Base
import CLinux
import Glibc

/// Looks at the locks of one file, without taking any.
struct FileLocks {
    private let path: String
    private let file: Descriptor
    private let storage: StorageID

    /// nil where the file cannot be opened: whoever serves it will say why.
    init?(path: String) {
        let raw = unsafe clinux_open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY, 0)
        guard raw >= 0 else { return nil }
        file = Descriptor(owning: raw)
        self.path = path
        guard let storage = StorageID(path: path) else { return nil }
        self.storage = storage
    }

    /// Who keeps the file from being read, or written; nil if nobody does. "is locked by qemu-img, process 4711".
    ///
    /// Bytes 100 to 299 have the meaning that QEMU gives them (Plugins/FileKit/ImageLock.swift). Elsewhere a lock keeps
    /// others from writing, and an exclusive one also from reading; flock(2) is the same.
    func conflict(writes: Bool) -> String? {
        if let holder = rangeHolder(writes: writes) {
            return "is locked by \(Self.name(of: holder.map { [$0] } ?? fdHolders()))"
        }
        for line in LocalUse.lines(of: "/proc/locks") {
            guard let lock = KernelLock(line[...]), lock.isWhole, lock.inode == inode, lock.process != getpid(),
                writes || lock.isExclusive, isOurs(lock)
            else { continue }
            return "is locked by \(Self.name(of: [lock.process]))"
        }
        return nil
    }

    private var inode: UInt64? {
        guard case .file(_, let inode) = storage else { return nil }
        return inode
    }

    /// The kernel's list has inodes, which are another file's on another file system, and the number of the file system, which
    /// is not that of stat(2) on btrfs and overlayfs. So the process is asked what it has open; if it is gone, having left the
    /// lock to a child, the number counts.
    private func isOurs(_ lock: KernelLock) -> Bool {
        let files = DirectoryListing.names(in: "/proc/\(lock.process)/fd")
        if !files.isEmpty { return files.contains { StorageID(path: "/proc/\(lock.process)/fd/\($0)") == storage } }
        guard case .file(let device, _) = storage else { return false }
        let number = dev_t(truncatingIfNeeded: device)
        let (major, minor) = (gnu_dev_major(number), gnu_dev_minor(number))
        return major == 0 || lock.fileSystem == (UInt64(major) << 32 | UInt64(minor))
    }

    /// The process with a lock of fcntl(2) in the way; nil inside for one that is known to be there and not which it is.
    private func rangeHolder(writes: Bool) -> Int32?? {
        var probes: [(type: Int, start: off_t, length: off_t)] = [(Int(F_RDLCK), 0, 0)]
        if writes { probes += [(Int(F_WRLCK), 0, 100), (Int(F_WRLCK), 300, 0)] }
        for byte: off_t in writes ? [101, 103, 200, 201] : [101, 103, 200] { probes.append((Int(F_WRLCK), byte, 1)) }
        for probe in probes {
            var lock = flock()
            lock.l_type = Int16(truncatingIfNeeded: probe.type)
            lock.l_whence = Int16(SEEK_SET)
            lock.l_start = probe.start
            lock.l_len = probe.length
            guard unsafe clinux_fcntl_pointer(file.raw, clinux_F_OFD_GETLK, &lock) == 0, lock.l_type != Int16(F_UNLCK)
            else { continue }
            return .some(lock.l_pid > 0 ? lock.l_pid : nil)
        }
        return nil
    }

    /// A lock that belongs to an open file and not to a process has no number in the kernel's list; the processes that have
    /// the file open have: a worker, and xbbd, which keeps its files.
    private func fdHolders() -> [Int32] {
        var found: [Int32] = []
        for name in DirectoryListing.names(in: "/proc") {
            guard let process = Int32(name), process != getpid() else { continue }
            for file in DirectoryListing.names(in: "/proc/\(process)/fdinfo") {
                guard let text = SmallFile.contents("/proc/\(process)/fdinfo/\(file)", limit: 8192) else { continue }
                for line in String(decoding: text, as: UTF8.self).split(separator: "\n") where line.hasPrefix("lock:") {
                    if let lock = KernelLock(line.dropFirst(5)), lock.inode == inode, found.last != process,
                        StorageID(path: "/proc/\(process)/fd/\(file)") == storage
                    {
                        found.append(process)
                    }
                }
            }
        }
        return found
    }

    /// "qemu-img, process 4711"; at most three.
    private static func name(of processes: [Int32]) -> String {
        processes.isEmpty ? "a process that cannot be seen" : processes.prefix(3).map(name).joined(separator: " and ")
    }

    private static func name(_ process: Int32) -> String {
        let comm = SmallFile.contents("/proc/\(process)/comm", limit: 64) ?? []
        let text = String(decoding: comm, as: UTF8.self).unicodeScalars.filter { !String($0).hasControlCharacters }
        let name = String(String.UnicodeScalarView(text))
        return name.isEmpty ? "process \(process)" : "\(name), process \(process)"
    }
}

/// A line of /proc/locks: "1: FLOCK  ADVISORY  WRITE 4711 fd:00:16222640 0 EOF".
struct KernelLock: Equatable {
    /// A lock of flock(2), of the whole file.
    let isWhole: Bool
    let isExclusive: Bool
    /// -1 of a lock that belongs to an open file.
    let process: Int32
    /// The device's major number, and behind its 32 bits the minor one.
    let fileSystem: UInt64
    let inode: UInt64

    init?(_ line: Substring) {
        let words = line.split(whereSeparator: { $0 == " " || $0 == "\t" })
        guard words.count >= 6, words[1] != "->", let process = Int32(words[4]) else { return nil }
        let numbers = words[5].split(separator: ":")
        guard numbers.count == 3, let major = UInt32(numbers[0], radix: 16), let minor = UInt32(numbers[1], radix: 16),
            let inode = UInt64(numbers[2])
        else { return nil }
        fileSystem = UInt64(major) << 32 | UInt64(minor)
        isWhole = words[1] == "FLOCK"
        isExclusive = words[3] == "WRITE"
        self.process = process
        self.inode = inode
    }
}
