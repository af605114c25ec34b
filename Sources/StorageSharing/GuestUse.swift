// SPDX-License-Identifier: BSD-2-Clause
// Who uses storage as a disk: the nodes of all backends of this domain, those of other programs too.
import Base
import Xen
import XenBus

/// A disk of some guest, as its backend's node describes it.
struct GuestUse {
    let domain: DomainID
    /// The disk's name in the guest.
    let name: String
    /// As the node has it: "w".
    let mode: String
    /// What the guest reads and writes.
    let location: String
    let format: String
    /// What is known of the storage: by `physical-device`, or by what XBB serves.
    let storage: [StorageID]
    /// What lies below it: it is read only.
    let below: [StorageID]

    var writes: Bool { mode.hasPrefix("w") || mode.hasPrefix("rw") }

    /// The disks of all backends of domain `own` that have storage open or are about to, without that of `node`.
    static func read(_ store: any XenStore, own: DomainID, except node: String?) throws(OperationError) -> [GuestUse] {
        var uses: [GuestUse] = []
        let root = "/local/domain/\(own)/backend"
        for kind in try names(store, root) {
            for domain in try names(store, "\(root)/\(kind)") {
                guard let number = DomainID(domain) else { continue }
                for device in try names(store, "\(root)/\(kind)/\(domain)") {
                    let path = "\(root)/\(kind)/\(domain)/\(device)"
                    if path == node { continue }
                    if let use = try GuestUse(store, path, kind: kind, number, device: device) { uses.append(use) }
                }
            }
        }
        return uses
    }

    private static func names(_ store: any XenStore, _ path: String) throws(OperationError) -> [String] {
        do throws(OperationError) {
            return try store.list(path, in: .none)
        } catch {
            if error.isNotFound { return [] }
            throw error
        }
    }

    /// nil for a node that uses nothing: of another kind of device, closed for good, or with storage that was refused.
    private init?(
        _ store: any XenStore, _ path: String, kind: String, _ domain: DomainID, device: String
    ) throws(OperationError) {
        func key(_ name: String) throws(OperationError) -> String? { try store.text("\(path)/\(name)") }
        guard let mode = try key(BackendKey.mode), let state = try key(BackendKey.state) else { return nil }
        // In state 6 a guest has closed its disk, and its next driver gets it back: only without `online` it is over.
        if state == "6", try key(BackendKey.online) == "0" { return nil }
        if state != "4", try key(BackendKey.hotplugStatus) == "error" { return nil }
        var location = try key(BackendKey.physicalDevicePath) ?? ""
        var format = try key(BackendKey.format) ?? "raw"
        if location.isEmpty, StorageSource(kind: kind) == .params, let params = try key(BackendKey.params) {
            do throws(NegotiationError) {
                let image = try ImageLocation(parsing: params)
                (location, format) = (image.path, image.format.name)
            } catch {
                return nil
            }
        }
        var storage: [StorageID] = []
        var below: [StorageID] = []
        if let text = try key(BackendKey.physicalDevice) {
            do throws(NegotiationError) { storage.append(StorageID(try DeviceNumber(parsing: text))) } catch {}
        }
        // Of a disk that XBB serves, all its files; the attached image comes first.
        let served = (try key(BackendKey.storage) ?? "").split(separator: " ").compactMap(Self.storage)
        storage += served.prefix(1)
        below += served.dropFirst()
        for image in (try key("xbb-chain") ?? "").split(separator: " ").dropFirst() {
            guard let colon = image.firstIndex(of: ":") else { continue }
            if let found = StorageID(path: String(image[image.index(after: colon)...])) { below.append(found) }
        }
        guard !location.isEmpty || !storage.isEmpty else { return nil }
        self.domain = domain
        self.mode = mode
        self.location = location
        self.format = format
        self.storage = storage
        self.below = below
        name = try key(BackendKey.dev) ?? device
    }

    /// "DEVICE:NUMBER" of ``BackendKey/storage``.
    private static func storage(_ text: Substring) -> StorageID? {
        let parts = text.split(separator: ":")
        guard parts.count == 2, let device = UInt64(parts[0]), let number = UInt64(parts[1]) else { return nil }
        return device == 0 ? (number == 0 ? nil : .device(number)) : .file(device: device, inode: number)
    }
}
