// SPDX-License-Identifier: BSD-2-Clause
// Attaching and detaching: the part of libxl and of the hotplug script for one disk.
import Base
import CLinux
import StorageSharing
public import Xen
import XenBus

/// Attaches and detaches disks whose backend is in the domain that this runs in. One thread; calls block.
public final class Toolstack {
    /// libxl's limits in seconds: until a backend takes a node, and until storage is there.
    static let takeSeconds = 10.0
    static let hotplugSeconds = 40.0
    /// Until a device that was not wanted after all is closed, in seconds.
    static let removeSeconds = 10.0

    let store: any XenStore
    /// The domain of the backend.
    public let own: DomainID
    private let takeSeconds: Double
    private let claim: DiskClaim
    private let workers: WorkerPresence?

    /// A toolstack in the domain that XenStore says, on this machine or on the loopback Xen in a directory, beside the
    /// xbbd whose workers are `workers`.
    public convenience init(
        store: any XenStore, loopback: String?, workers: WorkerPresence
    ) throws(ControlError) {
        try self.init(
            store: store, takeSeconds: Self.takeSeconds, claim: DiskClaim(loopback: loopback), workers: workers)
    }

    /// Without `workers` it is not known when a disk's worker has ended.
    init(
        store: any XenStore, takeSeconds: Double = Toolstack.takeSeconds, claim: DiskClaim = DiskClaim(),
        workers: WorkerPresence? = nil
    ) throws(ControlError) {
        self.store = store
        self.claim = claim
        self.workers = workers
        self.takeSeconds = takeSeconds
        own = try asControlError { () throws(OperationError) in try store.ownDomain() }
    }

    /// True for a drive whose medium can be changed.
    public func isDrive(_ reference: VBDReference) throws(ControlError) -> Bool {
        let path = try find(reference).backendPath(own: own)
        return try asControlError { () throws(OperationError) in
            if try store.text("\(path)/\(BackendKey.deviceType)") == "cdrom" { return true }
            return try store.text("\(path)/\(BackendKey.removable)") == "1"
        }
    }

    // MARK: Attach

    /// Makes the nodes of a disk and, unless told otherwise, waits until its storage is open.
    ///
    /// `sharing` decides whether the guest may have the storage; without it, it may. Throws what went wrong; then nothing
    /// of the disk is left in XenStore.
    public func attach(_ request: AttachRequest, waits: Bool = true, sharing: AttachSharing? = nil) throws(ControlError)
    {
        if claim.isKernels(request.address.kind) {
            throw ControlError(
                "backend/\(request.address.kind) is served by the kernel's xen-blkback, which is loaded here: unload it "
                    + "and keep it from loading, or use another --kind; see xbbd(8), Coexistence")
        }
        // A disk that is there has its storage: that is no reason of its own.
        try refuseAttached(request)
        // A backend that reads `params` opens the storage as soon as the node is there: all of it is decided and written then.
        if !waits || StorageSource(kind: request.address.kind) == .params {
            try hotplug(request, sharing) { (entries) throws(ControlError) in
                try makeNodes(request, withHotplug: entries)
            }
            if waits {
                try undoing(request.address) { () throws(ControlError) in
                    try waitForBackend(request.address)
                    try waitForStorage(request)
                }
            }
            return
        }
        // Once more below, under the lock; here nothing has to be undone.
        var quiet = sharing
        quiet?.onOverride = { _ in }
        _ = try quiet?.resolve(request, store, own: own)
        try makeNodes(request, withHotplug: nil)
        try undoing(request.address) { () throws(ControlError) in
            try waitForBackend(request.address)
            try hotplug(request, sharing) { (entries) throws(ControlError) in
                try writeHotplug(entries, of: request.address)
            }
            try waitForStorage(request)
        }
    }

    /// Does the rest of an attachment; where that fails, nothing of the disk is left.
    private func undoing(_ address: VBDAddress, _ body: () throws(ControlError) -> Void) throws(ControlError) {
        do throws(ControlError) {
            try body()
        } catch {
            try undo(address, error)
            throw error
        }
    }

