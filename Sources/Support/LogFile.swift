// SPDX-License-Identifier: BSD-2-Clause
// The last lines of a worker's log in a small file, which outlives the worker and needs no journal.
import CLinux
import Glibc
import Synchronization

/// A file with the last lines that processes of one disk logged. Any thread.
///
/// The file has all of its blocks from the start and is mapped, and this process has no descriptor of it: a worker that was
/// taken over cannot fill the file system with it. It is a magic number, the number of bytes that were ever added, and a ring
/// of bytes. Two processes that add at the same moment, as at a hand-over, may spoil each other's line.
///
/// A fence for unsafe memory: the mapping is as long as the file, and what is read from it is used modulo the ring's length.
/// Unchecked, because it has a pointer, which is constant; the memory behind it is changed under ``turn``.
@safe
public final class LogFile: @unchecked Sendable {
    private static let magic: UInt64 = 0x0a47_4f4c_4242_5801
    private static let headerBytes = 16
    /// Bytes of lines that it keeps.
    public static let ringBytes = 32 << 10
    /// Bytes of the file.
    public static let mostBytes = headerBytes + ringBytes
    private let base: UnsafeMutableRawPointer
    private let turn = Mutex(())

    /// Opens or makes the file; nil where that cannot be: whoever logs can do without.
    public init?(path: String) {
        // The call reads the path as C text, which Swift keeps for it.
        let file = unsafe clinux_open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0o600)
        guard file >= 0 else { return nil }
        defer { close(file) }
        var status = stat()
        // The kernel fills the structure, which is ours. A full file system is found out here, not by a fault later.
        guard unsafe fstat(file, &status) == 0, status.st_mode & S_IFMT == S_IFREG,
            posix_fallocate(file, 0, off_t(Self.mostBytes)) == 0,
            let mapped = unsafe clinux_mmap(nil, Self.mostBytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0)
        else { return nil }
        unsafe base = unsafe mapped
        if unsafe base.load(as: UInt64.self) != Self.magic {
            unsafe base.storeBytes(of: 0, toByteOffset: 8, as: UInt64.self)
            unsafe base.storeBytes(of: Self.magic, as: UInt64.self)
        }
    }

    deinit { unsafe munmap(base, Self.mostBytes) }

    /// Adds a line without control characters.
    func add(_ level: LogLevel, _ text: String) {
        var now = timespec()
        unsafe clock_gettime(CLOCK_REALTIME, &now)
        let line = Array("\(now.tv_sec).\(1000 + now.tv_nsec / 1_000_000) \(level.word) \(text)\n".utf8)
        turn.withLock { _ in
            let added = unsafe base.load(fromByteOffset: 8, as: UInt64.self)
            for (index, byte) in line.prefix(Self.ringBytes).enumerated() {
                let place = Int((added &+ UInt64(index)) % UInt64(Self.ringBytes))
                unsafe base.storeBytes(of: byte, toByteOffset: Self.headerBytes + place, as: UInt8.self)
            }
            unsafe base.storeBytes(of: added &+ UInt64(line.count), toByteOffset: 8, as: UInt64.self)
        }
    }

    /// The last lines of the file at `path`, of its last `limit` bytes; none where there is no file. What is no such line is
    /// left out: the process that wrote the file is not trusted.
    public static func lines(
        _ path: String, limit: Int = ringBytes, about vbd: (domain: UInt16, device: UInt32)
    ) -> [LogHistory.Line] {
        let file = unsafe clinux_open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0)
        guard file >= 0 else { return [] }
        defer { close(file) }
        var status = stat()
        guard unsafe fstat(file, &status) == 0, status.st_mode & S_IFMT == S_IFREG else { return [] }
        var bytes = [UInt8](repeating: 0, count: mostBytes)
        let count = unsafe bytes.withUnsafeMutableBytes { unsafe pread(file, $0.baseAddress, $0.count, 0) }
        guard count == mostBytes, number(bytes[..<8]) == magic else { return [] }
        let added = number(bytes[8..<16])
        let ring = bytes[headerBytes...]
        let end = ring.startIndex + Int(added % UInt64(ringBytes))
        let text = (added > UInt64(ringBytes) ? ring[end...] : []) + ring[..<end]
        return text.suffix(limit).split(separator: UInt8(ascii: "\n")).compactMap { line($0, vbd) }
    }

    private static func number(_ bytes: ArraySlice<UInt8>) -> UInt64 {
        bytes.reversed().reduce(0) { $0 << 8 | UInt64($1) }
    }

    private static func line(_ bytes: ArraySlice<UInt8>, _ vbd: (domain: UInt16, device: UInt32)) -> LogHistory.Line? {
        let text = String(decoding: bytes.prefix(1100), as: UTF8.self).withoutControlCharacters
        let parts = text.split(separator: " ", maxSplits: 2)
        guard parts.count == 3, let level = LogLevel(word: String(parts[1])) else { return nil }
        let time = parts[0].split(separator: ".")
        guard time.count == 2, let seconds = UInt64(time[0]), let part = UInt64(time[1]), seconds < 100_000_000_000,
            (1000..<2000).contains(part)
        else { return nil }
        return LogHistory.Line(
            time: Double(seconds) + Double(part - 1000) / 1000, level: level, text: String(parts[2]), vbd: vbd)
    }
}
