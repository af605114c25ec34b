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
        var bytes: [UInt8] = []
        reading: while bytes.count <= ConfigurationText.byteLimit {
            switch file.readAvailable() {
            case .bytes(let more): bytes += more
            case .wouldBlock, .ended: break reading
            }
        }
        guard let text = String(validating: bytes, as: UTF8.self) else {
            throw ControlError("\(path): is no UTF-8 text", status: .configuration)
        }
        return try DaemonConfiguration(parsing: text, file: path)
    }
}