    /// Removes what was made of a disk after `error`; throws both where that fails too.
    private func undo(_ address: VBDAddress, _ error: ControlError) throws(ControlError) {
        do throws(ControlError) {
            _ = try close(address, removesFrontend: true, seconds: Self.removeSeconds)
            _ = workers?.awaitEnd(of: address, seconds: Self.removeSeconds)
            try delete(address)
        } catch let second {
            throw ControlError("\(error); and what was made of it stays: \(second)", status: error.status)
        }
    }

    /// Does a hotplug script's work: decides about sharing and lets `write` say that the guest has the storage, while no
    /// other script looks.
    private func hotplug(
        _ request: AttachRequest, _ sharing: AttachSharing?,
        _ write: ([DeviceNodes.Entry]) throws(ControlError) -> Void
    ) throws(ControlError) {
        let number = StorageID(path: request.disk.path)?.deviceNumber
        guard let sharing else { return try write(DeviceNodes.hotplug(request, number: number)) }
        let lock = try HotplugLock(folder: sharing.locks)
        let word = try sharing.resolve(request, store, own: own)
        try write(DeviceNodes.hotplug(request, number: number, sharing: word))
        _ = consume lock
    }

    private func makeNodes(_ request: AttachRequest, withHotplug entries: [DeviceNodes.Entry]?) throws(ControlError) {
        let address = request.address
        let nodes = DeviceNodes(request, own: own)
        let problem = try asControlError { () throws(OperationError) -> String? in
            try store.transaction { (transaction) throws(OperationError) -> String? in
                let home = "/local/domain/\(address.domain)"
                if try store.childrenIfPresent(home, in: transaction).isEmpty {
                    return "domain \(address.domain) does not exist"
                }
                if let problem = try occupied(request, nodes, in: transaction) { return problem }
                try nodes.write(to: store, in: transaction)
                if let entries { try writeEntries(entries, of: address, in: transaction) }
                return nil
            }
        }
        if let problem { throw ControlError(problem) }
    }

    /// Why a device cannot be made; nil where there is none yet.
    private func occupied(
        _ request: AttachRequest, _ nodes: DeviceNodes, in transaction: XenStoreTransaction = .none
    ) throws(OperationError) -> String? {
        let domain = request.address.domain
        for path in [nodes.backendPath, nodes.toolstackPath] {
            if try store.childrenIfPresent(path, in: transaction).isEmpty { continue }
            return "\(request.deviceName) of domain \(domain) is attached already, see \(path); "
                + "'xbbctl detach \(domain) \(request.deviceName)' takes it away"
        }
        return nil
    }

    private func refuseAttached(_ request: AttachRequest) throws(ControlError) {
        let problem = try asControlError { () throws(OperationError) in
            try occupied(request, DeviceNodes(request, own: own))
        }
        if let problem { throw ControlError(problem) }
    }

    private func waitForBackend(_ address: VBDAddress) throws(ControlError) {
        let path = address.backendPath(own: own)
        let taken = try asControlError { () throws(OperationError) -> XenbusState? in
            try store.wait(for: path, seconds: takeSeconds) { () throws(OperationError) -> XenbusState? in
                let state = try readState(of: path)
                return state == .initialising ? nil : state ?? .unknown
            }
        }
        switch taken {
        case .initWait?, .initialised?, .connected?: return
        case nil:
            throw ControlError(
                "no backend took \(path) within \(Int(takeSeconds)) s; is xbbd running, and does it serve "
                    + "'--backend \(address.kind)'?", status: .timedOut)
        case .some(let state):
            throw ControlError("the backend of \(path) went to state \(state): \(try problem(of: address))")
        }
    }

