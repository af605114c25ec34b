// SPDX-License-Identifier: BSD-2-Clause
// The advisory lock that keeps two writers off one image, in QEMU's scheme, so that QEMU and qemu-img respect it too.
//
// Locks are open file description locks (fcntl F_OFD_SETLK) of single bytes, always shared ones.  Byte 100 + n says
// "I use permission n", byte 200 + n says "I do not let others use permission n" (QEMU, block/file-posix.c:
// RAW_LOCK_PERM_BASE, RAW_LOCK_SHARED_BASE).  After taking its own bytes, everybody looks whether someone else holds a
// byte that contradicts; two that come at the same moment may both be refused, never both be let in.
//
// The lock belongs to the open file description: it ends when the last descriptor of it is closed, also by a crash.
import CLinux
import Glibc
import PluginKit

/// Locks of images that QEMU respects too.
public enum ImageLock {
    /// BLK_PERM_* of QEMU: bit numbers.
    private enum Permission: off_t, CaseIterable {
        case consistentRead = 0
        case write = 1
        case resize = 3
    }

    private static let usedBase: off_t = 100
    private static let forbiddenBase: off_t = 200

    /// Takes the lock of a reader or of the only writer.
    ///
    /// Readers share; a writer has no reader beside it that counts on unchanging data, and no other writer. A successor has
    /// the lock already, so that it does not matter who came since: whoever may read the image could take its disk away.
    ///
    /// There is no call that gives the lock back: it goes from a process to its successor, and ends with the open file.
    public static func take(fd: Int32, isReadOnly: Bool, isSuccessor: Bool) throws(PluginError) {
        let used: [Permission] = isReadOnly ? [.consistentRead] : [.consistentRead, .write]
        let forbidden: [Permission] = [.write, .resize]
        let mine = used.map { usedBase + $0.rawValue } + forbidden.map { forbiddenBase + $0.rawValue }
        for byte in mine { try lock(fd, byte) }
        if isSuccessor { return }
        // Who forbids what is used here, and who uses what is forbidden here.
        let contrary = used.map { forbiddenBase + $0.rawValue } + forbidden.map { usedBase + $0.rawValue }
        for byte in contrary where try isHeldElsewhere(fd, byte) {
            release(fd)
            throw PluginError(
                EBUSY,
                isReadOnly
                    ? "the image is in use: another process has it open for writing (fuser -v shows which)"
                    : "the image is in use: another process has it open (fuser -v shows which)")
        }
    }

    private static func range(_ type: Int, _ byte: off_t) -> flock {
        var lock = flock()
        lock.l_type = Int16(truncatingIfNeeded: type)
        lock.l_whence = Int16(SEEK_SET)
        lock.l_start = byte
        lock.l_len = 1
        return lock
    }

    private static func lock(_ fd: Int32, _ byte: off_t) throws(PluginError) {
        var lock = range(Int(F_RDLCK), byte)
        guard unsafe clinux_fcntl_pointer(fd, clinux_F_OFD_SETLK, &lock) == 0 else {
            let code = errno
            if code == EAGAIN || code == EACCES {
                throw PluginError(EBUSY, "the image is in use: another process has it locked (fuser -v shows which)")
            }
            throw PluginError(system: "the image cannot be locked (lock=off goes without)", code)
        }
    }

    private static func release(_ fd: Int32) {
        for base in [usedBase, forbiddenBase] {
            for permission in Permission.allCases {
                var lock = range(Int(F_UNLCK), base + permission.rawValue)
                unsafe _ = clinux_fcntl_pointer(fd, clinux_F_OFD_SETLK, &lock)
            }
        }
    }

    private static func isHeldElsewhere(_ fd: Int32, _ byte: off_t) throws(PluginError) -> Bool {
        var lock = range(Int(F_WRLCK), byte)
        guard unsafe clinux_fcntl_pointer(fd, clinux_F_OFD_GETLK, &lock) == 0 else {
            throw PluginError(system: "the locks of the image cannot be seen (lock=off goes without)")
        }
        return lock.l_type != Int16(F_UNLCK)
    }
}
