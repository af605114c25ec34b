// SPDX-License-Identifier: BSD-2-Clause
// Identifies an open file or device independently of its name.
package import Base
import CLinux
import Glibc

/// The file or device behind an image, by numbers: a name can be moved to another file, these cannot.
package struct StorageIdentity: Hashable, Sendable {
    /// st_dev of a file, 0 of a block device.
    package let device: UInt64
    /// st_ino of a file, st_rdev of a block device; 0 if the plugin opens no file.
    package let number: UInt64

    /// The identity of a disk without a file.
    package static let nothing = StorageIdentity(device: 0, number: 0)

    /// These numbers.
    package init(device: UInt64, number: UInt64) {
        self.device = device
        self.number = number
    }

    /// The files and devices of a disk as one text, "DEVICE:NUMBER ..." in decimal; "none" for a disk without a file.
    package static func text(_ storage: [StorageIdentity]) -> String {
        storage.isEmpty ? "none" : storage.map { "\($0.device):\($0.number)" }.joined(separator: " ")
    }

    /// What is wrong where other files or devices, `storage`, are open than those that the disk had before.
    package static func exchanged(_ storage: [StorageIdentity]) -> OperationError {
        OperationError(
            .journal,
            "another image stands in the place of the one that was served"
                + (storage.count > 1 ? ", or of one below it" : ""))
    }

    /// The identity of an open file; nil if fstat(2) fails, which leaves errno.
    package init?(file: Int32) {
        var status = stat()
        guard unsafe fstat(file, &status) == 0 else { return nil }
        self.init(status)
    }

    /// The identity of what was looked at.
    package init(_ status: stat) {
        if status.st_mode & S_IFMT == S_IFBLK {
            self.init(device: 0, number: UInt64(status.st_rdev))
        } else {
            self.init(device: UInt64(status.st_dev), number: UInt64(status.st_ino))
        }
    }
}
