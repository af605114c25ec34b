// SPDX-License-Identifier: BSD-2-Clause
// Whether the guest has its storage alone.
import Base
import Glibc
import PluginHost
import StorageSharing
import Support
import Xen
import XenBus

extension VBDWorker {
    /// True where others have the storage too, and the plugin must not insist on having it alone. Throws who uses the
    /// storage in a way that excludes the guest.
    ///
    /// A hotplug script has asked before the worker knows of the storage. Without a script, as for backendtype=qdisk, it is
    /// asked here; not for a guest that has the storage already, which an earlier process served.
    func resolveSharing(_ request: DeviceRequest) throws(OperationError) -> Bool {
        let (decision, mode) = try nodes.sharing()
        let isDevice = StorageID(path: request.image.path)?.deviceNumber != nil
        if let decision, decision != BackendKey.sameGuest {
            log.warning("attached by force, \(decision)")
            return true
        }
        if decision != nil { return isDevice }
        let sharing = SharingCheck.Mode(node: mode)
        guard machine.state == .initWait, let finding = try options.sharing?.get() else { return sharing == .shares }
        if let conflict = finding.conflicts.first { throw OperationError(.open, conflict) }
        return sharing == .shares || finding.isSameGuest && isDevice
    }

    /// Why storage could not be opened, with who holds the lock where a plugin found one.
    func explained(_ error: OperationError, _ request: DeviceRequest) -> OperationError {
        guard error.code == EBUSY, !opener.isConfined,
            let holder = SharingCheck.lockHolder(request.image.path, writes: !request.isReadOnly)
        else { return error }
        return OperationError(.open, "\(error): \(holder)")
    }
}

extension SharingCheck {
    /// Who uses the storage of a VBD whose node no hotplug script has looked at; nil where one does, or where there is no
    /// node or no storage in it yet.
    ///
    /// Takes a connection to XenStore that reads the nodes of other guests, which a worker does not have: for its program,
    /// before it serves.
    public static func examine(
        _ options: VBDOptions, _ store: any XenStore
    ) -> Result<Finding, OperationError>? {
        guard options.storageSource == .params else { return nil }
        let nodes = NodeStore(store, backendPath: options.backendPath)
        do throws(OperationError) {
            guard case .success(let node) = try nodes.readBackend(), let request = Self.request(of: node, options)
            else {
                return nil
            }
            let numbers = options.backendPath.split(separator: "/")
            return .success(
                try SharingCheck(
                    location: request.image.path, format: request.image.format.name,
                    mode: Mode(node: try nodes.sharing().mode), node: options.backendPath, guest: node.frontendID,
                    opaqueFormats: PluginCatalog(directories: options.pluginDirectories).opaqueFormats
                ).run(store, own: numbers.count > 2 ? DomainID(numbers[2]) ?? 0 : 0))
        } catch {
            return .failure(error)
        }
    }

    private static func request(of node: BackendNode, _ options: VBDOptions) -> DeviceRequest? {
        do throws(NegotiationError) { return try node.deviceRequest(from: options.storageSource) } catch { return nil }
    }
}
