// SPDX-License-Identifier: BSD-2-Clause
// What the ABI's `void *dev` and `void *q` point to: a disk and a queue behind closures that know their types, so that a
// request takes one indirect call to its queue and nothing is looked up for it.
import Glibc
import PluginAPI

/// An open disk.
final class DiskBox {
    /// What the closures are about, for the disk above it: see ``ChildDisk/device(as:)``.
    let disk: AnyObject
    let start: () throws(PluginError) -> Void
    let describe: (inout xbb_info) -> Void
    let openQueue: (QueueParameters) throws(PluginError) -> QueueBox
    let close: () -> Void
    let resize: ((UInt64) throws(PluginError) -> Void)?
    let map: ((UInt64, UInt64, (MappedRange) -> Bool) throws(PluginError) -> Void)?
    let statistics: (() -> [(StaticString, UInt64)])?
    let beginDrain: (() throws(PluginError) -> Void)?
    let endDrain: (() -> Void)?

    init<Disk: StorageDisk>(_ disk: Disk, isReadOnly: Bool, writeRefusal: Int32) {
        self.disk = disk
        start = { () throws(PluginError) in try disk.start() }
        describe = { info in disk.info.fill(&info, isReadOnly: isReadOnly) }
        close = { disk.close() }
        openQueue = { parameters throws(PluginError) in
            do throws(PluginError) {
                let refusals = Refusals(
                    capabilities: disk.info.allowed(isReadOnly: isReadOnly), undeclaredWrite: writeRefusal)
                return QueueBox(try disk.openQueue(parameters), parameters.queue, refusals)
            } catch {
                parameters.queue.end()
                throw error
            }
        }
        if let disk = disk as? any ResizableDisk {
            resize = { size throws(PluginError) in try disk.resize(to: size) }
        } else {
            resize = nil
        }
        if let disk = disk as? any MappedDisk {
            map = { offset, length, report throws(PluginError) in
                try disk.map(from: offset, length: length, report)
            }
        } else {
            map = nil
        }
        if let disk = disk as? any DrainingDisk {
            beginDrain = { () throws(PluginError) in try disk.beginDrain() }
            endDrain = { disk.endDrain() }
        } else {
            (beginDrain, endDrain) = (nil, nil)
        }
        if let disk = disk as? any CountingDisk {
            statistics = { disk.statistics }
        } else {
            statistics = nil
        }
    }
}

/// An open queue.
@safe
final class QueueBox {
    let submit: (UnsafePointer<UnsafeMutablePointer<xbb_req>?>, UInt32) -> UInt32
    let poll: () -> Int
    let cancel: ((RequestID?) -> Void)?
    let close: () -> Void

    init<Queue: StorageQueue>(_ queue: Queue, _ host: HostQueue, _ refusals: Refusals) {
        let (handle, complete) = unsafe (host.handle, host.complete)
        unsafe submit = { requests, count in
            var batch = unsafe RequestBatch(
                requests, count: Int(count), queue: handle, complete: complete, refusals: refusals)
            queue.submit(&batch)
            return UInt32(truncatingIfNeeded: batch.taken)
        }
        poll = { queue.poll() }
        close = {
            queue.queueClosed()
            host.end()
        }
        if let queue = queue as? any CancellingQueue {
            cancel = { request in queue.cancel(request) }
        } else {
            cancel = nil
        }
    }
}

/// A class instance as the `void *` that the ABI hands back in every call; released by `releaseBox(_:as:)`.
func box<Object: AnyObject>(_ object: Object) -> UnsafeMutableRawPointer {
    unsafe Unmanaged.passRetained(object).toOpaque()
}

/// The instance behind a `void *` made by `box(_:)`, which keeps its reference.
func unboxed<Object: AnyObject>(_ pointer: UnsafeMutableRawPointer?, as _: Object.Type) -> Object? {
    guard let pointer = unsafe pointer else { return nil }
    return unsafe Unmanaged<Object>.fromOpaque(pointer).takeUnretainedValue()
}

/// Takes the reference back that `box(_:)` made.
func releaseBox<Object: AnyObject>(_ pointer: UnsafeMutableRawPointer?, as _: Object.Type) {
    guard let pointer = unsafe pointer else { return }
    unsafe Unmanaged<Object>.fromOpaque(pointer).release()
}
