// SPDX-License-Identifier: BSD-2-Clause
// The backend's and the frontend's node in XenStore, read and changed in transactions.
import StorageKeeping
import Base
import BlockQueue
import CLinux
import Glibc
import Support
import Xen
import XenBus

/// The two nodes of one VBD. Control thread only; calls block until XenStore answers.
final class NodeStore {
    /// A node of which a watch said that it has changed.
    enum Change {
        case backend
        case frontend
    }

    /// The backend's node.
    let backendPath: String
    /// The frontend's node and domain, as the toolstack wrote them; "" until ``follow(_:)``.
    private(set) var frontendPath = ""
    private(set) var frontendDomain: DomainID = 0
    /// XenStore does not answer any more.
    private(set) var isLost = false
    /// The connection's end was seen.
    private var hasHungUp = false
    /// Watches are set.
    private(set) var isWatching = false
    let store: any XenStore
    private var isBackendChanged = true
    private var isFrontendChanged = true
    private var nextCheck = clinux_monotonic_ns() &+ checkInterval
    private static let checkInterval: UInt64 = 10_000_000_000

    /// A guest can cause any number of errors: what operators find in XenStore changes a few times at once and then once a
    /// second, and is the newest in the end.
    private let errorLimit = RateLimit()
    private var waitingError: String?
    private var nextErrorWrite: UInt64 = .max

    private static var backendToken: String { "backend" }
    private static var frontendToken: String { "frontend" }

    init(_ store: any XenStore, backendPath: String) {
        self.store = store
        self.backendPath = backendPath
    }

    /// The frontend is the one that the backend's node names.
    func follow(_ node: BackendNode) {
        frontendPath = node.frontendPath
        frontendDomain = node.frontendID
    }

    // MARK: Reading

    /// The values of `keys` below `path`, all read in one transaction.
    ///
    /// A key that is missing has none, and so has one that `isAbsent` takes for missing; any other error is thrown.
    private func values(
        _ keys: [String], below path: String, absent isAbsent: (OperationError) -> Bool
    ) throws(OperationError) -> [String: [UInt8]] {
        var found: [String: [UInt8]] = [:]
        for (key, value) in zip(keys, try store.values(of: keys, below: path)) {
            switch value {
            case .success(let bytes): found[key] = bytes
            case .failure(let error): if !isAbsent(error) { throw error }
            }
        }
        return found
    }

    /// The backend's node; nil if it is gone, a failure if a key breaks a rule.
    func readBackend() throws(OperationError) -> Result<BackendNode, NegotiationError>? {
        let found = try values(BackendNode.keys, below: backendPath, absent: \.isNotFound)
        if found[BackendKey.frontendID] == nil && found[BackendKey.state] == nil { return nil }
        do throws(NegotiationError) {
            return .success(try BackendNode { found[$0] })
        } catch {
            return .failure(error)
        }
    }

    /// The frontend's node, a failure if a key breaks a rule. A guest may take away our right to read a key.
    func readFrontend(_ limits: FrontendLimits) throws(OperationError) -> Result<FrontendNode, NegotiationError> {
        var keys = FrontendNode.keys(limits: limits)
        var found = try values(keys, below: frontendPath, absent: Self.isAbsentForUs)
        let all = FrontendNode.keys(limits: limits) { found[$0] }
        if all != keys {
            keys = all
            found = try values(keys, below: frontendPath, absent: Self.isAbsentForUs)
        }
        do throws(NegotiationError) {
            return .success(try FrontendNode(limits: limits) { found[$0] })
        } catch {
            return .failure(error)
        }
    }

    /// `state` and `online` of a node whose other keys may break any rule.
    func readBackendState() throws(OperationError) -> (state: XenbusState?, isOnline: Bool) {
        let found = try values([BackendKey.state, BackendKey.online], below: backendPath, absent: \.isNotFound)
        return (.reading(found[BackendKey.state]), BackendNode.isOnline(reading: found[BackendKey.online]))
    }

    /// The frontend's state, nil where there is none.
    func readFrontendState() throws(OperationError) -> XenbusState? {
        do throws(OperationError) {
            return .reading(try store.read("\(frontendPath)/\(FrontendKey.state)", in: .none))
        } catch {
            if Self.isAbsentForUs(error) { return nil }
            throw error
        }
    }

    private static func isAbsentForUs(_ error: OperationError) -> Bool {
        error.isNotFound || error.code == EACCES
    }

