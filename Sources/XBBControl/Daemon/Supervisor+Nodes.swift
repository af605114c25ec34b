// SPDX-License-Identifier: BSD-2-Clause
// XenStore as xbbd uses it: which VBDs there are, in which state they are, and what xbbd itself writes.
import Base
import CLinux
import Support
import Xen
import XenBus

extension Supervisor {
    /// The most changed VBDs that are tracked one by one; beyond that, the whole directory is read.
    private static let dirtyLimit = 256
    /// The most names that are reported as not served.
    private static let reportLimit = 64
    /// The most watch events that are taken before other work gets its turn.
    private static let eventLimit = 4096

    /// The directory of a kind.
    func kindPath(_ kind: String) -> String { "/local/domain/\(own)/backend/\(kind)" }

    /// Collects the waiting watch events into the set of nodes to read, so that a storm of events causes only one read.
    func takeWatchEvents() throws(OperationError) {
        for _ in 0..<Self.eventLimit {
            guard let event = try store.nextWatchEvent() else { return }
            note(path: event.path, kind: event.token)
        }
    }

    /// Marks the node that a changed path belongs to.
    func note(path: String, kind: String) {
        guard !dirtyKinds.contains(kind) else { return }
        let base = kindPath(kind) + "/"
        let names = path.hasPrefix(base) ? path.dropFirst(base.count).split(separator: "/") : []
        guard names.count >= 2, dirty.count < Self.dirtyLimit else {
            dirtyKinds.insert(kind)
            return
        }
        if let address = VBDAddress(kind: kind[...], domain: names[0], device: names[1]) {
            dirty.insert(address)
        } else {
            dirtyKinds.insert(kind)  // the look at the directory reports it
        }
    }

    /// Reads what has changed.
    func readChanges() throws(OperationError) {
        var changed = dirty
        let kinds = dirtyKinds
        dirty = []
        dirtyKinds = []
        for kind in kinds {
            changed.formUnion(records.keys.filter { $0.kind == kind })
            changed.formUnion(try addresses(kind: kind))
        }
        for address in changed.sorted() { try readNode(address) }
    }

    private func readNode(_ address: VBDAddress) throws(OperationError) {
        let facts = try claimedFacts(of: address)
        if let record = records[address] {
            record.location = nil
            if facts == nil { noteGone(record) }
            try careForExchange(record, facts)
            hand(.node(facts), to: record)
        } else if let facts {
            let taken = Set(records.values.compactMap(\.user))
            let record = Record(
                address, user: settings.users?.number(of: address, taken: taken), policy: settings.policy)
            record.storage = storageStore?.take(address)
            record.images = (record.storage?.images ?? []).map { ServedImage(path: $0.path, identity: $0.identity) }
            records[address] = record
            if facts.exchange != nil, !FileLock.isHeld(directory.workerLock(address)) { endExchange(record, facts) }
            hand(.node(try claimedFacts(of: address)), to: record)
            try careForExchange(record, facts)
        }
    }

    /// State and `online` of a VBD that we serve; nil for any other. A VBD that a worker serves is ours until the
    /// worker ends, whoever started it.
    func claimedFacts(of address: VBDAddress) throws(OperationError) -> NodeFacts? {
        guard let facts = try facts(of: address) else { return nil }
        let script = try store.valueIfReadable("\(address.backendPath(own: own))/\(BackendKey.script)")
        let text = script.map { String(decoding: $0, as: UTF8.self) }
        guard let objection = settings.claim.objection(kind: address.kind, script: text) else { return facts }
        if FileLock.isHeld(directory.workerLock(address)) { return facts }
        if facts.state == .initialising { report("\(address)", objection, .info) }
        return nil
    }

    /// State and `online`; nil if the node has no state.
    ///
    /// Not read in one transaction: a change in between causes a watch event, and both are read again.
    func facts(of address: VBDAddress) throws(OperationError) -> NodeFacts? {
        let path = address.backendPath(own: own)
        guard let state = XenbusState.reading(try store.valueIfReadable("\(path)/\(BackendKey.state)")) else {
            return nil
        }
        func text(_ key: String) throws(OperationError) -> String? {
            try store.valueIfReadable("\(path)/\(key)").map { String(decoding: $0, as: UTF8.self) }
        }
        var facts = NodeFacts(state: state, isOnline: try text(BackendKey.online) != "0")
        facts.releasedUntil = try text(BackendKey.released).flatMap { UInt64($0) }
        facts.exchange = try text(BackendKey.swap).flatMap { StorageExchange($0) }
        if let exchange = facts.exchange { facts.isExchangeServed = try text(BackendKey.swapServed) == exchange.text }
        return facts
    }

