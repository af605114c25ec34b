// SPDX-License-Identifier: BSD-2-Clause
// One disk, open in its plugin.
import PluginPort
import Base
import CLinux
import Glibc
import PluginAPI
import Synchronization
package import StorageKeeping
import Support

/// An open disk. Its control calls (``init(_:directories:backing:log:onNotify:)``, ``start()``, ``measure()``, ``close()``)
/// may take for ever, and are made one after the other.
///
/// A plugin that allows one call at a time gets a lock around every call, control or queue; other plugins get none.
///
/// `@unchecked Sendable`: `isClosed` belongs to whoever makes the control calls, one after the other, and `info` is behind a
/// lock. Everything else is constant; the plugin's thread model says which of its functions may run at once.
///
/// Unsafe code here calls the plugin's table with the handles that the plugin itself returned, between open() and
/// close().
@safe
public final class PluginDevice: @unchecked Sendable {
    /// The plugin.
    public let library: PluginLibrary
    /// The disk that was asked for. The path is absolute if the plugin has a file.
    public let source: DiskSource
    /// What the plugin reported, checked. ``adopt(_:)`` changes it. Any thread.
    public var info: DeviceInfo { reported.withLock { $0 } }
    private let reported: Mutex<DeviceInfo>
    /// The lock around every call; nil if the plugin needs none.
    package let exclusion: PluginExclusion?
    /// What open() of the plugin returned.
    let handle: UnsafeMutableRawPointer?
    private let options: PluginOptionValues
    private let host: HostDevice
    private let hostPointer: OpaquePointer
    /// The image or device; -1 if the plugin opens no file.
    let file: Int32
    private let chain: ImageChain
    private var isClosed = false

    /// The plugin for a disk. For "raw" it depends on what the path is; any other format is served by the plugin that
    /// lists it.
    package static func pluginName(for source: DiskSource, directories: [String]) throws(OperationError) -> String {
        if source.format != "raw" { return try PluginCatalog(directories: directories).plugin(serving: source.format) }
        var status = stat()
        if unsafe stat(source.path, &status) == 0, status.st_mode & S_IFMT == S_IFBLK { return "rawdisk" }
        return "file"
    }

    /// Loads the plugin for the source's format, opens the image and passes it to the plugin.
    ///
    /// Files that the image names are opened only where `backing` allows it. With `inherited`, the open files of the
    /// process before are used, and no name is opened; `hasLostWrites`: it died, and ``KeptStorage/hasLostWrites`` says that writes may
    /// be lost. `isAwaited`: a guest has the disk already, and waits for it; `isAfterDeath`: the process before did not end in order. `onNotify` is called on any thread with an `XBB_NOTIFY_`
    /// number.
    package convenience init(
        _ source: DiskSource, directories: [String], backing: BackingPolicy = BackingPolicy(),
        inherited: KeptStorage? = nil, hasLostWrites: Bool = false, isAwaited: Bool = false, isAfterDeath: Bool = false,
        log: Log,
        onNotify: @escaping @Sendable (UInt32) -> Void
    ) throws(OperationError) {
        let library = try PluginLibrary.load(
            name: Self.pluginName(for: source, directories: directories), directories: directories)
        if source.format != "raw",
            let note = try PluginCatalog(directories: directories).choice(for: source.format).note(source.format)
        {
            log.warning(note)
        }
        guard library.formats.contains(source.format) else {
            throw OperationError(
                .open,
                "plugin '\(library.name)' does not serve format '\(source.format)', only: "
                    + library.formats.joined(separator: ", "))
        }
        if library.isReadOnly && !source.readOnly {
            throw OperationError(
                .open,
                "plugin '\(library.name)' only reads: attach the disk read-only (mode r), or convert the image to raw "
                    + "(qemu-img convert -O raw)")
        }
        let chain = ImageChain(policy: backing, pluginDirectories: directories, inherited: inherited)
        var source = source
        if source.isShared, source.options["lock"] == nil,
            library.options.contains(where: { $0.name == "lock" && $0.kind == .bool })
        {
            source.options["lock"] = "off"
        }
        var direct = false
        var file: Int32 = -1
        if !library.hasNoFile {
            source.path = try source.filePath()
            if let image = inherited?.images.first {
                file = try duplicate(image.file)
                direct = clinux_fcntl_int(file, F_GETFL, 0) & O_DIRECT != 0
            } else {
                let opened = try DiskFile(
                    path: source.path, readOnly: source.readOnly, direct: source.direct,
                    expecting: source.deviceNumber)
                direct = opened.isDirect
                file = try duplicate(opened.descriptor)
            }
            do throws(OperationError) {
                try chain.enter(source.path, format: source.format, file: file)
            } catch {
                _ = Glibc.close(file)
                throw error
            }
        }
        try self.init(
            library, source, file: file, direct: direct, isBacking: false, hasLostWrites: hasLostWrites,
            isAwaited: isAwaited && library.hasNoFile, isAfterDeath: isAfterDeath && isAwaited && library.hasNoFile,
            chain: chain, log: log, onNotify: onNotify)
    }

