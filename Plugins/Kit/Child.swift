// SPDX-License-Identifier: BSD-2-Clause
// Files that an image names: opened by the host, which alone decides about names, formats and depth.
import Glibc
import PluginAPI

/// The name of another file inside an image, on its way to the host; `xbb_ref`. Its author chose it.
public struct ImageFileName: Sendable {
    /// What the file is for; `XBB_REF_*`.
    public enum Kind: UInt32, Sendable {
        /// The layer below the image.
        case backing = 1
        /// The data of the image.
        case data = 2
    }

    /// What the file is for.
    public let kind: Kind
    /// The bytes in the image.
    public let name: [UInt8]
    /// The format of the file; empty where nobody says it, and the host refuses then.
    public let format: [UInt8]

    /// A name.
    public init(_ kind: Kind, name: [UInt8], format: [UInt8]) {
        self.kind = kind
        self.name = name
        self.format = format
    }

    /// The C form; a name with a NUL in it, or one that does not fit, is no name of a file.
    func fill(_ reference: inout xbb_ref) throws(PluginError) {
        guard !name.contains(0) else { throw .invalid("the image names a file with a NUL in its name") }
        reference.kind = kind.rawValue
        let nameFits = unsafe withUnsafeMutableBytes(of: &reference.name) { unsafe Self.copy(name, to: $0) }
        let formatFits = unsafe withUnsafeMutableBytes(of: &reference.format) { unsafe Self.copy(format, to: $0) }
        guard nameFits else { throw PluginError(ENAMETOOLONG, "the image names a file of \(name.count) bytes") }
        guard formatFits, !format.contains(0) else { throw .invalid("the image names a format that is none") }
    }

    private static func copy(_ bytes: [UInt8], to field: UnsafeMutableRawBufferPointer) -> Bool {
        guard bytes.count < field.count else { return false }
        unsafe field.copyBytes(from: bytes)
        return true
    }
}

/// A file that an image names, open until the `close()` of its disk returns. Any thread.
///
/// `@unchecked Sendable`: the pointer is the host's, whose functions bear any thread.
@safe
public struct ChildDisk: @unchecked Sendable {
    private let child: OpaquePointer
    private let host: PluginHost

    fileprivate init(_ child: OpaquePointer, _ host: PluginHost) {
        unsafe self.child = unsafe child
        self.host = host
    }

    /// The descriptor of a raw file, the host's: for reading, and of a data file for writing too where the disk is written; nil for disks of other formats.
    public var descriptor: Int32? {
        let fd = unsafe host.table.pointee.child_fd?(child) ?? -1
        return fd >= 0 ? fd : nil
    }

    /// The disk that this plugin itself opened for a file of one of its own formats, to be read as `Disk` can be read; nil for
    /// raw files, for those of other plugins, and where the host is older than ABI 1.2.
    ///
    /// Its own ``StorageDisk/start()`` comes before that of the disk above, its own `close()` after that of the disk above. In a
    /// plugin that does not block it has no queues.
    public func device<Disk: StorageDisk>(as _: Disk.Type) -> Disk? {
        guard let offset = unsafe MemoryLayout<xbb_host>.offset(of: \.child_device),
            unsafe Int(host.table.pointee.struct_size) > offset,
            let device = unsafe host.table.pointee.child_device?(child)
        else { return nil }
        return unsafe unboxed(device, as: DiskBox.self)?.disk as? Disk
    }

    /// Bytes of the disk.
    public func size() throws(PluginError) -> UInt64 {
        var info = xbb_info()
        info.struct_size = UInt32(MemoryLayout<xbb_info>.size)
        let code = unsafe host.table.pointee.child_info?(child, &info) ?? -ENOSYS
        guard code == 0 else { throw PluginError(system: "the host says nothing about the backing file", -code) }
        return info.size
    }

    /// Fills `buffer` from `offset` and sleeps until that is done; on the thread of `queue`, for a request of it, and only in
    /// a plugin that is blocking.
    ///
    /// - Returns: 0 or a negative errno.
    public func read(_ buffer: UnsafeMutableRawBufferPointer, at offset: UInt64, on queue: HostQueue) -> Int32 {
        // Elsewhere it would be done later, when this frame with the request in it is gone.
        guard unsafe LoadedPlugin.current?.isBlocking == true, let submit = unsafe host.table.pointee.child_submit
        else {
            return -ENOSYS
        }
        var vector = unsafe iovec(iov_base: buffer.baseAddress, iov_len: buffer.count)
        var status: Int32 = -EINPROGRESS
        let code = unsafe withUnsafePointer(to: &vector) { vector in
            var request = unsafe xbb_req()
            unsafe request.offset = offset
            unsafe request.length = UInt64(buffer.count)
            unsafe request.iov = vector
            unsafe request.iovcnt = 1
            unsafe request.op = UInt8(XBB_OP_READ)
            return unsafe submit(
                queue.handle, child, &request,
                { argument, _, status in
                    unsafe argument?.assumingMemoryBound(to: Int32.self).pointee = min(status, 0)
                }, &status)
        }
        return code != 0 ? min(code, -1) : status
    }
}

extension Opening {
    /// Asks the host for a file that the image names. Only while `open()` runs.
    public func child(_ name: ImageFileName) throws(PluginError) -> ChildDisk {
        guard let host = PluginHost.current else { throw .invalid("open() without a successful load()") }
        guard unsafe host.table.pointee.child_submit != nil else {
            throw PluginError(ENOSYS, "the host has no child_submit()")
        }
        var reference = xbb_ref()
        try name.fill(&reference)
        var child: OpaquePointer?
        var failure = xbb_error()
        let code = unsafe host.table.pointee.child_open?(disk, &reference, &child, &failure) ?? -ENOSYS
        guard code == 0, let child = unsafe child else {
            let words = unsafe withUnsafeBytes(of: failure.message) { bytes in
                unsafe String(decoding: bytes.prefix { $0 != 0 }, as: UTF8.self)
            }
            throw PluginError(code < 0 ? -code : EIO, words.isEmpty ? "the host refuses a file of the image" : words)
        }
        return unsafe ChildDisk(child, host)
    }
}
