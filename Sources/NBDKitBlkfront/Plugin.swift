// SPDX-License-Identifier: BSD-2-Clause
// The nbdkit plugin (nbdkit-plugin(3)): a disk behind a blkif ring for NBD clients.
//
// Calls come from many threads at once (NBDKIT_THREAD_MODEL_PARALLEL). Each puts its requests on the ring by itself
// and sleeps until they are answered. The handle of a connection is the disk.
import Blkfront
import CNBDKit
import Glibc

/// Text that lives as long as the process, for the table.
private func permanent(_ text: StaticString) -> UnsafePointer<CChar> {
    unsafe UnsafeRawPointer(text.utf8Start).assumingMemoryBound(to: CChar.self)
}

private func permanentCopy(_ text: String) -> UnsafePointer<CChar>? {
    unsafe UnsafePointer(strdup(text))
}

/// Runs an operation on the disk of a connection; 0, or -1 with the error told to nbdkit.
private func withDisk(
    _ handle: UnsafeMutableRawPointer?, _ what: String, _ body: (FrontDisk) throws(BlkfrontError) -> Void
) -> Int32 {
    guard let handle = unsafe handle else { return -1 }
    let disk = unsafe Unmanaged<FrontDisk>.fromOpaque(handle).takeUnretainedValue()
    do throws(BlkfrontError) {
        try body(disk)
        return 0
    } catch {
        report("\(what): \(error)")
        nbdkit_set_error(errorNumber(error))
        return -1
    }
}

private func errorNumber(_ error: BlkfrontError) -> Int32 {
    switch error {
    case .notSupported: EOPNOTSUPP
    case .invalid: EINVAL
    case .closed: ESHUTDOWN
    default: EIO
    }
}

/// A property of the disk of a connection; -1 if there is none.
private func property(_ handle: UnsafeMutableRawPointer?, _ value: (FrontDisk) -> Bool) -> Int32 {
    guard let handle = unsafe handle else { return -1 }
    return value(unsafe Unmanaged<FrontDisk>.fromOpaque(handle).takeUnretainedValue()) ? 1 : 0
}

/// Runs `body`; 0, or -1 with the error told to nbdkit.
private func attempt(_ what: String, _ body: () throws -> Void) -> Int32 {
    do {
        try body()
        return 0
    } catch let error as ParameterError {
        report(error.message)
    } catch {
        report("\(what): \(error)")
    }
    return -1
}

/// The table that nbdkit takes; its size tells nbdkit which version of the header it was made with.
private func makePlugin() -> UnsafeMutablePointer<nbdkit_plugin> {
    var plugin = unsafe nbdkit_plugin()
    unsafe plugin._struct_size = UInt64(MemoryLayout<nbdkit_plugin>.size)
    unsafe plugin._api_version = 2
    unsafe plugin._thread_model = NBDKIT_THREAD_MODEL_PARALLEL
    unsafe plugin.name = permanent("xbb")
    unsafe plugin.longname = permanent("nbdkit xbb plugin")
    unsafe plugin.description = permanent("a disk behind a Xen blkif ring, over xbb's loopback")
    unsafe plugin.config_help = permanentCopy(PluginConfiguration.help)
    unsafe setLifecycle(&plugin)
    unsafe setExports(&plugin)
    unsafe setProperties(&plugin)
    unsafe setOperations(&plugin)
    let table = UnsafeMutablePointer<nbdkit_plugin>.allocate(capacity: 1)
    unsafe table.initialize(to: plugin)
    return unsafe table
}

private func setLifecycle(_ plugin: inout nbdkit_plugin) {
    unsafe plugin.config = { key, value in
        guard let key = unsafe key, let value = unsafe value else { return -1 }
        let (name, text) = unsafe (String(cString: key), String(cString: value))
        return attempt(name) { try Gateway.shared.configure(name, text) }
    }
    unsafe plugin.config_complete = { attempt("parameters") { try Gateway.shared.checkConfiguration() } }
    unsafe plugin.after_fork = {
        Gateway.shared.start()
        return 0
    }
    unsafe plugin.cleanup = { Gateway.shared.close() }
    unsafe plugin.open = { _ in
        let name = unsafe nbdkit_export_name().map { unsafe String(cString: $0) } ?? ""
        guard let disk = Gateway.shared.disk(name) else {
            report(Gateway.shared.failure ?? "there is no disk '\(name)'")
            return nil
        }
        return unsafe Unmanaged.passRetained(disk).toOpaque()
    }
    unsafe plugin.close = { handle in
        guard let handle = unsafe handle else { return }
        unsafe Unmanaged<FrontDisk>.fromOpaque(handle).release()
    }
}

