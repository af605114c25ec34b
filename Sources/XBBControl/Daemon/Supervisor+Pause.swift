// SPDX-License-Identifier: BSD-2-Clause
// Pauses: the worker stops and goes on by itself; xbbd sees to it that nobody serves a disk whose storage is released.
//
// Both say so in the backend's node, so that a pause outlives them: the worker in `xbb-paused`, xbbd in `xbb-released`. The
// time limit is the same.
import Base
import CLinux
import Glibc
import Support
import Xen
import XenBus

extension Supervisor {
    /// How long a worker has for a pause, in ns: what is in flight has 10 s, and the data have to be durable.
    static var pauseLimit: UInt64 { 40 * RestartPolicy.second }

    /// How long a worker may be paused before its storage is released to a command, in seconds: a pause that xbbd does not
    /// come to make more of ends then.
    private static let holdSeconds = "30.0"

    /// Pauses a disk for `seconds` at most, and answers when that is so.
    func pause(
        _ record: Record, _ seconds: String, _ kind: PauseKind, for client: ControlServer.ClientID
    ) throws(ControlError) {
        let end = try Self.end(of: seconds)
        if case .released = record.supervision.phase { return try renewRelease(record, until: end, kind, for: client) }
        guard record.exchange == nil || record.awaitsStorage, !record.isReleasing else {
            throw Self.isBusy(record)
        }
        // A brief one leaves a pause of the administrator's as it is.
        let line = kind == .holds ? "pause \(Self.holdSeconds) brief" : "pause \(seconds)"
        try ask(record, line, limit: Self.pauseLimit) { [unowned self, weak record] result in
            guard let record else { return }
            do throws(ControlError) {
                let text = try result.get()
                let isPaused = try ControlAnswer(line: text).value["paused"] == .bool(true)
                guard kind != .plain, isPaused else { return answer(text, to: client) }
                if kind == .holds, !isConnected(client) { return endBriefPause(record) }
                try release(record, until: end, kind, for: client)
            } catch {
                refuse(error, to: client)
            }
        }
    }

    /// Seconds of a request as a time, in ns of CLOCK_MONOTONIC.
    static func end(of seconds: String) throws(ControlError) -> UInt64 {
        guard let value = Double(seconds), (0.1...86400).contains(value) else {
            throw ControlError("'\(seconds)': expected 0.1 to 86400 seconds", status: .usage)
        }
        return clinux_monotonic_ns() &+ UInt64(value * 1e9)
    }

    /// Nobody wants the pause any more that was made for a command.
    private func endBriefPause(_ record: Record) {
        do throws(ControlError) {
            let path = record.address.backendPath(own: own)
            if try asControlError({ () throws(OperationError) in try store.text("\(path)/\(BackendKey.paused)") })
                != nil
            {
                return
            }
            try ask(record, "resume") { _ in }
        } catch {
            log(record.address).warning("\(error); the pause ends after \(Self.holdSeconds) s")
        }
    }

    private func release(
        _ record: Record, until end: UInt64, _ kind: PauseKind, for client: ControlServer.ClientID
    ) throws(ControlError) {
        guard let process = record.process else { throw missingWorker(of: record) }
        try change(record, "release the storage of") { (path, transaction) throws(OperationError) in
            let before = try store.text("\(path)/\(BackendKey.paused)", in: transaction)
            if kind == .holds {
                try store.write("\(path)/\(BackendKey.held)", before ?? Self.notPaused, in: transaction)
                try store.write("\(path)/\(BackendKey.paused)", "\(end)", in: transaction)
            } else if before == nil {
                return false
            }
            try store.write("\(path)/\(BackendKey.released)", "\(end)", in: transaction)
            // Whatever the administrator puts in the place of the images is what the guest goes on with.
            let name = String(UInt64.random(in: 1...UInt64.max), radix: 16)
            if let word = StorageExchange(name: name, .back) {
                try store.write("\(path)/\(BackendKey.swap)", word.text, in: transaction)
            }
            return true
        }
        if record.awaitsStorage { record.exchange = nil }
        record.isReleasing = true
        record.releaseClient = client
        setHolder(record, kind, client)
        process.send(SIGTERM)
        log(record.address).info("\(record.address): worker \(process.process) is told to release the storage")
    }

    private func setHolder(_ record: Record, _ kind: PauseKind, _ client: ControlServer.ClientID) {
        record.holder = kind == .holds ? client : nil
        if kind == .holds { hold(client) }
    }

    private func renewRelease(
        _ record: Record, until end: UInt64, _ kind: PauseKind, for client: ControlServer.ClientID
    ) throws(ControlError) {
        try change(record, "renew the pause of") { (path, transaction) throws(OperationError) in
            let isHeld = try store.text("\(path)/\(BackendKey.held)", in: transaction) != nil
            switch kind {
            case .plain where isHeld:
                // The disk is paused for as long when the command is done that has its storage now.
                try store.write("\(path)/\(BackendKey.held)", "\(end)", in: transaction)
                return true
            case .plain: break
            case .releases: try store.removeIfPresent("\(path)/\(BackendKey.held)", in: transaction)
            case .holds: if !isHeld { return false }
            }
            try store.write("\(path)/\(BackendKey.paused)", "\(end)", in: transaction)
            try store.write("\(path)/\(BackendKey.released)", "\(end)", in: transaction)
            return true
        }
        if kind != .plain { setHolder(record, kind, client) }
        readAgain(record)
        answerReleased(record, client)
    }