    /// Opens the image at `file` in a plugin. Takes ownership of `file` and closes it even if this throws.
    init(
        _ library: PluginLibrary, _ source: DiskSource, file: Int32, direct: Bool, isBacking: Bool,
        hasLostWrites: Bool = false, isAwaited: Bool = false, isAfterDeath: Bool = false, chain: ImageChain, log: Log,
        onNotify: @escaping @Sendable (UInt32) -> Void
    ) throws(OperationError) {
        self.library = library
        self.source = source
        self.chain = chain
        self.file = file
        let host = HostDevice(log: log, onNotify: onNotify)
        self.host = host
        unsafe hostPointer = host.immortalPointer()
        exclusion = library.threadModel == .queue ? nil : PluginExclusion()
        var opened: UnsafeMutableRawPointer?
        do throws(OperationError) {
            options = try PluginOptionValues(library.options, given: source.options)
            host.allowChildren { reference throws(OperationError) in
                guard library.canReadChildren else {
                    throw OperationError(
                        .open,
                        "child_open() is for plugins that block (XBB_PLUGIN_BLOCKING), or that were built for ABI 1.2")
                }
                return try HostChild.open(
                    reference, in: source.path, of: library, chain: chain, options: source.options,
                    isReadOnly: source.readOnly || isBacking, log: log, onNotify: onNotify)
            }
            if library.hasNoFile {
                host.allowHandles(of: (source.format, source.path), inherited: chain.inherited?.handles ?? [])
            }
            defer {
                host.allowChildren(nil)
                host.allowHandles(of: nil)
                if !isBacking { chain.finish() }
            }
            let flags =
                (source.readOnly ? Int(XBB_OPEN_RDONLY) : 0) | (direct ? Int(XBB_OPEN_DIRECT) : 0)
                | (isBacking ? Int(XBB_OPEN_BACKING) : 0)
                | (chain.inherited != nil || isAwaited ? Int(XBB_OPEN_SUCCESSOR) : 0)
                | (hasLostWrites ? Int(XBB_OPEN_WRITES_LOST) : 0) | (isAfterDeath ? Int(XBB_OPEN_AFTER_DEATH) : 0)
            unsafe opened = try unsafe Self.open(
                library, source, options: options, file: file, flags: flags, host: hostPointer)
            do throws(OperationError) {
                reported = Mutex(try unsafe Self.query(library, opened))
            } catch {
                unsafe library.table.close(opened)
                throw error
            }
        } catch {
            for child in host.children { child.close() }
            if file >= 0 { _ = Glibc.close(file) }
            guard let cause = host.childFailure else { throw error }
            throw isBacking ? cause : OperationError(.open, "cannot open \(source.path): \(cause)")
        }
        unsafe handle = unsafe opened
    }

