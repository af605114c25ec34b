// SPDX-License-Identifier: BSD-2-Clause
// Which block devices consist of which others, or of files: partitions, loop devices, device mapper, md.
import Base
import CLinux
import Glibc

/// The block devices of this machine at one moment.
public struct BlockTopology: Sendable {
    /// One block device.
    public struct Device: Sendable {
        /// "dm-3"
        public var name: String
        /// What people call it: "vg-root"; nil if it has no other name.
        public var label: String?
        /// What its bytes are bytes of: a partition's disk, a loop device's file or device, the parts of a dm or md device.
        public var below: [StorageID]
        /// It is made of others by device mapper, md and the like, which use them: they are in use while it is there.
        public var isHolder: Bool
        /// Nothing is written through it.
        public var isReadOnly: Bool

        /// A device.
        public init(
            name: String, label: String? = nil, below: [StorageID] = [], isHolder: Bool = false,
            isReadOnly: Bool = false
        ) {
            self.name = name
            self.label = label
            self.below = below
            self.isHolder = isHolder
            self.isReadOnly = isReadOnly
        }
    }

    /// All devices, by st_rdev.
    public var devices: [StorageID: Device]

    /// These devices.
    public init(devices: [StorageID: Device]) { self.devices = devices }

    // MARK: Layers

    /// All devices whose bytes are bytes of `storage`, directly or through others; not itself.
    public func above(_ storage: StorageID) -> Set<StorageID> {
        var found: Set<StorageID> = []
        var border: Set<StorageID> = [storage]
        while !border.isEmpty {
            let next = devices.filter { !found.contains($0.key) && $0.value.below.contains(where: border.contains) }
            border = Set(next.keys)
            found.formUnion(border)
        }
        found.remove(storage)
        return found
    }

    /// All devices and files that the bytes of `storage` are bytes of; not itself.
    public func below(_ storage: StorageID) -> Set<StorageID> {
        var found: Set<StorageID> = []
        var border: Set<StorageID> = [storage]
        while !border.isEmpty {
            border = Set(border.flatMap { devices[$0]?.below ?? [] }).subtracting(found)
            found.formUnion(border)
        }
        found.remove(storage)
        return found
    }

    /// "vg-root (dm-3)", or "a device" for one that is not known.
    public func name(of storage: StorageID) -> String {
        guard let device = devices[storage] else { return "a device" }
        return device.label.map { "\($0) (\(device.name))" } ?? device.name
    }

    // MARK: Reading

    /// What sysfs says now (Documentation/ABI/stable/sysfs-block).
    public static func read() -> BlockTopology {
        let root = "/sys/class/block"
        var devices: [StorageID: Device] = [:]
        for name in DirectoryListing.names(in: root) {
            let folder = "\(root)/\(name)"
            guard let number = number(in: folder) else { continue }
            var device = Device(name: name, label: line("\(folder)/dm/name"))
            device.isReadOnly = line("\(folder)/ro") == "1"
            let parts = DirectoryListing.names(in: "\(folder)/slaves")
            device.isHolder = !parts.isEmpty
            device.below = parts.compactMap { self.number(in: "\(folder)/slaves/\($0)").map { StorageID($0) } }
            if line("\(folder)/partition") != nil, let disk = self.number(in: "\(folder)/..") {
                device.below.append(StorageID(disk))
            }
            if name.hasPrefix("loop"), let backing = backing(ofLoop: name, folder) { device.below.append(backing) }
            devices[StorageID(number)] = device
        }
        return BlockTopology(devices: devices)
    }

    private static func line(_ path: String) -> String? {
        SmallFile.contents(path, limit: 4096).map {
            String(decoding: $0.prefix { $0 != UInt8(ascii: "\n") }, as: UTF8.self)
        }
    }

    private static func number(in folder: String) -> DeviceNumber? {
        line("\(folder)/dev").flatMap { DeviceNumber(decimal: $0) }
    }

    /// What a loop device stands for. The kernel tells the numbers of the file, which has been moved perhaps; sysfs has
    /// the name, for those who may not open the device.
    private static func backing(ofLoop name: String, _ folder: String) -> StorageID? {
        guard let path = line("\(folder)/loop/backing_file") else { return nil }
        let raw = unsafe clinux_open("/dev/\(name)", O_RDONLY | O_CLOEXEC | O_NONBLOCK, 0)
        guard raw >= 0 else { return StorageID(path: path) }
        let device = Descriptor(owning: raw)
        // struct loop_info64 of linux/loop.h: 232 bytes, of which the first three numbers are lo_device, lo_inode and
        // lo_rdevice, in the encoding of stat(2).
        var status = [UInt64](repeating: 0, count: 29)
        let loopGetStatus64: UInt = 0x4C05
        let result = unsafe status.withUnsafeMutableBytes {
            unsafe clinux_ioctl_pointer(device.raw, loopGetStatus64, $0.baseAddress)
        }
        guard result == 0 else { return StorageID(path: path) }
        return status[2] != 0 ? .device(status[2]) : .file(device: status[0], inode: status[1])
    }
}
