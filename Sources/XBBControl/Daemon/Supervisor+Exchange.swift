// SPDX-License-Identifier: BSD-2-Clause
// Other storage for a disk whose guest is connected (xbbctl swap). docs/recovery.md has the steps, and what a kill at each of
// them leaves.
//
//   asked ── worker paused ──► told to hand over ── it ended ──► node names the new storage ──► a worker tries it
//     └─ not paused: refused                                                          served ◄──┤
//                                       node names the storage before, a worker has it back ◄───┘ it ended, or time is over
import Base
import CLinux
import Glibc
import StorageKeeping
import Support
import Xen
import XenBus

/// An exchange of a disk's storage, as long as this xbbd follows it.
struct Exchange {
    /// How far it has come.
    enum Step: Equatable {
        /// The worker is asked to pause.
        case pausing
        /// The worker was told to hand over.
        case ending
        /// The node names the new storage.
        case trying
        /// The node names the storage before again.
        case returning
    }

    var step: Step
    let name: String
    let target: ExchangeTarget?
    var client: ControlServer.ClientID?
    /// When it is given up, in ns of CLOCK_MONOTONIC; nil: not any more.
    var deadline: UInt64?
    /// The open files from before, for the way back.
    var before: KeptStorage?
    /// How the worker ended that served the storage before; nil: an xbbd before this one knew it.
    var exitBefore: WorkerExit?
    /// Why it is going back.
    var problem: String?
    /// Since when no request is taken, in ns of CLOCK_MONOTONIC.
    var since: UInt64 = clinux_monotonic_ns()
}

extension Supervisor {
    /// Begins to give a disk other storage, and answers when that is served or the disk has what it had before.
    func exchange(
        _ record: Record, _ target: ExchangeTarget, seconds: String, condition: ExchangeCondition? = nil,
        for client: ControlServer.ClientID
    ) throws(ControlError) {
        let deadline = try Self.end(of: seconds)
        try target.checkSettings()
        var isReleased = false
        if case .released = record.supervision.phase { isReleased = true }
        let isFree = record.exchange == nil && (isReleased || record.supervision.node?.exchange == nil)
        guard isFree || record.awaitsStorage, !record.isReleasing else {
            throw Self.isBusy(record)
        }
        try check(condition, of: record, isReleased: isReleased)
        switch record.replacement {
        case .preparing, .draining:
            throw ControlError("\(record.address) is being upgraded; try again", status: .timedOut)
        case .none, .onTrial, .rolledBack: break
        }
        let name = String(UInt64.random(in: 1...UInt64.max), radix: 16)
        var exchange = Exchange(step: .pausing, name: name, target: target, client: client, deadline: deadline)
        if isReleased {
            exchange.step = .ending
            record.exchange = exchange
            guard beginTrying(record) else { return }
            return readAgain(record)
        }
        if record.awaitsStorage {
            // Its worker serves nobody, so that there is nothing to pause.
            guard let process = record.process else { throw missingWorker(of: record) }
            exchange.step = .ending
            record.exchange = exchange
            return process.send(SIGTERM)
        }
        // The pause itself is what a hanging plugin does not come through: the disk goes on as before then.
        try ask(record, "pause \(seconds) brief", limit: Self.pauseLimit) { [unowned self, weak record] result in
            guard let record, record.exchange?.step == .pausing else { return }
            do throws(ControlError) {
                _ = try ControlAnswer(line: try result.get())
                guard let process = record.process else { throw missingWorker(of: record) }
                record.exchange?.step = .ending
                record.exchange?.since = clinux_monotonic_ns()
                process.send(SIGTERM)
                log(record.address).info(
                    "\(record.address): worker \(process.process) is told to hand over, for other storage")
            } catch {
                record.exchange = nil
                refuse(error, to: client)
            }
        }
        record.exchange = exchange
    }

    /// Something is done to the disk already, which ends soon.
    static func isBusy(_ record: Record) -> ControlError {
        ControlError("\(record.address) is being paused, or gets other storage; try again", status: .timedOut)
    }

    /// Throws if the disk may have had other storage, or a guest that wrote, since `condition` was taken.
    private func check(_ condition: ExchangeCondition?, of record: Record, isReleased: Bool) throws(ControlError) {
        let holds: Bool
        switch condition {
        case nil: return
        case .worker(let number): holds = record.process.map { UInt64(clamping: $0.process) == number } ?? false
        case .release(let name):
            let now = try releaseName(of: record)
            holds = isReleased && name == now
        }
        if !holds {
            throw ControlError(
                "\(record.address) went on, or got another worker, meanwhile: what was written since would be lost")
        }
    }

