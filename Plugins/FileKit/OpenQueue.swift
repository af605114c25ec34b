// SPDX-License-Identifier: BSD-2-Clause
// A queue and what ties it to the host's event loop: the watched eventfd and, on queue 0, the timer of the size check.
import CLinux
import Glibc
import PluginAPI
import PluginKit

/// What the ABI's `void *q` points to.
@safe
struct OpenQueue: ~Copyable {
    var queue: IOQueue
    let device: Unmanaged<StorageDevice>
    private var watch: OpaquePointer?
    private var timer: OpaquePointer?

    /// A second is what `losetup -c`, `lvextend` and `truncate` may take to be seen.
    private static let sizeCheckInterval: UInt64 = 1_000_000_000

    init(queue: consuming IOQueue, device: Unmanaged<StorageDevice>) {
        self.queue = queue
        unsafe self.device = unsafe device
    }

    /// Adds the watch and the timer; `argument` is this value's own address.
    mutating func attach(
        to host: PluginHost, _ handle: OpaquePointer, watchesSize: Bool, argument: UnsafeMutablePointer<OpenQueue>
    ) throws(PluginError) {
        let table = unsafe host.table
        if let fd = queue.watchedFD {
            let code =
                unsafe table.pointee.watch_add?(
                    handle, fd, UInt32(XBB_FD_READ),
                    { argument, _, _ in
                        guard let open = unsafe argument?.assumingMemoryBound(to: OpenQueue.self) else { return }
                        unsafe open.pointee.queue.completionsAreReady()
                    }, argument, &watch) ?? -ENOSYS
            guard code == 0 else { throw PluginError(system: "the host cannot watch the completion eventfd", -code) }
        }
        guard watchesSize else { return }
        let code =
            unsafe table.pointee.timer_add?(
                handle,
                { argument in
                    guard let open = unsafe argument?.assumingMemoryBound(to: OpenQueue.self) else { return }
                    unsafe open.pointee.checkSize()
                }, argument, &timer) ?? -ENOSYS
        guard code == 0 else {
            detach(from: host)
            throw PluginError(system: "the host has no timer for the size check", -code)
        }
        unsafe table.pointee.timer_set?(timer, OpenQueue.sizeCheckInterval)
    }

    /// Removes the watch and the timer, after which nothing calls this queue any more.
    mutating func detach(from host: PluginHost) {
        if let watch = unsafe watch { unsafe host.table.pointee.watch_del?(watch) }
        if let timer = unsafe timer { unsafe host.table.pointee.timer_del?(timer) }
        unsafe watch = nil
        unsafe timer = nil
    }

    private func checkSize() {
        let device = unsafe self.device.takeUnretainedValue()
        device.checkSize()
        unsafe device.host.table.pointee.timer_set?(timer, OpenQueue.sizeCheckInterval)
    }
}
