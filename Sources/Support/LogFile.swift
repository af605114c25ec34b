// SPDX-License-Identifier: BSD-2-Clause
// The last lines of a worker's log in a small file, which outlives the worker and needs no journal.
import CLinux
import Glibc
import Synchronization

/// A file with the last lines that processes of one disk logged. Any thread; several processes may add at once.
public final class LogFile: Sendable {
    /// Bytes that it has at most; then the older half goes.
    public static let mostBytes = 64 << 10
    private let descriptor: Int32
    private let turn = Mutex(())

    /// Opens or makes the file; nil where that cannot be: whoever logs can do without.
    public init?(path: String) {
        // The call reads the path as C text, which Swift keeps for it.
        descriptor = unsafe clinux_open(path, O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0o600)
        var status = stat()
        // The kernel fills the structure, which is ours.
        if descriptor >= 0, unsafe fstat(descriptor, &status) == 0, status.st_mode & S_IFMT == S_IFREG { return }
        if descriptor >= 0 { close(descriptor) }
        return nil
    }

    deinit { close(descriptor) }

    /// Adds a line without control characters.
    func add(_ level: LogLevel, _ text: String) {
        var now = timespec()
        unsafe clock_gettime(CLOCK_REALTIME, &now)
        let line = Array("\(now.tv_sec).\(1000 + now.tv_nsec / 1_000_000) \(level.word) \(text)\n".utf8)
        turn.withLock { _ in
            shrink()
            write(line[...])
        }
    }

    private func write(_ bytes: ArraySlice<UInt8>) {
        // Within the closure the bytes are valid, and their number is passed on.
        _ = unsafe bytes.withUnsafeBytes { unsafe Glibc.write(descriptor, $0.baseAddress, $0.count) }
    }

    /// Keeps the newer half of a file that is long.
    private func shrink() {
        var status = stat()
        guard unsafe fstat(descriptor, &status) == 0, Int(status.st_size) > Self.mostBytes - 2048 else { return }
        let half = Self.mostBytes / 2
        var kept = [UInt8](repeating: 0, count: half)
        let start = status.st_size - off_t(half)
        let count = unsafe kept.withUnsafeMutableBytes { unsafe pread(descriptor, $0.baseAddress, $0.count, start) }
        guard ftruncate(descriptor, 0) == 0, count > 0 else { return }
        let whole = kept[..<count].firstIndex(of: UInt8(ascii: "\n")).map { $0 + 1 } ?? count
        write(kept[whole..<count])
    }

    /// The last lines of the file at `path`, of its last `limit` bytes; none where there is no file. What is no such line is
    /// left out: the process that wrote the file is not trusted.
    public static func lines(
        _ path: String, limit: Int = mostBytes, about vbd: (domain: UInt16, device: UInt32)
    ) -> [LogHistory.Line] {
        let file = unsafe clinux_open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0)
        guard file >= 0 else { return [] }
        defer { close(file) }
        var status = stat()
        guard unsafe fstat(file, &status) == 0, status.st_mode & S_IFMT == S_IFREG else { return [] }
        let start = max(status.st_size - off_t(limit), 0)
        var bytes = [UInt8](repeating: 0, count: limit)
        let count = unsafe bytes.withUnsafeMutableBytes { unsafe pread(file, $0.baseAddress, $0.count, start) }
        guard count > 0 else { return [] }
        return bytes[..<count].split(separator: UInt8(ascii: "\n")).compactMap { line($0, vbd) }
    }

    private static func line(_ bytes: ArraySlice<UInt8>, _ vbd: (domain: UInt16, device: UInt32)) -> LogHistory.Line? {
        let clean = bytes.prefix(1100).map { $0 < 0x20 || $0 == 0x7f ? UInt8(ascii: "?") : $0 }
        let parts = String(decoding: clean, as: UTF8.self).split(separator: " ", maxSplits: 2)
        guard parts.count == 3, let level = LogLevel(word: String(parts[1])) else { return nil }
        let time = parts[0].split(separator: ".")
        guard time.count == 2, let seconds = UInt64(time[0]), let part = UInt64(time[1]), seconds < 100_000_000_000,
            (1000..<2000).contains(part)
        else { return nil }
        return LogHistory.Line(
            time: Double(seconds) + Double(part - 1000) / 1000, level: level, text: String(parts[2]), vbd: vbd)
    }
}
