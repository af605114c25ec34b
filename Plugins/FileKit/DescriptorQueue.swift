// SPDX-License-Identifier: BSD-2-Clause
// A queue and what ties it to the host's event loop: the watched eventfd and, on queue 0, the timer of the size check.
import PluginKit

/// A queue of a ``DescriptorDisk``.
///
/// `@unchecked Sendable`: all of it is for the queue's thread.
@safe
public final class DescriptorQueue: StorageQueue, @unchecked Sendable {
    /// Not a property: an access of a class's variable is checked, and one of memory is not.
    private let state: UnsafeMutablePointer<IOQueue>
    private var watch: Watch?
    private var timer: QueueTimer?
    /// Looks at the size since the queue last had work.
    private var idleLooks = 0
    /// The queue did nothing for a while; the next look at the size is far away.
    private var isResting = false
    /// What the kernel had been given at the last look at the size.
    private var submittedAtLook: UInt64 = 0

    /// A second is what `losetup -c`, `lvextend` and `truncate` may take to be seen by a guest that uses its disk.
    private static let sizeCheckInterval: UInt64 = 1_000_000_000
    /// The same for a guest that does not: an idle disk wakes nobody often.
    private static let restingCheckInterval: UInt64 = 30_000_000_000
    private static let idleLooksBeforeRest = 10

    init(_ queue: consuming IOQueue) {
        unsafe state = .allocate(capacity: 1)
        unsafe state.initialize(to: queue)
    }

    deinit {
        unsafe state.deinitialize(count: 1)
        unsafe state.deallocate()
    }

    /// Adds the watch, and the timer if there is a disk whose size is looked at.
    func attach(to host: HostQueue, checksSizeOf disk: DescriptorDisk?) throws(PluginError) {
        if let fd = unsafe state.pointee.watchedFD {
            let state = unsafe state
            watch = try host.watch(fd) { _ in unsafe state.pointee.completionsAreReady() }
        }
        guard let disk else { return }
        let added = try host.timer { [self, disk] in lookAtSize(of: disk) }
        timer = added
        added.fire(after: Self.sizeCheckInterval)
    }

    private func lookAtSize(of disk: DescriptorDisk) {
        disk.checkSize()
        let submitted = unsafe state.pointee.submitted
        idleLooks = submitted == submittedAtLook ? idleLooks + 1 : 0
        isResting = idleLooks >= Self.idleLooksBeforeRest
        submittedAtLook = submitted
        timer?.fire(after: isResting ? Self.restingCheckInterval : Self.sizeCheckInterval)
    }

    /// The queue has work after a rest: what happened to the size meanwhile is seen at once.
    @inline(never)
    private func endRest() {
        isResting = false
        idleLooks = 0
        timer?.fire(after: 1)
    }

    /// The completion ring of the kernel is looked at without a system call.
    public static var isPolled: Bool { true }

    /// Gives the batch to the kernel, or to the helper threads.
    public func submit(_ batch: inout RequestBatch) {
        if isResting { endRest() }
        // An iocb is made of the request's own memory, and of a batch that the kernel takes in part the rest is the host's.
        unsafe batch.acceptUnchecked { requests, count in unsafe state.pointee.submit(requests, count) }
    }

    /// Completes what the kernel has finished.
    public func poll() -> Int { unsafe state.pointee.reap() }

    /// Before the eventfd is closed, which the watch must not outlive.
    public func queueClosed() {
        watch?.remove()
        timer?.remove()
    }
}