    /// Which release of its storage a disk is in; nil without one.
    func releaseName(of record: Record) throws(ControlError) -> String? {
        do throws(OperationError) {
            let path = record.address.backendPath(own: own)
            return try store.text("\(path)/\(BackendKey.swap)").flatMap { StorageExchange($0)?.name }
        } catch {
            throw ControlError("\(record.address): \(error)")
        }
    }

    // MARK: Steps

    /// A worker has ended. True if that was one of the steps.
    func noteExchange(_ exit: WorkerExit, of record: Record) -> Bool {
        guard let exchange = record.exchange else { return false }
        switch exchange.step {
        case .pausing: return false  // its answer does not come, which ends the exchange
        case .ending:
            guard [.handedOver, .leftRequests].contains(exit) else {
                endExchange(record, refusing: "the worker ended with \(exit) and not as it was told", .timedOut)
                return false
            }
            _ = beginTrying(record)
            return true
        case .trying:
            do throws(OperationError) {
                guard let facts = try claimedFacts(of: record.address) else { return false }
                endExchange(record, facts, exit)
                return !facts.isExchangeServed
            } catch {
                log(record.address).error("\(record.address): \(error)")
                return false
            }
        case .returning: return false
        }
    }

    /// Nobody serves the disk: the node names the new storage from here on. False where it cannot be written.
    private func beginTrying(_ record: Record) -> Bool {
        guard let exchange = record.exchange, let target = exchange.target,
            let word = StorageExchange(name: exchange.name, .forth)
        else { return false }
        do throws(ControlError) {
            try change(record, "write the new storage of") { (path, transaction) throws(OperationError) in
                let target = target.keepingSettings(
                    of: try store.text("\(path)/\(BackendKey.options)", in: transaction))
                for (key, value) in target.keys(for: StorageSource(kind: record.address.kind)) {
                    let old = try store.text("\(path)/\(key)", in: transaction)
                    try write(value, to: "\(path)/\(key)", transaction)
                    try write(old, to: "\(path)/\(BackendKey.swap)/\(key)", transaction)
                }
                try endHold(at: path, transaction)
                for key in [BackendKey.released, BackendKey.swapServed] {
                    try store.removeIfPresent("\(path)/\(key)", in: transaction)
                }
                try store.write("\(path)/\(BackendKey.swap)", word.text, in: transaction)
                return true
            }
        } catch {
            endExchange(record, refusing: error.description)
            return false
        }
        record.storage?.releaseLocks(for: target.identity ?? .nothing)
        record.holder = nil
        record.exchange?.before = record.storage
        record.exchange?.exitBefore = record.lastExit
        record.storage = nil
        record.exchange?.step = .trying
        clearError(of: record.address)
        log(record.address).info("\(record.address): gets \(target.format):\(OperatorText.message(target.location))")
        return true
    }

    /// A worker that tried the new storage has ended, or there is none: what counts is whether a guest may have been served.
    func endExchange(_ record: Record, _ facts: NodeFacts, _ exit: WorkerExit? = nil) {
        guard let word = facts.exchange, word.direction == .forth else { return }
        if facts.isExchangeServed { return finishExchange(record, word) }
        let end = exit.map { "the worker ended with \($0)" } ?? "xbbd ended meanwhile"
        let reason = lastError(of: record.address) ?? end
        goBack(record, word, because: record.exchange?.problem ?? reason)
    }

    private func goBack(_ record: Record, _ word: StorageExchange, because reason: String) {
        guard let back = StorageExchange(name: word.name, .back) else { return }
        do throws(ControlError) {
            try change(record, "name the storage before of") { (path, transaction) throws(OperationError) in
                guard try store.text("\(path)/\(BackendKey.swap)", in: transaction) == word.text else { return false }
                let keys = [
                    BackendKey.params, BackendKey.format, BackendKey.physicalDevicePath, BackendKey.physicalDevice,
                    BackendKey.options,
                ]
                // A kind of disk has those keys alone that were written.
                let isHotplug = StorageSource(kind: record.address.kind) == .hotplug
                for key in keys where isHotplug || key == BackendKey.params || key == BackendKey.options {
                    let old = try store.text("\(path)/\(BackendKey.swap)/\(key)", in: transaction)
                    try write(old, to: "\(path)/\(key)", transaction)
                }
                try store.removeIfPresent("\(path)/\(BackendKey.swap)", in: transaction)
                try store.write("\(path)/\(BackendKey.swap)", back.text, in: transaction)
                return true
            }
        } catch {
            log(record.address).error(error.description)
        }
        letStorageGo(record)
        if let before = record.exchange?.before {
            record.storage = before
            record.images = before.images.map { ServedImage(path: $0.path, identity: $0.identity) }
            storageStore?.put(before, of: record.address)
        }
        // Whoever tried has taken no request: how it ended says nothing of those that there are.
        record.lastExit = record.exchange?.exitBefore ?? lastHandOver(of: record.address)
        clearError(of: record.address)
        log(record.address).error("\(record.address): the storage before is served again: \(reason)")
        record.exchange = Exchange(
            step: .returning, name: word.name, target: nil, client: record.exchange?.client,
            deadline: clinux_monotonic_ns() &+ Self.adoptedLimit, problem: reason)
    }

