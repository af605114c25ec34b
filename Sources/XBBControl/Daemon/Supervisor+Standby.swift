// SPDX-License-Identifier: BSD-2-Clause
// Standby processes: one for each worker whose guest is connected, and the new workers of an upgrade.
//
// When a worker dies, a process that is already running saves its guest the start of a new one. A standby has no right
// to the disk until it is called, and it is called only after the worker has ended.
import Base
import CLinux
import Glibc
import StorageKeeping
import Support

extension Supervisor {
    /// True if the VBD should have a standby, in case that its worker dies, and has none.
    func wantsStandby(_ record: Record) -> Bool {
        guard settings.keepsStandby, !isStopping, record.process != nil, record.standby == nil,
            record.supervision.node?.state == .connected
        else { return false }
        return switch record.replacement {
        case .preparing, .draining: false
        case .none, .onTrial, .rolledBack: true
        }
    }

    /// Schedules a standby some time after a start, when the guest has its disk and the machine has time.
    func awaitStandby(_ record: Record, seconds: UInt64) {
        record.standbyDue = clinux_monotonic_ns() &+ seconds * RestartPolicy.second
    }

    /// Starts a standby that waits until the worker dies. It runs the program that a new worker would run.
    func keepStandby(_ record: Record) {
        record.standbyDue = nil
        var program: Descriptor?
        if case .rolledBack(let old) = record.replacement { program = old }
        do throws(OperationError) {
            let standby = try startStandby(record, program: program)
            log(record.address).debug("\(record.address): process \(standby.process.process) stands by")
        } catch {
            log(record.address).warning("\(record.address): nobody stands by: \(error)")
            awaitStandby(record, seconds: 60)
        }
    }

    /// Starts a standby, of the installed program or of the open file `program`.
    func startStandby(_ record: Record, program: Descriptor?) throws(OperationError) -> Standby {
        var arguments = settings.workers.arguments(
            for: record.address, own: own, in: directory, predecessor: nil, standsBy: true,
            keepsStorage: program == nil, user: program == nil ? record.user : nil)
        if let program { arguments[0] = Self.path(of: program) }
        let standby = try Standby(
            arguments, lockPath: directory.workerLock(record.address), keepsStorage: program == nil,
            isPromised: record.storage != nil)
        groups?.add(standby.process.process, to: record.address)
        do throws(OperationError) {
            try loop.add(standby.process.pidfd.raw) { [unowned self, unowned record] in standbyEnded(record) }
            if let channel = standby.channel {
                try loop.add(channel.raw) { [unowned self, unowned record] in standbySpoke(record) }
            }
        } catch {
            killAndReap(standby)
            throw error
        }
        record.standby = standby
        return standby
    }

    private func standbySpoke(_ record: Record) {
        guard let standby = record.standby, standby.receiveReady(loop) else { return }
        guard case .preparing(let program) = record.replacement, let process = record.process else { return }
        if let silence = silence(of: record) {
            dismiss(record)
            return refuse(record, silence)
        }
        do throws(OperationError) {
            guard try standby.call(after: nil, from: process.identity, with: record.storage, loop) else { return }
        } catch {
            dismiss(record)
            return refuse(record, "\(error)")
        }
        process.send(SIGTERM)
        record.replacement = .draining(program)
        log(record.address).info("\(record.address): worker \(process.process) is told to hand over")
    }

    private func standbyEnded(_ record: Record) {
        guard let standby = record.standby, let exit = standby.process.takeExit() else { return }
        loop.remove(standby.process.pidfd.raw)
        standby.closeChannel(loop)
        record.standby = nil
        switch record.replacement {
        case .preparing: refuse(record, "\(exit)")
        case .draining:
            // The old worker is about to end; afterwards a worker of its program is started.
            log(record.address).error("\(record.address): the new worker failed while it took over (\(exit))")
        case .none, .onTrial, .rolledBack:
            log(record.address).warning("\(record.address): the process that stood by ended with \(exit)")
            awaitStandby(record, seconds: 60)
        }
    }

    /// Ends a standby that takes too long to get ready.
    func expireStandby(_ record: Record, now: UInt64) {
        guard let deadline = record.standby?.deadline, deadline <= now else { return }
        dismiss(record)
        awaitStandby(record, seconds: 60)
        refuse(record, "it was not ready within \(Standby.timeLimit / RestartPolicy.second) s")
    }

    /// Ends the VBD's standby, if there is one.
    func dismiss(_ record: Record) {
        guard let standby = record.standby else { return }
        record.standby = nil
        killAndReap(standby)
    }

    /// Kills a standby that serves nothing, and reaps it when it has ended.
    private func killAndReap(_ standby: Standby) {
        standby.closeChannel(loop)
        let process = standby.process
        loop.remove(process.pidfd.raw)
        process.send(SIGKILL)
        do throws(OperationError) {
            try loop.add(process.pidfd.raw) { [unowned self] in
                if process.takeExit() != nil { loop.remove(process.pidfd.raw) }
            }
        } catch {
            log.warning("\(error)")
        }
    }

    /// Makes the standby the VBD's worker, after the last worker has ended; nil if there is no standby that can be
    /// called.
    func promote(_ record: Record) -> (process: WorkerProcess, storage: StorageChannel?)? {
        guard let standby = record.standby else { return nil }
        if !standby.isCalled, standby.process.state?.isStopped == true {
            log(record.address).warning(
                "\(record.address): the process that stood by, \(standby.process.process), was stopped; another one is started"
            )
            dismiss(record)
            return nil
        }
        if standby.isCalled, !standby.canServe(with: record.storage) {
            log(record.address).info(
                "\(record.address): process \(standby.process.process) was called before the storage was open, and gives way"
            )
            dismiss(record)
            return nil
        }
        do throws(OperationError) {
            if standby.isCalled {
                try FileLock.write(
                    LockNote(holder: standby.process.identity), to: directory.workerLock(record.address))
            } else if try !standby.call(after: record.lastExit, from: nil, with: record.storage, loop) {
                dismiss(record)
                return nil
            }
        } catch {
            log(record.address).warning("\(record.address): \(error)")
            if !standby.isCalled {
                dismiss(record)
                return nil
            }
        }
        record.standby = nil
        loop.remove(standby.process.pidfd.raw)
        return (standby.process, standby.storage)
    }
}