    private func writeHotplug(_ entries: [DeviceNodes.Entry], of address: VBDAddress) throws(ControlError) {
        let path = address.backendPath(own: own)
        let isThere = try asControlError { () throws(OperationError) -> Bool in
            try store.transaction { (transaction) throws(OperationError) -> Bool in
                guard try readState(of: path, in: transaction) != nil else { return false }
                try writeEntries(entries, of: address, in: transaction)
                return true
            }
        }
        if !isThere { throw ControlError("\(path) was removed while the disk was being attached") }
    }

    private func writeEntries(
        _ entries: [DeviceNodes.Entry], of address: VBDAddress, in transaction: XenStoreTransaction
    ) throws(OperationError) {
        let path = address.backendPath(own: own)
        for entry in entries { try store.write("\(path)/\(entry.key)", entry.value, in: transaction) }
    }

    private func waitForStorage(_ request: AttachRequest) throws(ControlError) {
        let path = request.address.backendPath(own: own)
        let status = try asControlError { () throws(OperationError) in
            try store.wait(for: path, seconds: Self.hotplugSeconds) { () throws(OperationError) -> String? in
                if try readState(of: path) == nil { return "gone" }
                let status = try store.text("\(path)/\(BackendKey.hotplugStatus)")
                return status == "connected" || status == "error" ? status : nil
            }
        }
        switch status {
        case "connected": return
        case "error": throw ControlError("\(request.disk.name): \(try problem(of: request.address))")
        case "gone": throw ControlError("\(path) was removed while the disk was being attached")
        default:
            let reason = try reason(of: request.address) ?? "'xbbctl show' and the log of xbbd may say why"
            throw ControlError(
                "\(request.disk.name) was not opened within \(Int(Self.hotplugSeconds)) s; \(reason)", status: .timedOut
            )
        }
    }

    /// Why a disk does not get on: its worker does not answer, or says what does not end.
    private func reason(of address: VBDAddress) throws(ControlError) -> String? {
        if let silence = workers?.silence(of: address) { return silence }
        return try stall(of: address)
    }

    /// What of a disk does not end, as its worker has written.
    private func stall(of address: VBDAddress) throws(ControlError) -> String? {
        try asControlError { () throws(OperationError) in
            try store.text("\(address.backendPath(own: own))/\(BackendKey.stall)")
        }
    }

    /// What the backend or xbbd wrote about a failure.
    private func problem(of address: VBDAddress) throws(ControlError) -> String {
        try asControlError { () throws(OperationError) in
            let path = address.backendPath(own: own)
            if let text = try store.text("\(path)/\(BackendKey.hotplugError)") { return text }
            return try store.text("\(address.errorPath(own: own))/error") ?? "the log of xbbd may say why"
        }
    }

    // MARK: Detach

    /// The VBD of a device, whatever its kind. Throws where there is none or more than one.
    public func find(_ reference: VBDReference) throws(ControlError) -> VBDAddress {
        let found = try asControlError { () throws(OperationError) -> [VBDAddress] in
            var found: [VBDAddress] = []
            for kind in try store.childrenIfPresent("/local/domain/\(own)/backend").sorted() {
                guard let address = VBDAddress(kind: kind, domain: reference.domain, device: reference.device),
                    reference.matches(address), try readState(of: address.backendPath(own: own)) != nil
                else { continue }
                found.append(address)
            }
            return found
        }
        guard let address = found.first else {
            throw ControlError(
                "domain \(reference.domain) has no disk \(VirtualDevice.name(of: reference.device)) here; "
                    + "'xbbctl list' shows those that there are")
        }
        guard found.count == 1 else {
            let kinds = found.map(\.kind).joined(separator: ", ")
            throw ControlError("there is one of each kind: \(kinds); --kind says which")
        }
        return address
    }

    /// What became of a disk.
    public enum Detachment: Equatable, Sendable {
        /// The backend closed it.
        case closed
        /// It was taken away by force and the backend had not said that it is closed.
        case torn
    }

