// SPDX-License-Identifier: BSD-2-Clause
// Who uses files and devices in this domain: mounts, swap, device mapper and md.
import Base
import CLinux
import Glibc

/// One use of a file or device in this domain.
public struct LocalUse: Equatable, Sendable {
    /// What is used.
    public let storage: StorageID
    /// How, to be put behind the name of the storage: "is mounted on /srv".
    public let text: String
    /// The user may write.
    public let writes: Bool

    /// All mounts and all swap of this domain.
    public static func read() -> [LocalUse] {
        // A service may have a mount namespace of its own, and so may the process that this is.
        var uses: [LocalUse] = []
        for path in ["/proc/1/mountinfo", "/proc/self/mountinfo"] {
            for use in mounts(lines(of: path)) where !uses.contains(use) { uses.append(use) }
        }
        return uses + swap(lines(of: "/proc/swaps"))
    }

    /// What proc(5), /proc/PID/mountinfo, says of devices. `identify` finds the storage of a path.
    static func mounts(_ lines: [Substring], identify: (String) -> StorageID? = { StorageID(path: $0) }) -> [LocalUse] {
        var uses: [LocalUse] = []
        for line in lines {
            let halves = line.split(separator: " - ", maxSplits: 1)
            guard halves.count == 2 else { continue }
            let (mount, system) = (halves[0].split(separator: " "), halves[1].split(separator: " "))
            guard mount.count >= 6, system.count >= 2 else { continue }
            // A file system is written to although one of its mounts is read-only.
            let writes = system.last.map { $0 == "rw" || $0.hasPrefix("rw,") } ?? true
            let text = "is mounted on \(unescaped(mount[4]))"
            var storage: Set<StorageID> = []
            if let number = DeviceNumber(decimal: mount[2]), number.major != 0 { storage.insert(StorageID(number)) }
            let source = unescaped(system[1])
            if source.hasPrefix("/"), let found = identify(source), found.deviceNumber != nil { storage.insert(found) }
            uses += storage.map { LocalUse(storage: $0, text: text, writes: writes) }
        }
        return uses
    }

    /// What proc(5), /proc/swaps, says.
    static func swap(_ lines: [Substring], identify: (String) -> StorageID? = { StorageID(path: $0) }) -> [LocalUse] {
        lines.dropFirst().compactMap { line in
            guard let name = line.split(whereSeparator: { $0 == " " || $0 == "\t" }).first else { return nil }
            return identify(unescaped(name)).map { LocalUse(storage: $0, text: "is active swap", writes: true) }
        }
    }

    /// Octal escapes of the kernel: "\040" is a space.
    private static func unescaped(_ text: Substring) -> String {
        var bytes: [UInt8] = []
        var rest = Array(text.utf8)[...]
        while let byte = rest.popFirst() {
            let digits = rest.prefix(3)
            guard byte == UInt8(ascii: "\\"), digits.count == 3,
                let value = UInt8(String(decoding: digits, as: UTF8.self), radix: 8)
            else {
                bytes.append(byte)
                continue
            }
            bytes.append(value)
            rest = rest.dropFirst(3)
        }
        return String(decoding: bytes, as: UTF8.self)
    }

    static func lines(of path: String) -> [Substring] {
        let raw = unsafe clinux_open(path, O_RDONLY | O_CLOEXEC, 0)
        guard raw >= 0 else { return [] }
        let file = Descriptor(owning: raw)
        var bytes: [UInt8] = []
        while bytes.count < 16 << 20, case .bytes(let more) = file.readAvailable() { bytes += more }
        return String(decoding: bytes, as: UTF8.self).split(separator: "\n")
    }
}