    private func answerReleased(_ record: Record, _ client: ControlServer.ClientID) {
        // Its worker may not have come to say so.
        emit(.paused, of: record.address)
        do throws(ControlError) {
            let name = try releaseName(of: record)
            answer(
                .object([
                    ("paused", .bool(true)), ("released", .bool(true)), ("release", name.map { .string($0) } ?? .null),
                ]), to: client)
        } catch {
            refuse(error, to: client)
        }
    }

    /// Ends a pause, and has the storage opened again if it is released. If it `restores`, the disk is paused after that as
    /// it was before a command had its storage released.
    func resume(_ record: Record, restores: Bool, for client: ControlServer.ClientID) throws(ControlError) {
        guard record.process == nil, case .released = record.supervision.phase else {
            if restores { return answerResumed(client) }
            return try forward("resume", to: record, for: client)
        }
        try endRelease(record, "end the pause of", restores: restores)
        record.holder = nil
        log(record.address).info("\(record.address): goes on after the pause")
        readAgain(record)
        answerResumed(client)
    }

    private func answerResumed(_ client: ControlServer.ClientID) {
        answer(.object([("paused", .bool(false)), ("tried_again", .integer(0))]), to: client)
    }

    // MARK: Commands that have the storage as long as they run

    /// What ``BackendKey/held`` says of a disk that was not paused.
    private static let notPaused = "-"

    /// A client has gone: what it held goes on at once.
    func clientEnded(_ client: ControlServer.ClientID) {
        endGatherings(of: client)
        for record in records.values where record.holder == client && !record.isReleasing { endHold(record) }
    }

    private func endHold(_ record: Record) {
        record.holder = nil
        do throws(ControlError) {
            try endRelease(record, "end the pause of")
        } catch {
            return log(record.address).error("\(error); it goes on when the time limit is over")
        }
        log(record.address).warning("\(record.address): the command that had its storage has ended: the disk goes on")
        readAgain(record)
    }

    /// A worker may have the storage again. If it `restores`, the disk is paused as it was before a command had it; else not at all.
    private func endRelease(_ record: Record, _ what: String, restores: Bool = true) throws(ControlError) {
        try change(record, what) { (path, transaction) throws(OperationError) in
            if restores {
                try endHold(at: path, transaction)
            } else {
                for key in [BackendKey.paused, BackendKey.held] {
                    try store.removeIfPresent("\(path)/\(key)", in: transaction)
                }
            }
            try store.removeIfPresent("\(path)/\(BackendKey.released)", in: transaction)
            return true
        }
    }

    /// The disk is paused as it was before a command had its storage released.
    func endHold(at path: String, _ transaction: XenStoreTransaction) throws(OperationError) {
        guard let before = try store.text("\(path)/\(BackendKey.held)", in: transaction) else { return }
        try store.removeIfPresent("\(path)/\(BackendKey.held)", in: transaction)
        if before == Self.notPaused {
            try store.removeIfPresent("\(path)/\(BackendKey.paused)", in: transaction)
        } else {
            try store.write("\(path)/\(BackendKey.paused)", before, in: transaction)
        }
    }

    /// The worker has ended: where that was for the administrator, nothing holds the storage any more.
    func noteRelease(_ exit: WorkerExit, of record: Record) {
        guard record.isReleasing else { return }
        record.isReleasing = false
        record.storage?.releaseLocks()
        // What a plugin keeps holds no storage, and the server may still do what a process that died has sent.
        if record.storage?.images.isEmpty == false { letStorageGo(record) }
        log(record.address).info("\(record.address): the storage is released")
        if let holder = record.holder, !isConnected(holder) { endHold(record) }
        guard let client = record.releaseClient else { return }
        record.releaseClient = nil
        if [.handedOver, .leftRequests].contains(exit) { return answerReleased(record, client) }
        refuse(
            ControlError(
                "\(record.address): the worker ended with \(exit); its storage is released", status: .timedOut),
            to: client)
    }

    /// The disk is gone: nobody waits for it any more.
    func refuseWaiting(_ record: Record) {
        let gone = ControlError("\(record.address) was taken away")
        if let client = record.releaseClient { refuse(gone, to: client) }
        if let client = record.exchange?.client { refuse(gone, to: client) }
        (record.releaseClient, record.exchange) = (nil, nil)
    }

    /// A worker starts: whoever had the storage has had it.
    func forgetRelease(_ record: Record) {
        guard record.supervision.node?.releasedUntil != nil else { return }
        record.holder = nil
        do throws(ControlError) {
            try endRelease(record, "end the release of")
        } catch {
            log(record.address).error(error.description)
        }
    }

    // MARK: The node

    /// Changes the backend's node of a disk that is there, in a transaction. `body` gets its path, and is false where it is not
    /// as it should be. Throws why nothing was changed.
    func change(
        _ record: Record, _ what: String, _ body: (String, XenStoreTransaction) throws(OperationError) -> Bool
    ) throws(ControlError) {
        let path = record.address.backendPath(own: own)
        let isDone: Bool
        do throws(OperationError) {
            isDone = try store.transaction { (transaction) throws(OperationError) in
                guard try store.text("\(path)/\(BackendKey.state)", in: transaction) != nil else { return false }
                return try body(path, transaction)
            }
        } catch {
            throw ControlError("cannot \(what) \(record.address): \(error)")
        }
        if !isDone { throw ControlError("cannot \(what) \(record.address): it is gone, or not as it was") }
    }

    /// Takes what stands in the node now, without waiting for the watch.
    func readAgain(_ record: Record) {
        do throws(OperationError) {
            hand(.node(try claimedFacts(of: record.address)), to: record)
        } catch {
            log(record.address).error("\(record.address): \(error)")
        }
    }
}
