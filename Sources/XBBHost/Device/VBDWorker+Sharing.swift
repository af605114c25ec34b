// SPDX-License-Identifier: BSD-2-Clause
// Whether the guest has its storage alone.
import Base
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
        guard options.storageSource == .params, machine.state == .initWait else { return sharing == .shares }
        let numbers = options.backendPath.split(separator: "/")
        let own = numbers.count > 2 ? DomainID(numbers[2]) ?? 0 : 0
        let opaque = PluginCatalog(directories: options.pluginDirectories).opaqueFormats
        let finding = try SharingCheck(
            location: request.image.path, format: request.image.format.name, mode: sharing, node: options.backendPath,
            guest: nodes.frontendDomain, opaqueFormats: opaque
        ).run(nodes.store, own: own)
        if let conflict = finding.conflicts.first { throw OperationError(.open, conflict) }
        return sharing == .shares || finding.isSameGuest && isDevice
    }
}
