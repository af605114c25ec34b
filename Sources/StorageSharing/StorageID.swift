// SPDX-License-Identifier: BSD-2-Clause
// Files and devices by their numbers: a link, a hard link, a bind mount and another device node are the same storage.
import Base
import CLinux
import Glibc

/// A file or a block device, whatever its names are.
public enum StorageID: Hashable, Sendable {
    /// st_rdev of a block device.
    case device(UInt64)
    /// st_dev and st_ino of anything else.
    case file(device: UInt64, inode: UInt64)

    /// What `path` leads to; nil if there is nothing.
    public init?(path: String) {
        var status = stat()
        guard unsafe stat(path, &status) == 0 else { return nil }
        if status.st_mode & S_IFMT == S_IFBLK {
            self = .device(UInt64(status.st_rdev))
        } else {
            self = .file(device: UInt64(status.st_dev), inode: UInt64(status.st_ino))
        }
    }

    /// The block device `major`:`minor`.
    public init(_ number: DeviceNumber) {
        self = .device(UInt64(gnu_dev_makedev(number.major, number.minor)))
    }

    /// A block device's numbers; nil for a file.
    public var deviceNumber: DeviceNumber? {
        guard case .device(let raw) = self else { return nil }
        let device = dev_t(truncatingIfNeeded: raw)
        return DeviceNumber(major: gnu_dev_major(device), minor: gnu_dev_minor(device))
    }
}

extension DeviceNumber {
    /// As hotplug scripts write it to `physical-device`: in hexadecimal.
    public var hexadecimal: String { "\(String(major, radix: 16)):\(String(minor, radix: 16))" }

    /// Reads "7:0", in decimal; nil if that is not what it is.
    init?(decimal text: some StringProtocol) {
        let parts = text.split(separator: ":", omittingEmptySubsequences: false)
        guard parts.count == 2, let major = UInt32(parts[0]), let minor = UInt32(parts[1]) else { return nil }
        self.init(major: major, minor: minor)
    }
}
