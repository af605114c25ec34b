// SPDX-License-Identifier: BSD-2-Clause
// Reads xbb.conf from disk.
import Base
import CLinux
import Glibc

extension DaemonConfiguration {
    /// Reads the file at `path`. With `isOptional`, a missing file counts as an empty one.
    public static func read(_ path: String, isOptional: Bool) throws(ControlError) -> DaemonConfiguration {
        let raw = unsafe clinux_open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK, 0)
        if raw < 0 {
            if isOptional && errno == ENOENT { return DaemonConfiguration() }
            throw ControlError("cannot read \(path): \(errnoText(errno))", status: .configuration)
        }
        let file = Descriptor(owning: raw)
        func refusal(_ reason: String) -> ControlError { ControlError("\(path): \(reason)", status: .configuration) }
        var status = stat()
        // The kernel fills the structure, which is ours.
        if unsafe fstat(raw, &status) != 0 { throw refusal(errnoText(errno)) }
        // Of anything else, what is read now need not be what is read next.
        guard status.st_mode & S_IFMT == S_IFREG else {
            throw refusal("is no file but a \(Self.kind(status.st_mode)); --config names a file")
        }
        var bytes: [UInt8] = []
        while bytes.count <= ConfigurationText.byteLimit {
            var buffer = [UInt8](repeating: 0, count: 65536)
            let count = unsafe buffer.withUnsafeMutableBytes { unsafe Glibc.read(raw, $0.baseAddress, $0.count) }
            if count < 0 && errno == EINTR { continue }
            if count < 0 { throw refusal("cannot be read: \(errnoText(errno))") }
            if count == 0 { break }
            bytes += buffer[..<count]
        }
        // Before what the last bytes are is looked at: they may be half of a character.
        guard bytes.count <= ConfigurationText.byteLimit else {
            throw refusal("has more than \(ConfigurationText.byteLimit) bytes")
        }
        withExtendedLifetime(file) {}
        guard let text = String(validating: bytes, as: UTF8.self) else {
            throw ControlError("\(path): is no UTF-8 text", status: .configuration)
        }
        return try DaemonConfiguration(parsing: text, file: path)
    }
    private static func kind(_ mode: mode_t) -> String {
        switch mode & S_IFMT {
        case S_IFDIR: "directory"
        case S_IFIFO: "pipe"
        case S_IFSOCK: "socket"
        case S_IFBLK, S_IFCHR: "device"
        default: "special file"
        }
    }
}
