// SPDX-License-Identifier: BSD-2-Clause
// Xen's lock "block" (locking.sh): while a script looks who uses some storage and then says that a guest does, no other one
// looks.
import Base
import CLinux
import Glibc

/// The lock of Xen's hotplug scripts for disks. Its holder removes the file, so a file that was opened may not be the one
/// that the next script opens.
struct HotplugLock: ~Copyable {
    private let path: String
    private let file: Descriptor

    /// Where the locks of Xen's scripts are; the loopback Xen in a directory has its own.
    static func usualFolder(loopback: String?) -> String { loopback.map { "\($0)/hotplug" } ?? "/run/xen-hotplug" }

    /// Waits for the lock at most as long as a script does.
    init(folder: String, seconds: Double = 30) throws(ControlError) {
        path = folder + "/block"
        if unsafe mkdir(folder, 0o755) != 0 && errno != EEXIST {
            throw ControlError("make \(folder): \(errnoText(errno))")
        }
        let deadline = clinux_monotonic_ns() &+ UInt64(seconds * 1e9)
        while true {
            let raw = unsafe clinux_open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0o644)
            guard raw >= 0 else { throw ControlError("open \(path): \(errnoText(errno))") }
            let file = Descriptor(owning: raw)
            if flock(raw, LOCK_EX | LOCK_NB) == 0 {
                var (mine, named) = (stat(), stat())
                if unsafe fstat(raw, &mine) == 0, unsafe stat(path, &named) == 0, mine.st_ino == named.st_ino,
                    mine.st_dev == named.st_dev
                {
                    self.file = file
                    return
                }
                continue
            }
            guard clinux_monotonic_ns() < deadline else {
                throw ControlError(
                    "another hotplug script holds \(path) for more than \(Int(seconds)) s", status: .timedOut)
            }
            usleep(5000)
        }
    }

    deinit {
        unsafe unlink(path)
    }
}