    /// Asks guest and backend to give a disk up, waits until the storage is closed and removes the disk's nodes.
    ///
    /// A backend that is in state 6 because its guest had closed before has the storage open still: what counts is the
    /// end of its process, with which all its locks end. With `force` the guest is not asked, and the nodes are removed in the end whatever the backend does. Throws
    /// `.timedOut` where the guest keeps the disk; the request stands then, and detaching may be tried again.
    public func detach(_ address: VBDAddress, force: Bool, seconds: Double) throws(ControlError) -> Detachment {
        let deadline = clinux_monotonic_ns() &+ UInt64(min(max(seconds, 0), 1e6) * 1e9)
        var isClosed = try close(address, removesFrontend: force, seconds: seconds)
        if !isClosed && !force {
            let frontend = try asControlError { () throws(OperationError) in try readState(of: address.frontendPath) }
            let peer = frontend.map { "the guest's side is in state \($0)" } ?? "the guest's side is gone"
            throw ControlError(
                "\(VirtualDevice.name(of: address.device)) of domain \(address.domain) is still in use after "
                    + "\(seconds) s, \(try reason(of: address) ?? peer); it goes when the guest lets it go, or with --force",
                status: .timedOut)
        }
        if isClosed, let workers {
            let now = clinux_monotonic_ns()
            isClosed = workers.awaitEnd(of: address, seconds: Double(max(deadline, now) - now) / 1e9)
            if !isClosed && !force {
                throw ControlError(
                    "\(VirtualDevice.name(of: address.device)) of domain \(address.domain) is closed, and its worker "
                        + "has not ended after \(seconds) s: its storage may still be open; 'xbbctl list' and the log of "
                        + "xbbd say more", status: .timedOut)
            }
        }
        try delete(address)
        return isClosed ? .closed : .torn
    }

    /// Asks for the end of a device; true when the backend has said that it is closed, or the node is gone.
    private func close(
        _ address: VBDAddress, removesFrontend: Bool, seconds: Double
    ) throws(ControlError) -> Bool {
        let path = address.backendPath(own: own)
        return try asControlError { () throws(OperationError) -> Bool in
            let isOver = try store.transaction { (transaction) throws(OperationError) -> Bool in
                if removesFrontend { try store.removeIfPresent(address.frontendPath, in: transaction) }
                let state = try readState(of: path, in: transaction)
                guard let state else { return true }
                try store.write("\(path)/\(BackendKey.online)", "0", in: transaction)
                // Nobody serves a device in state 1 yet: there is no need to wait for an answer.
                if state == .closed || (state == .initialising && removesFrontend) { return true }
                try store.write("\(path)/\(BackendKey.state)", XenbusState.closing.text, in: transaction)
                return false
            }
            if isOver { return true }
            let end = try store.wait(for: path, seconds: seconds) { () throws(OperationError) -> Bool? in
                let state = try readState(of: path)
                return state == nil || state == .closed ? true : nil
            }
            return end != nil
        }
    }

    private func delete(_ address: VBDAddress) throws(ControlError) {
        try asControlError { () throws(OperationError) in
            try store.transaction { (transaction) throws(OperationError) in
                for path in [
                    address.toolstackPath, address.frontendPath, address.backendPath(own: own),
                    address.errorPath(own: own),
                ] { try store.removeIfPresent(path, in: transaction) }
                let directory = "/local/domain/\(own)/backend/\(address.kind)/\(address.domain)"
                if try store.childrenIfPresent(directory, in: transaction).isEmpty {
                    try store.removeIfPresent(directory, in: transaction)
                }
            }
        }
    }

    private func readState(
        of path: String, in transaction: XenStoreTransaction = .none
    ) throws(OperationError) -> XenbusState? {
        XenbusState.reading(try store.valueIfReadable("\(path)/\(BackendKey.state)", in: transaction))
    }
}

/// Runs `body`; an error of XenStore becomes one for the user.
func asControlError<Result>(_ body: () throws(OperationError) -> Result) throws(ControlError) -> Result {
    do throws(OperationError) {
        return try body()
    } catch {
        throw ControlError("\(error)")
    }
}