    /// The toolstack's options for the plugin, and settings of the disk: "name=value,name=value".
    func options() throws(OperationError) -> [String: String] {
        BackendNode.options(parsing: try store.text("\(backendPath)/\(BackendKey.options)") ?? "")
    }

    /// How the disk's storage is shared: what the toolstack decided, and the mode that the node asks for.
    func sharing() throws(OperationError) -> (decision: String?, mode: String) {
        let found = try values([BackendKey.sharing, BackendKey.mode], below: backendPath, absent: \.isNotFound)
        func text(_ key: String) -> String? { found[key].flatMap { String(validating: $0, as: UTF8.self) } }
        return (text(BackendKey.sharing), text(BackendKey.mode) ?? "")
    }

    // MARK: Watches

    /// Watches both nodes, which makes them be read again. Only when there is nothing to do for the first time: with a watch
    /// libxenstore has a thread, and each of its answers takes two or three times as long.
    func watch() throws(OperationError) {
        isWatching = true
        try store.watch(backendPath, token: Self.backendToken)
        if !frontendPath.isEmpty {
            try store.watch("\(frontendPath)/\(FrontendKey.state)", token: Self.frontendToken)
        }
    }

    /// Readable while a watch has fired; nil where nothing can come any more.
    var watchDescriptor: Int32? { isLost ? nil : store.watchFileDescriptor }

    /// A frontend may rewrite its node without end: whatever number of events that makes, they are two questions.
    func takeWatchEvents() throws(OperationError) {
        // Not all of them in one go: others wait, too, and the descriptor stays readable.
        for _ in 0..<4096 {
            guard let event = try store.nextWatchEvent() else { return }
            if event.token == Self.backendToken { isBackendChanged = true } else { isFrontendChanged = true }
        }
    }

    /// A node that is to be read again, each once.
    func takeChange() -> Change? {
        if isLost { return nil }
        if isBackendChanged {
            isBackendChanged = false
            return .backend
        }
        defer { isFrontendChanged = false }
        return isFrontendChanged && !frontendPath.isEmpty ? .frontend : nil
    }

    // MARK: The connection

    /// Hangs up when XenStore ends; nil where nothing says so, or after it has.
    var endDescriptor: Int32? { isLost || hasHungUp || store.endDescriptor < 0 ? nil : store.endDescriptor }

    /// When ``check()`` is to be called again, in ns of the monotonic clock.
    var checkDeadline: UInt64 { isLost || store.endDescriptor >= 0 ? .max : nextCheck }

    /// Where nothing says that XenStore has ended, it is asked now and then.
    func check() throws(OperationError) {
        let now = clinux_monotonic_ns()
        if now < checkDeadline { return }
        nextCheck = now &+ Self.checkInterval
        _ = try store.text("domid")
    }

    /// ``endDescriptor`` has hung up: throws what a question meets now.
    func hungUp() throws(OperationError) {
        hasHungUp = true
        _ = try store.text("domid")
    }

    /// Asks whether XenStore lives; from a no on, nothing is read or watched.
    func answers() -> Bool {
        if isLost { return false }
        do throws(OperationError) {
            _ = try store.text("domid")
        } catch {
            isLost = true
        }
        return !isLost
    }

    // MARK: Changes

    /// Makes a change of the backend's node in a transaction that finds the state it expects, or none.
    func apply(_ update: StoreUpdate) throws(OperationError) -> VBDMachine.Event {
        let path = backendPath
        let admitted = update.error.flatMap { admit(error: $0) }
        return try store.transaction { [store] (transaction) throws(OperationError) -> VBDMachine.Event in
            let state: XenbusState?
            do throws(OperationError) {
                state = .reading(try store.read("\(path)/\(BackendKey.state)", in: transaction))
            } catch {
                guard error.isNotFound else { throw error }
                state = nil
            }
            let online = try store.text("\(path)/\(BackendKey.online)", in: transaction)
            let isOnline = BackendNode.isOnline(reading: online.map { Array($0.utf8) })
            guard state == update.replacing, isOnline == update.isOnline else {
                return .backendChanged(state: state, isOnline: isOnline)
            }
            for entry in update.entries {
                switch entry {
                case .write(let key, let value): try store.write("\(path)/\(key)", value, in: transaction)
                case .remove(let key):
                    try store.removeIfPresent("\(path)/\(key)", in: transaction)
                }
            }
            if let error = admitted { try store.write("\(errorNode)/error", error, in: transaction) }
            return .updateDone
        }
    }