    private static func open(
        _ library: PluginLibrary, _ source: DiskSource, options: PluginOptionValues, file: Int32, flags: Int,
        host: OpaquePointer
    ) throws(OperationError) -> UnsafeMutableRawPointer? {
        var handle: UnsafeMutableRawPointer?
        var failure = xbb_error()
        let location = library.hasNoFile ? try source.opaqueLocation() : nil
        let result = unsafe withOpenRequest(
            source.format, label: source.path, location: location, flags: flags, file: file, options: options,
            host: host
        ) { request in unsafe library.table.open(request, &handle, &failure) }
        if result != 0 { throw OperationError(failure, result, "plugin '\(library.name)' cannot open \(source.path)") }
        return unsafe handle
    }

    private static func query(
        _ library: PluginLibrary, _ handle: UnsafeMutableRawPointer?
    ) throws(OperationError) -> DeviceInfo {
        var raw = xbb_info()
        raw.struct_size = UInt32(MemoryLayout<xbb_info>.size)
        let result = unsafe library.table.get_info(handle, &raw)
        if result != 0 {
            throw OperationError(.open, "plugin '\(library.name)' gives no information", .errno(-result))
        }
        do throws(OperationError) {
            let info = try DeviceInfo(validating: raw)
            if info.capabilities.contains(.needsMemoryMap), unsafe library.table.mem_map == nil {
                throw OperationError(.invalid, "the plugin says that it needs mem_map(), and has none")
            }
            return info
        } catch {
            throw error.within("plugin '\(library.name)'")
        }
    }

    /// Lets the plugin start its threads. Called after privileges were dropped.
    ///
    /// `onTrouble` gets what the plugin logs meanwhile as a warning or an error, on any thread.
    public func start(onTrouble: (@Sendable (String) -> Void)? = nil) throws(OperationError) {
        host.tellTrouble(to: onTrouble)
        defer { host.tellTrouble(to: nil) }
        for child in host.children { try child.device?.start() }
        guard let start = unsafe library.table.start else { return }
        var failure = xbb_error()
        let result = unsafe start(handle, &failure)
        if result != 0 { throw OperationError(failure, result, "plugin '\(library.name)' cannot start") }
        // It may have connected only now, and knows the size from there.
        if library.isNetwork { adopt(try measure()) }
    }

    /// Queries the plugin again after it reported a change.
    public func measure() throws(OperationError) -> DeviceInfo {
        exclusion?.lock()
        defer { exclusion?.unlock() }
        return try unsafe Self.query(library, handle)
    }

    /// Changes the size of the disk to so many bytes, and queries the plugin again; nil: only that. A plugin that cannot change the
    /// size has to have it already, as of a device that somebody else has enlarged.
    package func resize(to bytes: UInt64?) throws(OperationError) -> DeviceInfo {
        if let bytes, let resize = unsafe library.table.resize {
            var failure = xbb_error()
            exclusion?.lock()
            let result = unsafe resize(handle, bytes, &failure)
            exclusion?.unlock()
            if result != 0 {
                throw OperationError(failure, result, "plugin '\(library.name)' cannot resize \(source.path)")
            }
        }
        let info = try measure()
        if let bytes, info.sectorCount != bytes / 512 {
            throw OperationError(
                .invalid,
                "\(source.path) has \(info.sectorCount) sectors of 512 bytes, and plugin '\(library.name)' does not change "
                    + "that: enlarge the storage first, then resize without a size")
        }
        return info
    }

    /// Takes on what ``measure()`` returned.
    public func adopt(_ info: DeviceInfo) { reported.withLock { $0 = info } }

    /// The plugin wants to know when nothing is submitted: it has drain_begin() or drain_end().
    package var drains: Bool { unsafe library.table.drain_begin != nil || library.table.drain_end != nil }

