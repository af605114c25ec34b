// SPDX-License-Identifier: BSD-2-Clause
// The lock that says which process serves a disk, and how it goes from one to the next.
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
    /// What a process writes into the file that hands the disk over.
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

    /// Waits until nobody else holds the lock. True if the process before handed over, false if it died before.
    func acquire() throws(OperationError) -> Bool {
        while flock(descriptor, LOCK_EX) != 0 {
            if errno != EINTR { throw OperationError(errno, "wait for the lock of the disk") }
        }
        var bytes = [UInt8](repeating: 0, count: 64)
        // Within the closure the buffer is valid, and its size is passed on.
        let count = unsafe bytes.withUnsafeMutableBytes { unsafe pread(descriptor, $0.baseAddress, $0.count, 0) }
        return bytes.prefix(max(count, 0)).elementsEqual(Self.handedOver.utf8)
    }

    /// Writes into the file who holds the lock, for an xbbd that starts.
    func write(note: String) { replace(with: note) }

    /// Hands the disk over. The last thing that the process does with it.
    func handOver() {
        replace(with: Self.handedOver)
        _ = flock(descriptor, LOCK_UN)
    }

    private func replace(with text: String) {
        _ = ftruncate(descriptor, 0)
        let bytes = [UInt8](text.utf8)
        // Within the closure the buffer is valid, and its size is passed on.
        _ = unsafe bytes.withUnsafeBytes { unsafe pwrite(descriptor, $0.baseAddress, $0.count, 0) }
    }
}