    /// Which images a disk consists of, for operators.
    func publish(chain: String) throws(OperationError) {
        try store.write("\(backendPath)/\(BackendKey.chain)", chain)
    }

    /// Writes one of our keys for operators, or removes it where there is nothing to say. A node that is gone is not made again.
    func publish(_ key: String, _ text: String?) throws(OperationError) {
        let path = backendPath
        try store.transaction { [store] (transaction) throws(OperationError) in
            guard try store.text("\(path)/\(BackendKey.state)", in: transaction) != nil else { return }
            if let text { return try store.write("\(path)/\(key)", OperatorText.message(text), in: transaction) }
            try store.removeIfPresent("\(path)/\(key)", in: transaction)
        }
    }

    /// No successor is paused any more; nothing where XenStore is lost.
    func forgetPause(_ log: Log) {
        if isLost { return }
        do throws(OperationError) {
            try publish(BackendKey.paused, nil)
        } catch {
            log.warning("\(error); a successor would be paused for the rest of the time")
        }
    }

    /// Which files and devices the guest is served from, for a successor; ``StorageIdentity/text(_:)``.
    func publish(storage: String) throws(OperationError) {
        try store.write("\(backendPath)/\(BackendKey.storage)", storage)
    }

    /// What ``publish(storage:)`` wrote; nil where it did not.
    func readStorage() throws(OperationError) -> String? {
        try store.text("\(backendPath)/\(BackendKey.storage)")
    }

    /// Says that `process`, this one, has answered every request that it took: for a successor without a journal, and for
    /// xbbd. Or, with `hasLeft`, that the others are in the journal. A node that is gone is not made again.
    func publish(handedOverBy process: String, hasLeft: Bool) {
        let path = backendPath
        let text = process + (hasLeft ? BackendKey.leftRequests : "")
        do throws(OperationError) {
            try store.transaction { [store] (transaction) throws(OperationError) in
                guard try store.text("\(path)/\(BackendKey.state)", in: transaction) != nil else { return }
                try store.write("\(path)/\(BackendKey.handedOver)", text, in: transaction)
            }
        } catch {}  // without it, a successor has to read the journal
    }

    /// How `process` handed over, if ``publish(handedOverBy:hasLeft:)`` was the last thing that it did; else nil.
    func handOver(by process: String) -> Predecessor? {
        do throws(OperationError) {
            let said = try store.text("\(backendPath)/\(BackendKey.handedOver)")
            if said == process { return .handedOver }
            return said == process + BackendKey.leftRequests ? .left : nil
        } catch {
            return nil
        }
    }

    /// Which statistics are the disk's, for a successor.
    func publish(statistics identity: UInt64) throws(OperationError) {
        try store.write("\(backendPath)/\(BackendKey.statistics)", String(identity, radix: 16))
    }

    /// What ``publish(statistics:)`` wrote; nil where it did not.
    func readStatistics() throws(OperationError) -> UInt64? {
        try store.text("\(backendPath)/\(BackendKey.statistics)").flatMap { UInt64($0, radix: 16) }
    }

    /// Writes an error where operators look for it.
    func report(error text: String) throws(OperationError) {
        if let text = admit(error: String(text.prefix(512))) { try store.write("\(errorNode)/error", text) }
    }

    /// The error, if it may be written now; else it waits for ``writeWaitingError()``.
    private func admit(error text: String) -> String? {
        waitingError = nil
        nextErrorWrite = .max
        if errorLimit.admit() != nil { return text }
        waitingError = text
        nextErrorWrite = clinux_monotonic_ns() &+ 1_000_000_000
        return nil
    }

    /// When ``writeWaitingError()`` has something to do, in ns of the monotonic clock.
    var errorDeadline: UInt64 { isLost ? .max : nextErrorWrite }

    /// Writes the newest of the errors that came too fast, when its time has come.
    func writeWaitingError() throws(OperationError) {
        guard let text = waitingError, clinux_monotonic_ns() >= nextErrorWrite else { return }
        try report(error: text)
    }

    /// The device is gone, and with it what was reported of it.
    func removeErrors() {
        waitingError = nil
        do throws(OperationError) { try store.remove(errorNode, in: .none) } catch {}
    }

    /// Where errors of this device stand: "error/" and the backend's path, in the backend's home.
    private var errorNode: String { BackendKey.errorPath(of: backendPath) }
}
