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
    /// others say so in the journal.
    func acquire() throws(OperationError) -> Bool {
        while flock(descriptor, LOCK_EX) != 0 {
            if errno != EINTR { throw OperationError(errno, "wait for the lock of the disk") }
        }
        return contents.elementsEqual(Self.handedOver.utf8)
    }

    /// The process that serves, as xbbd wrote it down; nil if it did not.
    var holder: ServingProcess? { contents.split(separator: UInt8(ascii: "\n")).first.flatMap { ServingProcess($0) } }

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

/// A process by its number and the time of its start, in clock ticks since boot: no two have both in common.
struct ServingProcess: Equatable {
    let process: UInt32
    let startTicks: UInt64

    /// Reads "4711 123456".
    init?(_ line: some Sequence<UInt8>) {
        let parts = String(decoding: Array(line), as: UTF8.self).split(separator: " ")
        guard parts.count == 2, let process = UInt32(parts[0]), process > 0, let ticks = UInt64(parts[1]) else { return nil }
        self.process = process
        startTicks = ticks
    }
}
