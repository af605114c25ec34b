// SPDX-License-Identifier: BSD-2-Clause
// Workers as xbbd handles them: started, adopted, ended.
import Base
import CLinux
import Glibc
import Support

extension Supervisor {
    /// Hands an event to a VBD's supervision and carries out the resulting actions.
    func hand(_ event: VBDSupervision.Event, to record: Record) {
        var actions = record.supervision.handle(event, now: clinux_monotonic_ns())[...]
        while let action = actions.popFirst() {
            guard let answer = perform(action, for: record) else { continue }
            actions += record.supervision.handle(answer, now: clinux_monotonic_ns())
        }
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
        do throws(OperationError) {
            if let process = promote(record) {
                try follow(process, record)
                record.startCount += 1
                log(address).info("\(address): worker \(process.process) takes over")
                return .started
            }
            let lock: FileLock
            switch try FileLock.attempt(directory.workerLock(address)) {
            case .taken(let taken): lock = taken
            case .held(let note):
                guard let process = WorkerProcess.adopt(note: note) else {
                    if !record.loggedForeign {
                        log(address).warning("\(address): a process that xbbd does not know serves it")
                    }
                    record.loggedForeign = true
                    return .lockHeld
                }
                try follow(process, record)
                log(address).info("\(address): worker \(process.process) goes on")
                return .started
            }
            if settings.claim.isKernels(address.kind) {
                return .startFailed("the kernel's xen-blkback was loaded and takes backend/\(address.kind)")
            }
            var arguments = settings.workers.arguments(
                for: address, own: own, in: directory, predecessor: record.lastExit)
            if case .rolledBack(let program) = record.replacement { arguments[0] = Self.path(of: program) }
            let process = try WorkerProcess.spawn(arguments, kept: lock.file)
            // If xbbd crashes before this, the lock has no note: the next xbbd waits for the lock without knowing the
            // process.
            lock.write(note: ProcessIdentity(running: process.process)?.note ?? "")
            do throws(OperationError) {
                try follow(process, record)
            } catch {
                process.send(SIGKILL)
                throw error
            }
            record.startCount += 1
            log(address).info("\(address): worker \(process.process) started")
            return .started
        } catch {
            log(address).error("\(address): \(error)")
            return .startFailed("\(error)")
        }
    }

    private func follow(_ process: WorkerProcess, _ record: Record) throws(OperationError) {
        try loop.add(process.pidfd.raw) { [unowned self, unowned record] in ended(record) }
        record.process = process
        record.standbyDue = nil
        record.loggedForeign = false
    }

    private func ended(_ record: Record) {
        guard let process = record.process, var exit = process.takeExit() else { return }
        loop.remove(process.pidfd.raw)
        record.process = nil
        // Of an adopted process nobody learns the status, and a plugin may call exit(0).
        if exit == .clean || exit == .unknown,
            FileLock.note(directory.workerLock(record.address)) == FileLock.handedOver
        {
            exit = .handedOver
        }
        record.lastExit = exit
        let level: LogLevel = [.clean, .handedOver, .unknown].contains(exit) ? .info : .error
        log(record.address).write(level, "\(record.address): worker \(process.process) ended with \(exit)")
        if isStopping { return }
        let isPlanned = noteEnd(exit, of: record)
        do throws(OperationError) {
            let facts = try claimedFacts(of: record.address)
            hand(isPlanned ? .replaced(facts) : .exited(exit, facts), to: record)
        } catch {
            // The next turn notices that XenStore is gone; until then the VBD counts as failed.
            log(record.address).error("\(record.address): \(error)")
            hand(.exited(exit, record.supervision.node), to: record)
        }
        if record.supervision.deadline == nil { dismiss(record) }
        if case .waiting(let until) = record.supervision.phase {
            let now = clinux_monotonic_ns()
            let left = max(until, now) - now
            let seconds = (left + RestartPolicy.second / 2) / RestartPolicy.second
            let time = left < RestartPolicy.second ? "\(left / RestartPolicy.millisecond) ms" : "\(seconds) s"
            log(record.address).info("\(record.address): next worker in \(time)")
        }
    }

    /// Drops a VBD whose node is gone, and removes its files unless a process still holds them.
    private func forget(_ record: Record) {
        dismiss(record)
        records[record.address] = nil
        do throws(OperationError) {
            guard case .taken(let lock) = try FileLock.attempt(directory.workerLock(record.address)) else { return }
            withExtendedLifetime(lock) {
                unsafe unlink(directory.workerSocket(record.address))
                unsafe unlink(directory.workerJournal(record.address))
                unsafe unlink(directory.workerLock(record.address))
            }
        } catch {
            log(record.address).warning("\(record.address): \(error)")
        }
    }
}