    /// Nothing is in flight, and nothing is submitted until ``endDrain()``: the plugin stops what it does by itself. A control call.
    package func beginDrain() throws(OperationError) {
        guard let begin = unsafe library.table.drain_begin else { return }
        exclusion?.lock()
        let result = unsafe begin(handle)
        exclusion?.unlock()
        if result != 0 { throw OperationError(.system, "plugin '\(library.name)': drain_begin()", .errno(-result)) }
    }

    /// Requests come again. A control call.
    package func endDrain() {
        guard let end = unsafe library.table.drain_end else { return }
        exclusion?.lock()
        unsafe end(handle)
        exclusion?.unlock()
    }

    /// The plugin counts by itself: it has stats().
    public var counts: Bool { unsafe library.table.stats != nil }

    /// Asks the plugin what it counted: nil where it says that it failed. It may never return, so any thread but the control
    /// thread; no other control call is made meanwhile.
    package func readStatistics() -> PluginCounters? {
        guard let stats = unsafe library.table.stats else { return nil }
        let call = PluginCounterCalls.begin()
        exclusion?.lock()
        let result = unsafe stats(handle, PluginCounterCalls.report, PluginCounterCalls.argument(call))
        exclusion?.unlock()
        let counters = PluginCounterCalls.end(call)
        return result == 0 ? counters : nil
    }

    /// Makes everything that was answered durable, of the attached image and of those below it: with fsync(2), so of disks
    /// without a file nothing. The plugin's next sync finds an error, too. Blocks; any thread, while the disk is open.
    package func sync() throws(OperationError) {
        for image in chain.images
        where fsync(image.synced?.raw ?? image.file) != 0 && errno != EINVAL && errno != EROFS {
            throw OperationError(errno, "fsync \(image.path)")
        }
    }

    /// The guest was told that a flush has failed: ``sync()`` and a successor need not find the same error again. Any thread, while
    /// the disk is open.
    package func forgetToldError() {
        chain.images.flatMap { [$0.witness, $0.synced] }.compactMap(\.self).forEach(KeptStorage.Image.forgetError)
    }

    /// The most queues of the host that can be open at once.
    public var maxQueues: Int {
        let own = library.threadModel == .queue ? info.maxQueues : 1
        return host.children.reduce(own) { min($0, $1.deviceWithQueues?.maxQueues ?? $0) }
    }

    /// The path and the format of the attached image and of all images below it.
    public var images: [(path: String, format: String)] { chain.images.map { ($0.path, $0.format) } }

    /// The files and devices of the disk, in the order of ``images``.
    package var storage: [StorageIdentity] { chain.images.map(\.identity) }

    /// The open files and devices of the disk, and what its plugin keeps, for a successor; nil if there are none. While the disk is
    /// open, once.
    package func keptStorage() throws(OperationError) -> KeptStorage? {
        var images: [KeptStorage.Image] = []
        for image in chain.images {
            let file = Descriptor(owning: try duplicate(image.file))
            guard
                let kept = KeptStorage.Image(
                    path: image.path, format: image.format, file: file, witness: image.witness)
            else {
                throw OperationError(.open, "cannot examine \(image.path)", .errno(errno))
            }
            images.append(kept)
        }
        return KeptStorage(images, handles: host.takeHandles())
    }

    /// True if the guest may not write: read-only was asked for, or the plugin cannot write.
    public var isReadOnly: Bool { source.readOnly || !info.capabilities.contains(.write) }

