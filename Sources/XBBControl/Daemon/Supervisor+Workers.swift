// SPDX-License-Identifier: BSD-2-Clause
// Workers as xbbd handles them: started, adopted, ended.
import Base
import CLinux
import Glibc
import StorageKeeping
import Support

extension Supervisor {
    /// Hands an event to a VBD's supervision and carries out the resulting actions.
    func hand(_ event: VBDSupervision.Event, to record: Record) {
        var actions = record.supervision.handle(event, now: clinux_monotonic_ns())[...]
        while let action = actions.popFirst() {
            guard let answer = perform(action, for: record) else { continue }
            actions += record.supervision.handle(answer, now: clinux_monotonic_ns())
        }
        if records[record.address] === record { noteState(record) }
        if record.standbyDue == nil, wantsStandby(record) { awaitStandby(record, seconds: 1) }
    }

    private func perform(_ action: VBDSupervision.Action, for record: Record) -> VBDSupervision.Event? {
        switch action {
        case .start: return start(record)
        case .giveUp(let text):
            log(record.address).error(
                "\(record.address): \(text); given up until the VBD is made anew or xbbd gets SIGHUP")
            writeFailure(text, of: record.address)
        case .closeFrontend: change(record.address, from: .connected, to: .closing)
        case .clearError: clearFailure(of: record.address)
        case .closeNode: change(record.address, from: .closing, to: .closed)
        case .forget: forget(record)
        }
        return nil
    }

    /// Starts a worker, or adopts the one that is running. The lock decides which: it is held as long as any process of
    /// a worker lives, whoever started it.
    private func start(_ record: Record) -> VBDSupervision.Event {
        let address = record.address
        if isStopping { return .startFailed("xbbd ends") }
        forgetRelease(record)
        do throws(OperationError) {
            if let next = promote(record) {
                try follow(next.process, record)
                listen(to: next.storage, record)
                record.startCount += 1
                log(address).info("\(address): worker \(next.process.process) takes over")
                return .started
            }
            let lock: FileLock
            let path = directory.workerLock(address)
            switch try FileLock.attempt(path) {
            case .taken(let taken):
                // An xbbd before this one called it, and it is about to take the lock that its predecessor has let go.
                if let process = WorkerProcess.adopt(LockNote(reading: taken.note), ofLockAt: path, isFree: true) {
                    try follow(process, record)
                    log(address).info("\(address): worker \(process.process) takes over")
                    return .started
                }
                lock = taken
            case .held(let note):
                let known = WorkerProcess.adopt(LockNote(reading: note), ofLockAt: path)
                let found = known ?? WorkerProcess.adopt(listeningAt: directory.workerSocket(address), ofLockAt: path)
                record.isUnnoted = known == nil
                guard let process = found else {
                    if !record.loggedForeign {
                        log(address).warning("\(address): a process that xbbd does not know serves it")
                    }
                    record.loggedForeign = true
                    return .lockHeld
                }
                try follow(process, record)
                takeStorage(from: process, record)
                log(address).info("\(address): worker \(process.process) goes on")
                return .started
            }
            if settings.claim.isKernels(address.kind) {
                return .startFailed("the kernel's xen-blkback was loaded and takes backend/\(address.kind)")
            }
            var program: Descriptor?
            if case .rolledBack(let old) = record.replacement { program = old }
            var arguments = settings.workers.arguments(
                for: address, own: own, in: directory, predecessor: record.lastExit, keepsStorage: program == nil,
                user: program == nil ? record.user : nil)
            if let program { arguments[0] = Self.path(of: program) }
            let channel = program == nil ? try StorageChannel.pair() : nil
            if let kept = record.storage { channel?.own.send(.keep(kept)) }
            let process = try WorkerProcess.spawn(arguments, kept: lock.file, third: channel?.other)
            groups?.add(process.process, to: address)
            // If xbbd crashes before this, the lock has no note: the next xbbd waits for the lock without knowing the
            // process.
            do throws(OperationError) {
                try lock.write(LockNote(holder: process.identity))
            } catch {
                record.isUnnoted = true
                log(address).warning(
                    "\(address): \(error); an xbbd that is started now looks for its worker, and this one tries again")
            }
            do throws(OperationError) {
                try follow(process, record)
            } catch {
                process.send(SIGKILL)
                throw error
            }
            listen(to: channel?.own, record)
            record.startCount += 1
            log(address).info("\(address): worker \(process.process) started")
            return .started
        } catch {
            log(address).error("\(address): \(error)")
            return .startFailed("\(error)")
        }
    }

    /// How long a worker has to end whose node is gone, in ns. It gives up what does not end after its own limit; this one
    /// is for a worker that does not even do that.
    private var endLimit: UInt64 { (2 * settings.stallSeconds + 5) * RestartPolicy.second }

