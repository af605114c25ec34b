// SPDX-License-Identifier: BSD-2-Clause
// A disk in memory whose plugin completes in submit(), written against the header as Swift imports it. Embedded Swift, so
// that the library needs no Swift runtime, which has no stable ABI of its own on Linux.
import CLibrary
import PluginAPI

nonisolated(unsafe) private var host: UnsafePointer<xbb_host>?

private struct Disk {
    var size: UInt64
    var isReadOnly: Bool
    var data: UnsafeMutableRawPointer
}

private struct Queue {
    var disk: UnsafeMutablePointer<Disk>
    var handle: OpaquePointer?
}

private func move(_ disk: Disk, _ request: xbb_req) -> Int32 {
    guard Int32(request.op) == XBB_OP_READ || Int32(request.op) == XBB_OP_WRITE else { return -EOPNOTSUPP }
    var place = disk.data + Int(request.offset)
    for part in 0..<Int(request.iovcnt) {
        let vector = request.iov[part]
        if Int32(request.op) == XBB_OP_READ {
            memcpy(vector.iov_base, place, vector.iov_len)
        } else {
            memcpy(place, vector.iov_base, vector.iov_len)
        }
        place += vector.iov_len
    }
    return 0
}

nonisolated(unsafe) private let table: UnsafeMutablePointer<xbb_plugin> = {
    func text(_ literal: StaticString) -> UnsafePointer<CChar> {
        UnsafeRawPointer(literal.utf8Start).assumingMemoryBound(to: CChar.self)
    }
    var plugin = xbb_plugin()
    plugin.struct_size = UInt32(MemoryLayout<xbb_plugin>.size)
    plugin.abi_major = UInt16(XBB_ABI_MAJOR)
    plugin.abi_minor = UInt16(XBB_ABI_MINOR)
    plugin.name = text("golden-swift")
    plugin.version = text("1")
    plugin.description = text("Kept as it was built for ABI 1.0, from Swift")
    let formats = UnsafeMutablePointer<UnsafePointer<CChar>?>.allocate(capacity: 2)
    formats[0] = text("golden-swift")
    formats[1] = nil
    plugin.formats = UnsafePointer(formats)
    let options = UnsafeMutablePointer<xbb_option>.allocate(capacity: 1)
    options.initialize(to: xbb_option())
    options[0].name = text("size")
    options[0].help = text("bytes")
    options[0].def = text("64M")
    options[0].min = 512
    options[0].max = 1 << 30
    options[0].type = UInt32(XBB_OPT_SIZE)
    plugin.options = UnsafePointer(options)
    plugin.option_count = 1
    plugin.flags = UInt32(XBB_PLUGIN_NO_FD)
    plugin.thread_model = UInt32(XBB_THREADS_QUEUE)
    plugin.load = { table in
        host = table
        return 0
    }
    plugin.open = { open, out, failure in
        guard let open, let out, let size = open.pointee.options?[0].num else { return -EINVAL }
        guard let data = calloc(1, Int(size)) else { return xbb_set_error(failure, -ENOMEM, "no memory") }
        let disk = UnsafeMutablePointer<Disk>.allocate(capacity: 1)
        let isReadOnly = open.pointee.flags & UInt32(XBB_OPEN_RDONLY) != 0
        disk.initialize(to: Disk(size: size, isReadOnly: isReadOnly, data: data))
        out.pointee = UnsafeMutableRawPointer(disk)
        return 0
    }
    plugin.close = { device in
        guard let disk = device?.assumingMemoryBound(to: Disk.self) else { return }
        free(disk.pointee.data)
        disk.deallocate()
    }
    plugin.get_info = { device, info in
        guard let disk = device?.assumingMemoryBound(to: Disk.self), let info else { return -EINVAL }
        info.pointee.size = disk.pointee.size
        info.pointee.caps = disk.pointee.isReadOnly ? 0 : XBB_CAP_WRITE
        info.pointee.max_queues = 4
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
            guard let request = requests[index] else { continue }
            host.pointee.complete(queue.pointee.handle, request, move(queue.pointee.disk.pointee, request.pointee))
        }
        return count
    }
    let place = UnsafeMutablePointer<xbb_plugin>.allocate(capacity: 1)
    place.initialize(to: plugin)
    return place
}()

/// The one exported symbol.
@c(xbb_plugin_v1)
public func entry() -> UnsafePointer<xbb_plugin>? { UnsafePointer(table) }
