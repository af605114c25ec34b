// SPDX-License-Identifier: BSD-2-Clause
// What `struct xbb_child` points to: a file that an image named, open for reading; a data file for writing too.
import Base
import CLinux
import Glibc
internal import StorageKeeping
import PluginAPI
import Support
import Synchronization

/// An open child: a descriptor if it is raw, otherwise a disk in a plugin of its own.
@safe
final class HostChild: Sendable {
    /// The disk in its plugin; nil for a raw child.
    let device: PluginDevice?
    /// The plugin is that of the disk above.
    private let isOwn: Bool
    /// The descriptor of a raw child, which the plugin may use until close(); -1 for other children.
    let descriptor: Int32
    /// Size in bytes.
    let size: UInt64
    private let closed = Mutex(false)

    init(device: PluginDevice?, isOwn: Bool, descriptor: Int32, size: UInt64) {
        self.device = device
        self.isOwn = isOwn
        self.descriptor = descriptor
        self.size = size
    }

    /// The disk in its plugin, if a queue of it belongs to each queue of the disk above.
    var deviceWithQueues: PluginDevice? { device.flatMap { $0.library.isBlocking ? $0 : nil } }

    /// Opens the file that `reference` names, found in the image at `image`, which is open in `parent`.
    static func open(
        _ reference: xbb_ref, in image: String, of parent: PluginLibrary, chain: ImageChain,
        options: [String: String], isReadOnly: Bool, log: Log, onNotify: @escaping @Sendable (UInt32) -> Void
    ) throws(OperationError) -> HostChild {
        let format = text(inArray: reference.format)
        let bytes = unsafe withUnsafeBytes(of: reference.name) { unsafe Array($0.prefix { $0 != 0 }) }
        if Int(reference.kind) == Int(XBB_REF_DATA), reference.flags == 0 {
            return try openData(bytes, format, in: image, chain: chain, granted: options["data-file"], isReadOnly)
        }
        guard Int(reference.kind) == Int(XBB_REF_BACKING), reference.flags == 0 else {
            throw OperationError(.open, "\(image) names a file of an unknown kind, which is not opened")
        }
        let name = try BackingName(bytes, in: image, allowed: chain.policy)
        guard !format.isEmpty else {
            throw OperationError(
                .open,
                "\(image) does not say of which format its backing file is, and it is never guessed: say it with "
                    + "qemu-img rebase -u -b \(BackingName.shown(name.path)) -F FORMAT, or in an option of the disk")
        }
        let plugin = format == "raw" ? nil : try library(for: format, below: parent, name.path, chain)
        let file = try open(name, inherited: chain.inherited)
        do throws(OperationError) {
            try chain.enter(name.path, format: format, file: file)
        } catch {
            Glibc.close(file)
            throw error
        }
        do throws(OperationError) {
            guard let plugin else {
                let end = lseek(file, 0, SEEK_END)
                guard end >= 0 else { throw OperationError(.open, "cannot examine \(name.path)", .errno(errno)) }
                return HostChild(device: nil, isOwn: false, descriptor: file, size: UInt64(end))
            }
            // The child gets those options of the image above that its own plugin knows.
            let known = options.filter { option in plugin.options.contains { $0.name == option.key } }
            let source = DiskSource(format: format, path: name.path, options: known, readOnly: true, direct: false)
            let device = try PluginDevice(
                plugin, source, file: file, direct: false, isBacking: true, chain: chain, log: log, onNotify: onNotify)
            // What a plugin that does not block asks of requests is its own affair: it gets none for a child.
            guard !plugin.isBlocking || (device.info.logicalBlock == 512 && device.info.memoryAlignment == 1) else {
                device.close()
                throw OperationError(
                    .open, "the backing file \(name.path) has blocks of \(device.info.logicalBlock) bytes")
            }
            return HostChild(
                device: device, isOwn: plugin.path == parent.path, descriptor: -1, size: device.info.size)
        } catch {
            // If PluginDevice failed, it has closed the file.
            if plugin == nil { Glibc.close(file) }
            throw error
        }
    }

    /// The file of the process before, or the one that has the name now.
    private static func open(_ name: BackingName, inherited: KeptStorage?) throws(OperationError) -> Int32 {
        guard let inherited else { return try name.open() }
        guard let image = inherited.image(at: name.path) else {
            throw OperationError(
                .open, "the image names another backing file than before: \(BackingName.shown(name.path))")
        }
        return try duplicate(image.file)
    }

    /// The plugin for the file at `path`. One that does not block reads its own formats by itself; between two plugins
    /// there are requests, for which both have to block.
    private static func library(
        for format: String, below parent: PluginLibrary, _ path: String, _ chain: ImageChain
    ) throws(OperationError) -> PluginLibrary {
        let name = try PluginCatalog(directories: chain.pluginDirectories).plugin(serving: format)
        let library = try PluginLibrary.load(name: name, directories: chain.pluginDirectories)
        guard !library.hasNoFile, library.formats.contains(format) else {
            throw OperationError(.open, "plugin '\(name)' cannot serve a backing file")
        }
        if let problem = ChildRule.problem(
            of: (name, library.isBlocking), below: (parent.name, parent.isBlocking, parent.formats), format, path)
        {
            throw OperationError(.open, problem)
        }
        return library
    }

    /// Closes the child, after close() of the plugin that opened it. The object stays: a misbehaving plugin may still
    /// use it.
    func close() {
        let isFirst = closed.withLock { closed in
            defer { closed = true }
            return !closed
        }
        guard isFirst else { return }
        device?.close()
        if descriptor >= 0 { Glibc.close(descriptor) }
    }

    /// The reference is never released, so the pointer stays valid.
    func immortalPointer() -> OpaquePointer {
        unsafe OpaquePointer(Unmanaged.passRetained(self).toOpaque())
    }

    static func from(_ pointer: OpaquePointer?) -> HostChild? {
        guard let pointer = unsafe pointer else { return nil }
        return unsafe Unmanaged<HostChild>.fromOpaque(UnsafeRawPointer(pointer)).takeUnretainedValue()
    }

    /// Serves `child_device()`: what the plugin itself returned for the child; nil if it is another plugin's, or closed.
    var handleOfOwnPlugin: UnsafeMutableRawPointer? {
        guard isOwn, !closed.withLock({ $0 }) else { return nil }
        return unsafe device?.handle
    }

    /// Serves `child_info()`.
    func describe(_ out: UnsafeMutablePointer<xbb_info>) -> Int32 {
        var info = xbb_info()
        let known = Int(unsafe out.pointee.struct_size)
        guard let least = MemoryLayout<xbb_info>.offset(of: \.logical_block), known >= least else { return -EINVAL }
        info.struct_size = UInt32(known)
        info.size = size
        if let device {
            info.logical_block = device.info.logicalBlock
            info.physical_block = device.info.physicalBlock
            info.max_transfer = device.info.maxTransfer
            info.max_queues = UInt32(device.info.maxQueues)
        }
        unsafe withUnsafeBytes(of: &info) { bytes in
            unsafe UnsafeMutableRawPointer(out).copyMemory(
                from: bytes.baseAddress ?? UnsafeRawPointer(out), byteCount: min(known, bytes.count))
        }
        return 0
    }
}