    /// True if the process has said that it let the disk go with nothing in flight: in the node, or, of an earlier version, in
    /// the file of the lock. What it says counts for its own disk alone.
    func handOver(of process: WorkerProcess, _ address: VBDAddress) -> WorkerExit? {
        if FileLock.note(directory.workerLock(address)) == FileLock.handedOver { return .handedOver }
        guard let identity = process.identity else { return nil }
        do throws(OperationError) {
            guard let said = try saidAtHandOver(of: address) else { return nil }
            if said + "\n" == identity.note { return .handedOver }
            return said == identity.note.dropLast() + BackendKey.leftRequests ? .leftRequests : nil
        } catch {
            return nil
        }
    }

    /// How the last process handed over that did, where an xbbd before this one saw its end.
    func lastHandOver(of address: VBDAddress) -> WorkerExit {
        do throws(OperationError) {
            let hasLeft = try saidAtHandOver(of: address)?.hasSuffix(BackendKey.leftRequests) == true
            return hasLeft ? .leftRequests : .handedOver
        } catch {
            return .leftRequests  // the journal says what there is
        }
    }

    /// What the last process that handed over wrote into the node; nil: none has.
    private func saidAtHandOver(of address: VBDAddress) throws(OperationError) -> String? {
        let said = try store.valueIfReadable("\(address.backendPath(own: own))/\(BackendKey.handedOver)")
        return said.map { String(decoding: $0, as: UTF8.self) }
    }

    private func addresses(kind: String) throws(OperationError) -> [VBDAddress] {
        var found: [VBDAddress] = []
        for domain in try store.childrenIfPresent(kindPath(kind)) {
            guard DecimalText.domain(domain) != nil else {
                reportJunk("\(kind)/\(domain)", "no domain")
                continue
            }
            for device in try store.childrenIfPresent("\(kindPath(kind))/\(domain)") {
                if let address = VBDAddress(kind: kind[...], domain: domain[...], device: device[...]) {
                    found.append(address)
                } else {
                    reportJunk("\(kind)/\(domain)/\(device)", "no virtual device")
                }
            }
        }
        return found
    }

    private func reportJunk(_ name: String, _ what: String) {
        report("backend/\(OperatorText.escaped(name.utf8, limit: 128))", "is \(what) and ignored", .warning)
    }

    /// Logs something about a name, once.
    private func report(_ name: String, _ what: String, _ level: LogLevel) {
        guard reportedNames.count < Self.reportLimit, reportedNames.insert(name).inserted else { return }
        log.write(level, "\(name) \(what)")
    }

    /// The last error of a disk that somebody reported; nil where nobody did, or XenStore does not tell.
    func lastError(of address: VBDAddress) -> String? {
        do throws(OperationError) {
            return try store.valueIfReadable("\(address.errorPath(own: own))/error").map {
                OperatorText.message(String(decoding: $0, as: UTF8.self))
            }
        } catch {
            return nil
        }
    }

    // MARK: What is written

    /// Tells the toolstack that nobody serves the VBD: writes its error node and, if a hotplug script may be waiting,
    /// the hotplug status.
    func writeFailure(_ text: String, of address: VBDAddress) {
        let path = address.backendPath(own: own)
        let message = OperatorText.message("xbbd: \(text)")
        attempt("write the error of \(address)") { (transaction) throws(OperationError) in
            guard try store.text("\(path)/\(BackendKey.state)", in: transaction) != nil else { return }
            try store.write("\(address.errorPath(own: own))/error", message, in: transaction)
            if try store.text("\(path)/\(BackendKey.hotplugStatus)", in: transaction) == nil {
                try store.write("\(path)/\(BackendKey.hotplugError)", message, in: transaction)
                try store.write("\(path)/\(BackendKey.hotplugStatus)", "error", in: transaction)
            }
        }
    }

    /// Removes what ``writeFailure(_:of:)`` wrote.
    func clearFailure(of address: VBDAddress) {
        let path = address.backendPath(own: own)
        attempt("remove the error of \(address)") { (transaction) throws(OperationError) in
            try store.removeIfPresent(address.errorPath(own: own), in: transaction)
            let error = try store.text("\(path)/\(BackendKey.hotplugError)", in: transaction)
            guard let error, error.hasPrefix("xbbd: ") else { return }
            try store.removeIfPresent("\(path)/\(BackendKey.hotplugError)", in: transaction)
            try store.removeIfPresent("\(path)/\(BackendKey.hotplugStatus)", in: transaction)
        }
    }

    /// Writes a state for a VBD that has no worker: 6 for a toolstack that waits for it, 5 for a guest whose requests
    /// are no longer answered.
    func change(_ address: VBDAddress, from old: XenbusState, to new: XenbusState) {
        let path = address.backendPath(own: own)
        attempt("write state \(new.text) of \(address)") { (transaction) throws(OperationError) in
            let state = XenbusState.reading(try store.valueIfReadable("\(path)/\(BackendKey.state)", in: transaction))
            guard state == old else { return }
            try store.write("\(path)/\(BackendKey.state)", new.text, in: transaction)
        }
    }

    private func attempt(_ what: String, _ body: (XenStoreTransaction) throws(OperationError) -> Void) {
        do throws(OperationError) {
            try store.transaction(body)
        } catch {
            log.error("\(what): \(error)")
        }
    }
}