private func setExports(_ plugin: inout nbdkit_plugin) {
    unsafe plugin.list_exports = { _, _, exports in
        for name in Gateway.shared.exports {
            if unsafe nbdkit_add_export(exports, name, nil) != 0 { return -1 }
        }
        return 0
    }
    unsafe plugin.default_export = { _, _ in
        guard let first = Gateway.shared.exports.first else { return nil }
        return unsafe nbdkit_strdup_intern(first)
    }
}

private func setProperties(_ plugin: inout nbdkit_plugin) {
    unsafe plugin.get_size = { handle in
        guard let handle = unsafe handle else { return -1 }
        return Int64(clamping: unsafe Unmanaged<FrontDisk>.fromOpaque(handle).takeUnretainedValue().byteCount)
    }
    unsafe plugin.can_write = { handle in unsafe property(handle) { !$0.info.readOnly } }
    unsafe plugin.can_flush = { handle in unsafe property(handle) { $0.info.flush } }
    unsafe plugin.can_trim = { handle in unsafe property(handle) { $0.info.discard && !$0.info.readOnly } }
    unsafe plugin.can_zero = { handle in unsafe property(handle) { !$0.info.readOnly } }
    unsafe plugin.can_multi_conn = { _ in 1 }
    unsafe plugin.is_rotational = { _ in 0 }
    // nbdkit flushes after a write that must be durable.
    unsafe plugin.can_fua = { handle in
        unsafe property(handle) { $0.info.flush } == 1 ? NBDKIT_FUA_EMULATE : NBDKIT_FUA_NONE
    }
    unsafe plugin.block_size = { handle, minimum, preferred, maximum in
        guard let handle = unsafe handle, let minimum = unsafe minimum, let preferred = unsafe preferred,
            let maximum = unsafe maximum
        else { return -1 }
        let disk = unsafe Unmanaged<FrontDisk>.fromOpaque(handle).takeUnretainedValue()
        unsafe minimum.pointee = UInt32(clamping: disk.sectorSize)
        unsafe preferred.pointee = UInt32(clamping: min(max(4096, disk.info.physicalSectorSize), 32 << 20))
        unsafe maximum.pointee = UInt32.max
        return 0
    }
}

private func setOperations(_ plugin: inout nbdkit_plugin) {
    unsafe plugin.pread = { handle, buffer, count, offset, _ in
        unsafe withDisk(handle, "read") { disk throws(BlkfrontError) in
            unsafe try disk.read(
                at: offset, into: UnsafeMutableRawBufferPointer(start: buffer, count: Int(count)))
        }
    }
    unsafe plugin.pwrite = { handle, buffer, count, offset, _ in
        unsafe withDisk(handle, "write") { disk throws(BlkfrontError) in
            unsafe try disk.write(at: offset, from: UnsafeRawBufferPointer(start: buffer, count: Int(count)))
        }
    }
    unsafe plugin.flush = { handle, _ in
        unsafe withDisk(handle, "flush") { disk throws(BlkfrontError) in try disk.flush() }
    }
    unsafe plugin.trim = { handle, count, offset, _ in
        unsafe withDisk(handle, "trim") { disk throws(BlkfrontError) in
            try disk.discard(at: offset, count: UInt64(count))
        }
    }
    unsafe plugin.zero = { handle, count, offset, _ in
        unsafe withDisk(handle, "zero") { disk throws(BlkfrontError) in
            // blkif cannot say "zeroes": what is zero already stays as it is, so that a copy of a sparse image is sparse.
            try disk.makeZero(at: offset, count: UInt64(count))
        }
    }
}

/// What nbdkit looks for in the library.
@c(plugin_init)
public func pluginInit() -> UnsafeMutablePointer<nbdkit_plugin>? {
    unsafe makePlugin()
}
