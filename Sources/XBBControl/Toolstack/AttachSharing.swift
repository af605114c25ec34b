// SPDX-License-Identifier: BSD-2-Clause
// Whether a disk that is to be attached may have its storage, for xbbctl and for the hotplug script.
import Base
import StorageSharing
public import Xen
import XenBus

/// How the sharing of a disk's storage is decided.
public struct AttachSharing {
    /// Formats whose locations are no paths.
    public var opaqueFormats: Set<String>
    /// The disk is attached whoever uses its storage.
    public var isForced: Bool
    /// Gets each use that is overridden.
    public var onOverride: (String) -> Void
    /// Where the locks of hotplug scripts are.
    let locks: String

    /// The rule for disks of this machine, or of the loopback Xen in a directory.
    public init(
        loopback: String?, opaqueFormats: Set<String>, isForced: Bool = false,
        onOverride: @escaping (String) -> Void = { _ in }
    ) {
        self.opaqueFormats = opaqueFormats
        self.isForced = isForced
        self.onOverride = onOverride
        locks = HotplugLock.usualFolder(loopback: loopback)
    }

    /// The same question for a disk whose node is there, `mode` and all: who uses the storage, if anybody, and whether another
    /// domain of the same guest has it. `node` may be relative to the home of this domain, as in XENBUS_PATH.
    public static func check(
        node: String, mode: String, format: String, location: String, opaqueFormats: Set<String>, store: any XenStore
    ) throws(ControlError) -> (conflict: String?, isSameGuest: Bool) {
        guard let address = VBDAddress(node: node) else { throw ControlError("'\(node)' is no node of a disk") }
        let finding = try asControlError { () throws(OperationError) in
            let own = try store.ownDomain()
            return try SharingCheck(
                location: location, format: format, mode: SharingCheck.Mode(node: mode),
                node: address.backendPath(own: own), guest: address.domain, opaqueFormats: opaqueFormats
            ).run(store, own: own)
        }
        return (finding.conflicts.first, finding.isSameGuest)
    }

    /// What is written to ``BackendKey/sharing``; nil where the guest has its storage alone. Throws who uses it.
    func resolve(_ request: AttachRequest, _ store: any XenStore, own: DomainID) throws(ControlError) -> String? {
        let mode: SharingCheck.Mode = request.isShared ? .shares : request.isReadOnly ? .reads : .writes
        let check = SharingCheck(
            location: request.disk.path.isEmpty ? "/" : request.disk.path, format: request.disk.format.name, mode: mode,
            node: request.address.backendPath(own: own), guest: request.address.domain, opaqueFormats: opaqueFormats)
        let finding = try asControlError { () throws(OperationError) in try check.run(store, own: own) }
        guard let first = finding.conflicts.first else { return finding.isSameGuest ? BackendKey.sameGuest : nil }
        guard isForced else {
            throw ControlError(
                "\(first); attaching it would damage it. --readonly and --shared say what is to be shared, --force attaches "
                    + "it all the same")
        }
        for conflict in finding.conflicts { onOverride(conflict) }
        return OperatorText.message("forced: " + finding.conflicts.joined(separator: "; "))
    }
}

extension Toolstack {
    /// Who else uses storage that an attached disk is to get; nil where nobody does.
    public func conflict(
        _ address: VBDAddress, _ disk: DiskSpecification, opaqueFormats: Set<String>
    ) throws(ControlError) -> String? {
        let path = address.backendPath(own: own)
        let mode = try asControlError { () throws(OperationError) in
            try store.text("\(path)/\(BackendKey.mode)") ?? "w"
        }
        return try AttachSharing.check(
            node: path, mode: mode, format: disk.format.name, location: disk.path, opaqueFormats: opaqueFormats,
            store: store
        ).conflict
    }
}
