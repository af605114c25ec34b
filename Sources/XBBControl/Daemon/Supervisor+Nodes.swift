// SPDX-License-Identifier: BSD-2-Clause
// XenStore as xbbd sees it: which VBDs there are and in which state, and what xbbd itself writes.
import Base
import CLinux
import Support
import Xen
import XenBus

extension Supervisor {
    /// So many changed VBDs are kept apart; more of them are one look at the whole directory.
    private static let dirtyLimit = 256
    /// So many names are reported that nothing is done about.
    private static let reportLimit = 64
    /// So many watch events are taken before other work has its turn.
    private static let eventLimit = 4096

    /// The directory of a kind.
    func kindPath(_ kind: String) -> String { "/local/domain/\(own)/backend/\(kind)" }

    /// Turns the watch events that wait into the set of what is to be read: a storm of them is one reading.
    func takeWatchEvents() throws(OperationError) {
        for _ in 0..<Self.eventLimit {
            guard let event = try store.nextWatchEvent() else { return }
            note(path: event.path, kind: event.token)
        }
    }

    /// Marks what a changed path stands for.
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
            hand(.node(facts), to: record)
        } else if let facts {
            let record = Record(address, policy: settings.policy)
            records[address] = record
            hand(.node(facts), to: record)
        }
    }

    /// State and `online` of a VBD that is ours to serve; others are as if they were not there. What a worker serves is
    /// ours until it ends, whoever started it.
    func claimedFacts(of address: VBDAddress) throws(OperationError) -> NodeFacts? {
        guard let facts = try facts(of: address) else { return nil }
        let script = try store.valueIfReadable("\(address.backendPath(own: own))/\(BackendKey.script)")
        let text = script.map { String(decoding: $0, as: UTF8.self) }
        guard let objection = settings.claim.objection(kind: address.kind, script: text) else { return facts }
        if FileLock.isHeld(directory.workerLock(address)) { return facts }
        if facts.state == .initialising { report("\(address)", objection, .info) }
        return nil
    }

    /// State and `online`; nil where the node has no state.
    ///
    /// Not one transaction: a change between the two is followed by a watch event and read again.
    func facts(of address: VBDAddress) throws(OperationError) -> NodeFacts? {
        let path = address.backendPath(own: own)
        guard let state = XenbusState.reading(try store.valueIfReadable("\(path)/\(BackendKey.state)")) else {
            return nil
        }
        let online = try store.valueIfReadable("\(path)/\(BackendKey.online)")
        return NodeFacts(state: state, isOnline: online != [UInt8(ascii: "0")])
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

    /// Says something of a name, once.
    private func report(_ name: String, _ what: String, _ level: LogLevel) {
        guard reportedNames.count < Self.reportLimit, reportedNames.insert(name).inserted else { return }
        log.write(level, "\(name) \(what)")
    }

    // MARK: What is written

    /// Tells the toolstack that nobody serves the VBD: its error node and, while a hotplug script may wait, its answer.
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

    /// Takes back what ``writeFailure(_:of:)`` wrote.
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
    /// nobody answers any more.
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
