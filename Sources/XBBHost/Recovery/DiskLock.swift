// SPDX-License-Identifier: BSD-2-Clause
// The lock that says which process serves a disk, and how it goes from one to the next.
import BlockQueue
import PluginHost
import Base
import CLinux
import Glibc
import Support

/// The open file of a disk's lock, flock(2), which this process holds or waits for.
///
/// The process that has it may touch ring, journal and image, and no other. It is unlocked when a worker has handed over, or
/// by the kernel when the process is dead: after its AIO contexts, so that nothing of it is in flight any more
/// (docs/recovery.md).
final class DiskLock {
    private let descriptor: Int32
    /// What a process of an earlier version writes into the file when it hands the disk over.
    private static let handedOver = "handed over\n"

    /// Takes over a descriptor that this process was started with.
    init(owning descriptor: Int32) throws(OperationError) {
        self.descriptor = descriptor
        var status = stat()
        // The kernel fills the structure, which is ours.
        guard unsafe fstat(descriptor, &status) == 0, status.st_mode & S_IFMT == S_IFREG else {
            throw OperationError(EBADF, "use descriptor \(descriptor) as the lock of the disk")
        }
        _ = clinux_fcntl_int(descriptor, F_SETFD, FD_CLOEXEC)
    }

    /// Waits until nobody else holds the lock. True if a process of an earlier version wrote into the file that it handed over;
    /// others say so in XenStore.
    func acquire() throws(OperationError) -> Bool {
        while flock(descriptor, LOCK_EX) != 0 {
            if errno != EINTR { throw OperationError(errno, "wait for the lock of the disk") }
        }
        return contents.elementsEqual(Self.handedOver.utf8)
    }

    /// The process that serves, as xbbd wrote it down, "4711 123456": its number and the time of its start, which no two have
    /// in common. nil if xbbd did not.
    var holder: String? {
        let line = String(decoding: contents.prefix { $0 != UInt8(ascii: "\n") }, as: UTF8.self)
        let numbers = line.split(separator: " ", omittingEmptySubsequences: false).map { UInt64($0) }
        return numbers.count == 2 && !numbers.contains(nil) ? line : nil
    }

    /// Writes into the file who holds the lock. An xbbd of an earlier version expects this of whoever takes over; of this
    /// version it writes itself, and the descriptor is read-only.
    func write(note: String) {
        guard clinux_fcntl_int(descriptor, F_GETFL, 0) & O_ACCMODE == O_RDWR else { return }
        _ = ftruncate(descriptor, 0)
        let bytes = [UInt8](note.utf8)
        // Within the closure the buffer is valid, and its size is passed on.
        _ = unsafe bytes.withUnsafeBytes { unsafe pwrite(descriptor, $0.baseAddress, $0.count, 0) }
    }

    /// Hands the disk over. The last thing that the process does with it.
    func handOver() { _ = flock(descriptor, LOCK_UN) }

    private var contents: ArraySlice<UInt8> {
        var bytes = [UInt8](repeating: 0, count: 128)
        // Within the closure the buffer is valid, and its size is passed on.
        let count = unsafe bytes.withUnsafeMutableBytes { unsafe pread(descriptor, $0.baseAddress, $0.count, 0) }
        return bytes.prefix(max(count, 0))
    }
}
