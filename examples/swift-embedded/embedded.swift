// SPDX-License-Identifier: BSD-2-Clause
// A disk in memory in Embedded Swift, on the C header as Swift imports it: a library of less than 20 kB that needs no Swift
// runtime. PluginKit is not for Embedded Swift, so the pointers are the author's to watch here.
import CLibrary
import PluginAPI

nonisolated(unsafe) private var host: UnsafePointer<xbb_host>?

private struct Disk {
    let size: UInt64
    let isReadOnly: Bool
    let data: UnsafeMutableRawPointer
}

private struct Queue {
    let disk: UnsafeMutablePointer<Disk>
    let handle: OpaquePointer?
}

/// Does a request; 0 or a negative errno.
private func perform(_ request: xbb_req, on disk: Disk) -> Int32 {
    let operation = Int32(request.op)
    guard operation == XBB_OP_READ || operation == XBB_OP_WRITE else { return -EOPNOTSUPP }
    guard request.flags == 0 else { return -EINVAL }
    var place = disk.data + Int(request.offset)
    for index in 0..<Int(request.iovcnt) {
        let part = request.iov[index]
        if operation == XBB_OP_READ {
            memcpy(part.iov_base, place, part.iov_len)
        } else {
            memcpy(place, part.iov_base, part.iov_len)
        }
        place += part.iov_len
    }
    return 0
}

private func open(
    _ open: UnsafePointer<xbb_open>?, _ out: UnsafeMutablePointer<UnsafeMutableRawPointer?>?,
    _ failure: UnsafeMutablePointer<xbb_error>?
) -> Int32 {
    guard let open, let out, let size = open.pointee.options?[0].num else { return -EINVAL }
    guard size % 512 == 0 else { return xbb_set_error(failure, -EINVAL, "size is no multiple of 512") }
    guard let data = calloc(1, Int(size)) else { return xbb_set_error(failure, -ENOMEM, "no memory for the disk") }
    let disk = UnsafeMutablePointer<Disk>.allocate(capacity: 1)
    disk.initialize(to: Disk(size: size, isReadOnly: open.pointee.flags & UInt32(XBB_OPEN_RDONLY) != 0, data: data))
    out.pointee = UnsafeMutableRawPointer(disk)
    return 0
}

/// A literal is NUL-terminated and lives as long as the process.
private func text(_ literal: StaticString) -> UnsafePointer<CChar> {
    UnsafeRawPointer(literal.utf8Start).assumingMemoryBound(to: CChar.self)
}

private func immortal<Value>(_ values: Value...) -> UnsafeMutablePointer<Value> {
    let place = UnsafeMutablePointer<Value>.allocate(capacity: values.count)
    for index in values.indices { (place + index).initialize(to: values[index]) }
    return place
}

nonisolated(unsafe) private let table: UnsafePointer<xbb_plugin> = {
    var size = xbb_option()
    size.name = text("size")
    size.help = text("bytes, a multiple of 512")
    size.def = text("64M")
    size.min = 512
    size.max = 1 << 40
    size.type = UInt32(XBB_OPT_SIZE)
    var plugin = xbb_plugin()
    plugin.struct_size = UInt32(MemoryLayout<xbb_plugin>.size)
    plugin.abi_major = UInt16(XBB_ABI_MAJOR)
    plugin.abi_minor = UInt16(XBB_ABI_MINOR)
    plugin.name = text("swift-embedded")
    plugin.version = text("1")
    plugin.description = text("A disk in memory, in Embedded Swift")
    plugin.formats = UnsafePointer(immortal(text("swift-embedded"), nil))
    plugin.options = UnsafePointer(immortal(size))
    plugin.option_count = 1
    plugin.flags = UInt32(XBB_PLUGIN_NO_FD)
    plugin.thread_model = UInt32(XBB_THREADS_QUEUE)
    plugin.load = { table in
        host = table
        return 0
    }
    plugin.open = open
    plugin.close = { device in
        guard let disk = device?.assumingMemoryBound(to: Disk.self) else { return }
        free(disk.pointee.data)
        disk.deallocate()
    }
    plugin.get_info = { device, info in
        guard let disk = device?.assumingMemoryBound(to: Disk.self), let info else { return -EINVAL }
        info.pointee.size = disk.pointee.size
        info.pointee.caps = disk.pointee.isReadOnly ? 0 : XBB_CAP_WRITE
        return 0
    }
    plugin.queue_open = { device, handle, _, out, _ in
        guard let disk = device?.assumingMemoryBound(to: Disk.self), let out else { return -EINVAL }
        let queue = UnsafeMutablePointer<Queue>.allocate(capacity: 1)
        queue.initialize(to: Queue(disk: disk, handle: handle))
        out.pointee = UnsafeMutableRawPointer(queue)
        return 0
    }
    plugin.queue_close = { queue in queue?.assumingMemoryBound(to: Queue.self).deallocate() }
    plugin.submit = { queue, requests, count in
        guard let queue = queue?.assumingMemoryBound(to: Queue.self), let requests, let host else { return 0 }
        for index in 0..<Int(count) {
            guard let request = requests[index] else { return UInt32(index) }
            let status = perform(request.pointee, on: queue.pointee.disk.pointee)
            host.pointee.complete(queue.pointee.handle, request, status)
        }
        return count
    }
    return UnsafePointer(immortal(plugin))
}()

/// The one exported symbol.
@c(xbb_plugin_v1)
public func entry() -> UnsafePointer<xbb_plugin>? { table }