    /// The guest is served: from the new storage, or from the one before again.
    private func finishExchange(_ record: Record, _ word: StorageExchange) {
        do throws(ControlError) {
            try change(record, "end the exchange of") { (path, transaction) throws(OperationError) in
                guard try store.text("\(path)/\(BackendKey.swap)", in: transaction) == word.text else { return true }
                for key in [BackendKey.swap, BackendKey.swapServed] {
                    try store.removeIfPresent("\(path)/\(key)", in: transaction)
                }
                // What a toolstack reads back.
                let copy = "\(record.address.toolstackPath)/\(BackendKey.params)"
                if let params = try store.text("\(path)/\(BackendKey.params)", in: transaction),
                    try store.text(copy, in: transaction) != nil
                {
                    try store.write(copy, params, in: transaction)
                }
                return true
            }
        } catch {
            return log(record.address).error(error.description)  // the next change of the node tries again
        }
        let exchange = record.exchange
        record.exchange = nil
        if word.direction == .forth { log(record.address).info("\(record.address): is served from the new storage") }
        guard let client = exchange?.client else { return }
        if word.direction == .forth { return answerSwapped(exchange, to: client) }
        refuse(
            ControlError("\(exchange?.problem ?? "it failed"); \(record.address) has the storage that it had before"),
            to: client)
    }

    private func answerSwapped(_ exchange: Exchange?, to client: ControlServer.ClientID) {
        let since = exchange.map { (clinux_monotonic_ns() &- $0.since) / RestartPolicy.millisecond }
        answer(
            .object([("result", .string("swapped")), ("pause_ms", since.map { .integer($0) } ?? .null)]), to: client)
    }

    /// Nothing was changed.
    private func endExchange(_ record: Record, refusing problem: String, _ status: ControlStatus = .failed) {
        let client = record.exchange?.client
        record.exchange = nil
        log(record.address).error("\(record.address): keeps its storage: \(problem)")
        if let client {
            refuse(ControlError("\(record.address) keeps its storage: \(problem)", status: status), to: client)
        }
    }

    // MARK: What happens meanwhile

    /// The node has changed, or is seen for the first time.
    func careForExchange(_ record: Record, _ facts: NodeFacts?) throws(OperationError) {
        guard let facts, let word = facts.exchange else { return }
        if facts.isExchangeServed { return finishExchange(record, word) }
        // An xbbd before this one has begun it, or the storage was released; not while the worker is about to release it.
        guard record.exchange == nil, record.process != nil, !record.isReleasing, facts.releasedUntil == nil else {
            return
        }
        record.exchange = Exchange(
            step: word.direction == .forth ? .trying : .returning, name: word.name, target: nil, client: nil,
            deadline: word.direction == .forth ? clinux_monotonic_ns() &+ Self.adoptedLimit : nil)
    }

    /// How long a worker may try new storage that an xbbd before this one has told it of, in ns.
    private static var adoptedLimit: UInt64 { 10 * RestartPolicy.second }

    /// Ends what takes too long.
    func expireExchange(_ record: Record, now: UInt64) {
        guard let exchange = record.exchange, let deadline = exchange.deadline, deadline <= now else { return }
        record.exchange?.deadline = nil
        switch exchange.step {
        case .pausing: break  // the worker ends its pause by itself, and says so
        case .ending:
            // It closes what it has, and whatever hangs there: its successor has the storage before.
            endExchange(record, refusing: "its worker did not end within the time limit; see 'xbbctl show'")
        case .returning:
            guard let client = exchange.client else { return }
            record.exchange?.client = nil
            let problem = exchange.problem ?? "it failed"
            refuse(
                ControlError(
                    "\(problem); \(record.address) is not served from the storage before yet either; see 'xbbctl list'"),
                to: client)
        case .trying:
            record.exchange?.problem = "the new storage was not served within the time limit"
            record.process?.send(SIGKILL)
        }
    }

    private func write(_ value: String?, to path: String, _ transaction: XenStoreTransaction) throws(OperationError) {
        guard let value else { return try store.removeIfPresent(path, in: transaction) }
        try store.write(path, value, in: transaction)
    }

    /// What a worker that is over reported is over.
    private func clearError(of address: VBDAddress) {
        do throws(OperationError) {
            try store.removeIfPresent(address.errorPath(own: own))
        } catch {
            log(address).warning("\(error)")
        }
    }
}
