// SPDX-License-Identifier: BSD-2-Clause
// What open() is given: the descriptor, the flags and the parsed options, with checked access.
import Glibc
import PluginAPI

/// A view of `xbb_open`, valid while `open()` runs.
@safe
public struct Opening {
    private let open: UnsafePointer<xbb_open>
    private let schema: [any OptionSchema]

    /// What the host passed, or nil if it does not know all options of the schema.
    init?(_ open: UnsafePointer<xbb_open>?, options schema: [any OptionSchema]) {
        guard let open = unsafe open, unsafe Int(open.pointee.option_count) == schema.count,
            unsafe schema.isEmpty || open.pointee.options != nil
        else { return nil }
        unsafe self.open = unsafe open
        self.schema = schema
    }

    /// The image or device; borrowed until `close()` returns. -1 for plugins without a file.
    public var fd: Int32 { unsafe open.pointee.fd }
    /// `xbb_hdev`, the host's name for the disk.
    var disk: OpaquePointer? { unsafe open.pointee.hdev }
    /// What the host can be told about this disk.
    public var hostDisk: HostDisk { unsafe HostDisk(disk: open.pointee.hdev) }
    /// The disk must not be written to.
    public var isReadOnly: Bool { unsafe open.pointee.flags & UInt32(XBB_OPEN_RDONLY) != 0 }
    /// The host opened the descriptor with O_DIRECT.
    public var isDirect: Bool { unsafe open.pointee.flags & UInt32(XBB_OPEN_DIRECT) != 0 }
    /// The disk is a lower layer of a chain.
    public var isBacking: Bool { unsafe open.pointee.flags & UInt32(XBB_OPEN_BACKING) != 0 }
    /// The descriptor is the open file of the process that served the disk before: its locks were held all the time. Without a
    /// descriptor: a guest has the disk and waits, so ``StorageDisk/start()`` waits for storage that cannot be reached.
    public var isSuccessor: Bool { unsafe open.pointee.flags & UInt32(XBB_OPEN_SUCCESSOR) != 0 }
    /// What that process wrote may be lost, and nobody may have been told: the next flush fails, and so does each write to an image whose
    /// tables may be among it.
    public var hasLostWrites: Bool { unsafe open.pointee.flags & UInt32(XBB_OPEN_WRITES_LOST) != 0 }
    /// The process that served the disk before did not end in order: what it had under way may still reach the storage, and nothing is done
    /// before that is over. For plugins without a file, with ``isSuccessor``. Since ABI 1.3.
    public var isAfterDeath: Bool { unsafe open.pointee.flags & UInt32(XBB_OPEN_AFTER_DEATH) != 0 }
    /// The format that was configured, one of the plugin's.
    public var format: String { unsafe open.pointee.format.map { unsafe String(cString: $0) } ?? "" }
    /// The image's name in messages; not necessarily a path.
    public var label: String { unsafe open.pointee.label.map { unsafe String(cString: $0) } ?? "the image" }

    /// What the configuration names, for plugins without a file: a URI, a name in a pool; empty where it names nothing.
    /// Throws where the host is older than ABI 1.1 and cannot say it.
    public var location: String {
        get throws(PluginError) {
            guard let offset = unsafe MemoryLayout<xbb_open>.offset(of: \.location),
                Int(unsafe open.pointee.struct_size) > offset
            else {
                throw PluginError(ENOTSUP, "this version of XBB tells no plugin a disk's location: that is of ABI 1.1")
            }
            return unsafe open.pointee.location.map { unsafe String(cString: $0) } ?? ""
        }
    }

    /// Leaves a socket or memory (memfd_create(2)) for the process that serves the disk after this one, however this one ends. For plugins
    /// without a file. `key`: 0 to 31. The descriptor stays the caller's.
    ///
    /// - Returns: false where nobody would get it: the host is older than ABI 1.3, or keeps nothing.
    @discardableResult
    public func keep(_ descriptor: Int32, as key: UInt32) throws(PluginError) -> Bool {
        guard let keep = unsafe PluginHost.current?.keepFunction else { return false }
        let code = unsafe keep(disk, key, descriptor)
        guard code == 0 || code == -EOPNOTSUPP else {
            throw PluginError(system: "the host does not keep a descriptor", -code)
        }
        return code == 0
    }

    /// What the process before has left with ``keep(_:as:)``: a descriptor of the caller's own; nil: nothing. What is in it may be
    /// anything.
    public func kept(as key: UInt32) -> Int32? {
        guard let kept = unsafe PluginHost.current?.keptFunction else { return nil }
        let descriptor = unsafe kept(disk, key)
        guard descriptor >= 0 else { return nil }
        let own = fcntl(descriptor, F_DUPFD_CLOEXEC, 0)
        return own >= 0 ? own : nil
    }

    /// The value of an option, which the host parsed and checked.
    public subscript<Value>(option: PluginOption<Value>) -> Value {
        get throws(PluginError) {
            guard let index = schema.firstIndex(where: { $0.name.description == option.name.description }),
                let value = unsafe open.pointee.options?[index],
                let decoded = unsafe option.decode(value.num, value.str.map { unsafe String(cString: $0) } ?? "")
            else {
                throw .invalid("option \(option.name) is not in the plugin's list, or the host gave no value")
            }
            return decoded
        }
    }
}