    /// The node of a VBD is gone, whose worker ends now.
    func noteGone(_ record: Record) {
        if record.process != nil, record.endsBy == nil { record.endsBy = clinux_monotonic_ns() &+ endLimit }
    }

    /// Kills a worker that did not end when its node was gone.
    func expireEnd(_ record: Record, now: UInt64) {
        guard let deadline = record.endsBy, deadline <= now, let process = record.process else { return }
        record.endsBy = nil
        log(record.address).error(
            "\(record.address): worker \(process.process) did not end within \(endLimit / RestartPolicy.second) s after "
                + "its node was removed, and is killed")
        process.send(SIGKILL)
    }

    private func follow(_ process: WorkerProcess, _ record: Record) throws(OperationError) {
        try loop.add(process.pidfd.raw) { [unowned self, unowned record] in ended(record) }
        record.process = process
        record.answers = AnswerWatch(limit: settings.stallSeconds * RestartPolicy.second, now: clinux_monotonic_ns())
        record.endsBy = nil
        record.standbyDue = nil
        record.loggedForeign = false
        noteWorker(record)
    }

    private func ended(_ record: Record) {
        guard let process = record.process, var exit = process.takeExit() else { return }
        // Of an adopted process nobody learns the status, and a plugin may call exit(0).
        if exit == .clean || exit == .unknown, let end = handOver(of: process, record.address) {
            exit = end
        } else if exit == .clean, hasLeftUndone(record) {
            exit = .deserted
        }
        loop.remove(process.pidfd.raw)
        stopAsking(record)
        record.process = nil
        record.endsBy = nil
        record.lastExit = exit
        let isPlain = [.clean, .handedOver, .leftRequests, .unknown].contains(exit)
        let core = process.hasDumpedCore ? ", and left a core" : ""
        let reason = lastError(of: record.address).map { "; the last error of the disk: \($0)" } ?? ""
        log(record.address).write(
            isPlain ? .info : .error,
            "\(record.address): worker \(process.process) ended with \(exit)\(core)\(reason)")
        if isStopping { return }
        noteRelease(exit, of: record)
        let isExchanging = noteExchange(exit, of: record)
        let isPlanned = isExchanging || noteEnd(exit, of: record)
        do throws(OperationError) {
            let facts = try claimedFacts(of: record.address)
            hand(isPlanned ? .replaced(facts) : .exited(exit, facts), to: record)
        } catch {
            // The next turn notices that XenStore is gone; until then the VBD counts as failed.
            log(record.address).error("\(record.address): \(error)")
            hand(.exited(exit, record.supervision.node), to: record)
        }
        if record.supervision.deadline == nil { dismiss(record) }
        if record.supervision.phase == .over { letStorageGo(record) }
        if case .waiting(let until) = record.supervision.phase {
            let now = clinux_monotonic_ns()
            let left = max(until, now) - now
            let seconds = (left + RestartPolicy.second / 2) / RestartPolicy.second
            let time = left < RestartPolicy.second ? "\(left / RestartPolicy.millisecond) ms" : "\(seconds) s"
            log(record.address).info("\(record.address): next worker in \(time)")
        }
    }

    /// True where a worker ended with status 0 while a guest was connected, and has not written that it handed the disk over.
    private func hasLeftUndone(_ record: Record) -> Bool {
        // One that stands by and was called has the lock, and finds out by itself.
        if record.standby?.isCalled == true { return false }
        do throws(OperationError) {
            guard let facts = try facts(of: record.address), facts.state == .connected else { return false }
            return !FileLock.isHeld(directory.workerLock(record.address))
        } catch {
            return false
        }
    }

    /// Drops a VBD whose node is gone, and removes its files unless a process still holds them.
    private func forget(_ record: Record) {
        dismiss(record)
        letStorageGo(record)
        refuseWaiting(record)
        records[record.address] = nil
        emit(.detached, of: record.address)
        groups?.remove(record.address)
        if !removeFiles(of: record.address) { leftovers.insert(record.address) }
    }

    /// Removes the files of disks that are gone: an xbbd that was killed may not have come to it.
    func sweepFiles() {
        var left: Set<VBDAddress> = []
        for address in directory.disks where records[address] == nil {
            if removeFiles(of: address) { groups?.remove(address) } else { left.insert(address) }
        }
        leftovers = left
    }

    /// Removes what the run directory has of a disk; false where a process has its lock.
    private func removeFiles(of address: VBDAddress) -> Bool {
        do throws(OperationError) {
            guard case .taken(let lock) = try FileLock.attempt(directory.workerLock(address)) else { return false }
            withExtendedLifetime(lock) {
                let lines = workerLines(address, limit: LogFile.mostBytes).suffix(64)
                for line in lines { log.history?.remember(line) }
                // The lock is the last: who finds it finds nothing else.
                for path in directory.files(of: address) { unsafe unlink(path) }
            }
        } catch {
            log(address).warning("\(address): \(error)")
        }
        return true
    }
}