    /// Opens a queue of the plugin and one of each child that has queues. Must be called on the queue's own thread.
    package func openQueue(_ host: HostQueue, index: Int, depth: Int) throws(OperationError) -> UnsafeMutableRawPointer?
    {
        for child in self.host.children {
            guard let device = child.deviceWithQueues else { continue }
            do throws(OperationError) {
                host.childQueues.append(try ChildQueue(child, device, index: index))
            } catch {
                host.closeChildQueues()
                throw error
            }
        }
        exclusion?.lock()
        defer { exclusion?.unlock() }
        var parameters = xbb_queue_params()
        parameters.struct_size = UInt32(MemoryLayout<xbb_queue_params>.size)
        parameters.index = UInt32(index)
        parameters.depth = UInt32(depth)
        var queue: UnsafeMutableRawPointer?
        var failure = xbb_error()
        let result = unsafe library.table.queue_open(handle, host.immortalPointer(), &parameters, &queue, &failure)
        if result != 0 {
            host.closeChildQueues()
            throw OperationError(failure, result, "plugin '\(library.name)' cannot open queue \(index)")
        }
        return unsafe queue
    }

    /// Closes a queue. Must be called on the queue's thread, with nothing in flight.
    package func closeQueue(_ queue: UnsafeMutableRawPointer?, of host: HostQueue) {
        exclusion?.lock()
        unsafe library.table.queue_close(queue)
        exclusion?.unlock()
        host.closeChildQueues()
    }

    /// Calls submit() until the plugin accepts the request; after 1.6 s of refusals the request fails with
    /// EIO. Sleeps between attempts, so only for threads that may sleep.
    func offer(
        _ request: inout UnsafeMutablePointer<xbb_req>?, to queue: UnsafeMutableRawPointer?,
        answeringAt port: CompletionPort
    ) {
        var pause: UInt32 = 100
        while true {
            exclusion?.lock()
            let taken = unsafe library.table.submit(queue, &request, 1)
            exclusion?.unlock()
            if taken >= 1 { return }
            if pause > 1_000_000 {
                unsafe port.complete(request, -EIO)
                return
            }
            usleep(pause)
            pause *= 2
        }
    }

    /// Registers a memory region for data, if the plugin wants to know about it.
    package func map(_ address: UnsafeMutableRawPointer, byteCount: Int) throws(OperationError) {
        guard let map = unsafe library.table.mem_map else { return }
        var memory = unsafe xbb_mem()
        unsafe memory.struct_size = UInt32(MemoryLayout<xbb_mem>.size)
        unsafe memory.fd = -1
        unsafe memory.addr = address
        unsafe memory.length = UInt64(byteCount)
        exclusion?.lock()
        let result = unsafe map(handle, &memory)
        exclusion?.unlock()
        if result != 0 && info.capabilities.contains(.needsMemoryMap) {
            throw OperationError(.open, "plugin '\(library.name)' cannot use the host's memory", .errno(-result))
        }
    }

    /// Reverses ``map(_:byteCount:)``.
    package func unmap(_ address: UnsafeMutableRawPointer, byteCount: Int) {
        guard unsafe library.table.mem_map != nil, let unmap = unsafe library.table.mem_unmap else { return }
        var memory = unsafe xbb_mem()
        unsafe memory.struct_size = UInt32(MemoryLayout<xbb_mem>.size)
        unsafe memory.fd = -1
        unsafe memory.addr = address
        unsafe memory.length = UInt64(byteCount)
        exclusion?.lock()
        unsafe unmap(handle, &memory)
        exclusion?.unlock()
    }

    /// Closes the disk, once. All queues must have been closed before.
    public func close() {
        if isClosed { return }
        isClosed = true
        unsafe library.table.close(handle)
        for child in host.children { child.close() }
        if file >= 0 { _ = Glibc.close(file) }
    }

    deinit {
        close()
    }
}

/// Another descriptor of an open file, closed on exec.
func duplicate(_ descriptor: Int32) throws(OperationError) -> Int32 {
    let copy = clinux_fcntl_int(descriptor, F_DUPFD_CLOEXEC, 3)
    if copy < 0 { throw OperationError(errno, "keep an image open") }
    return copy
}

/// Another descriptor of an open file, closed on exec.
func duplicate(_ file: Descriptor) throws(OperationError) -> Int32 { try duplicate(file.raw) }
