// SPDX-License-Identifier: BSD-2-Clause
// The nodes of a new VBD as libxl makes them (libxl_disk.c device_disk_add, libxl_device.c libxl__device_generic_add).
import Base
import StorageSharing
import Xen
import XenBus

/// What is to be attached, and to whom.
public struct AttachRequest: Equatable, Sendable {
    /// Kind, frontend's domain and device.
    public var address: VBDAddress
    /// The device's name as the user said it: "xvda".
    public var deviceName: String
    /// Image and format.
    public var disk: DiskSpecification
    /// Writes are refused.
    public var isReadOnly: Bool
    /// It is written beside others who write: `w!`.
    public var isShared: Bool
    /// What the guest sees.
    public var kind: Kind

    /// A disk, or a drive whose medium can be changed.
    public enum Kind: Sendable {
        case disk
        /// A disk that says that it is removable.
        case removable
        case cdrom
    }
    /// Options for the plugin.
    public var options: PluginOptions

    /// A disk for a guest.
    public init(
        address: VBDAddress, deviceName: String, disk: DiskSpecification, isReadOnly: Bool, isShared: Bool = false,
        kind: Kind = .disk, options: PluginOptions
    ) {
        self.kind = kind
        self.isShared = isShared
        self.address = address
        self.deviceName = deviceName
        self.disk = disk
        self.isReadOnly = isReadOnly
        self.options = options
    }
}

/// The nodes of one device: what is written where, and who may see it.
struct DeviceNodes: Equatable {
    struct Entry: Equatable {
        let key: String
        let value: String

        init(_ key: String, _ value: String) {
            self.key = key
            self.value = value
        }
    }

    let backendPath: String
    /// The backend's domain owns the node, the guest may read it.
    let backendPermissions: [XenStorePermission]
    let backend: [Entry]
    let frontendPath: String
    /// The guest owns the node, the backend's domain may read it.
    let frontendPermissions: [XenStorePermission]
    let frontend: [Entry]
    let toolstackPath: String
    let toolstack: [Entry]

    /// The nodes for a backend in domain `own`.
    ///
    /// `script` says whose disk it is, and is what libxl runs when it removes the disk with its domain: without the key
    /// it would refuse to (libxl_linux.c, libxl__hotplug_disk). When the disk is added, xbbctl does the script's work.
    init(_ request: AttachRequest, own: DomainID) {
        let address = request.address
        backendPath = address.backendPath(own: own)
        frontendPath = address.frontendPath
        toolstackPath = address.toolstackPath
        backendPermissions = [
            XenStorePermission(domain: own, read: false, write: false),
            XenStorePermission(domain: address.domain, read: true, write: false),
        ]
        frontendPermissions = [
            XenStorePermission(domain: address.domain, read: false, write: false),
            XenStorePermission(domain: own, read: true, write: false),
        ]
        let script =
            StorageSource(kind: address.kind) == .hotplug ? [Entry(BackendKey.script, DiskClaim.scriptPath)] : []
        let deviceType = request.kind == .cdrom ? "cdrom" : "disk"
        // Nothing behind the format is an empty drive in `params`.
        let target = request.disk.target
        let isEmpty = StorageSource(kind: address.kind) == .params && request.disk.path.isEmpty
        let common =
            [Entry(BackendKey.params, isEmpty ? target + "/" : target)] + script + [
                Entry(BackendKey.frontendID, String(address.domain)),
                Entry(BackendKey.online, "1"),
                Entry(BackendKey.removable, request.kind == .disk ? "0" : "1"),
                Entry("bootable", "1"),
                Entry(BackendKey.state, XenbusState.initialising.text),
                Entry(BackendKey.dev, request.deviceName),
                // What libxl calls the kind "vbd".
                Entry(BackendKey.type, address.kind == "vbd" ? "phy" : address.kind),
                Entry(BackendKey.mode, request.isReadOnly ? "r" : request.isShared ? "w!" : "w"),
                Entry(BackendKey.deviceType, deviceType),
                Entry(BackendKey.discardEnable, request.isReadOnly ? "0" : "1"),
                Entry("specification", "xen"),
            ]
        // At once: queues and rings are offered before the storage is known.
        let options = request.options.text.isEmpty ? [] : [Entry(BackendKey.options, request.options.text)]
        backend = [Entry(BackendKey.frontend, frontendPath)] + common + options
        toolstack = [Entry(BackendKey.frontend, frontendPath), Entry("backend", backendPath)] + common
        frontend = [
            Entry("backend", backendPath),
            Entry("backend-id", String(own)),
            Entry(FrontendKey.state, XenbusState.initialising.text),
            Entry("virtual-device", String(address.device)),
            Entry(BackendKey.deviceType, deviceType),
            Entry(FrontendKey.trusted, "1"),
        ]
    }

    /// What a hotplug script writes when its work is done, below the backend's node. Where the toolstack's `params` name
    /// the image there is no script. `number` is that of a block device, by which Xen's own
    /// scripts see who uses it; `sharing` is what stands in ``BackendKey/sharing``.
    static func hotplug(_ request: AttachRequest, number: DeviceNumber? = nil, sharing: String? = nil) -> [Entry] {
        var entries: [Entry] = []
        if let sharing { entries.append(Entry(BackendKey.sharing, sharing)) }
        if StorageSource(kind: request.address.kind) == .hotplug {
            entries.append(Entry(BackendKey.format, request.disk.format.name))
            if let number { entries.append(Entry(BackendKey.physicalDevice, number.hexadecimal)) }
            entries.append(Entry(BackendKey.physicalDevicePath, request.disk.path.isEmpty ? "/" : request.disk.path))
        }
        return entries
    }

    /// Writes everything; nothing of an earlier device stays.
    func write(to store: any XenStore, in transaction: XenStoreTransaction) throws(OperationError) {
        try store.removeIfPresent(toolstackPath, in: transaction)
        for entry in toolstack { try store.write("\(toolstackPath)/\(entry.key)", entry.value, in: transaction) }
        try Self.write(frontend, to: frontendPath, frontendPermissions, store, transaction)
        try Self.write(backend, to: backendPath, backendPermissions, store, transaction)
    }

    /// Nodes inherit the permissions of the node that they are made in.
    private static func write(
        _ entries: [Entry], to path: String, _ permissions: [XenStorePermission], _ store: any XenStore,
        _ transaction: XenStoreTransaction
    ) throws(OperationError) {
        try store.removeIfPresent(path, in: transaction)
        try store.makeDirectory(path, in: transaction)
        try store.setPermissions(of: path, to: permissions, in: transaction)
        for entry in entries { try store.write("\(path)/\(entry.key)", entry.value, in: transaction) }
    }
}
