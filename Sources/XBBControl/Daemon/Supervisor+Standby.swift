// SPDX-License-Identifier: BSD-2-Clause
// Processes that stand by: one for each worker whose guest is connected, and those of an upgrade.
//
// A process that is there already saves a guest whose worker died the start of one. It has no right to the disk until it
// is called, and it is called only when the worker has ended.
import Base
import CLinux
import Glibc
import Support

extension Supervisor {
    /// True where nobody stands by and somebody should, for the case that the worker dies.
    func wantsStandby(_ record: Record) -> Bool {
        guard settings.keepsStandby, !isStopping, record.process != nil, record.standby == nil,
            record.supervision.node?.state == .connected
        else { return false }
        return switch record.replacement {
        case .preparing, .draining: false
        case .none, .onTrial, .wentBack: true
        }
    }

    /// A while after a start, when the guest has its disk and the machine has time.
    func awaitStandby(_ record: Record, seconds: UInt64) {
        record.standbyDue = clinux_monotonic_ns() &+ seconds * RestartPolicy.second
    }

    /// Starts one that stands by until the worker dies. It is of the program that would be started then.
    func keepStandby(_ record: Record) {
        record.standbyDue = nil
        var program: Descriptor?
        if case .wentBack(let old) = record.replacement { program = old }
        do throws(OperationError) {
            let standby = try startStandby(record, program: program)
            log(record.address).debug("\(record.address): process \(standby.process.process) stands by")
        } catch {
            log(record.address).warning("\(record.address): nobody stands by: \(error)")
            awaitStandby(record, seconds: 60)
        }
    }

    /// Starts a worker that stands by, of the installed program or of one that is kept.
    func startStandby(_ record: Record, program: Descriptor?) throws(OperationError) -> Standby {
        var arguments = settings.workers.arguments(
            for: record.address, own: own, in: directory, predecessor: nil, standsBy: true)
        if let program { arguments[0] = Self.path(of: program) }
        let standby = try Standby(arguments, lockPath: directory.workerLock(record.address))
        do throws(OperationError) {
            try loop.add(standby.process.pidfd.raw) { [unowned self, unowned record] in standbyEnded(record) }
            if let channel = standby.channel {
                try loop.add(channel.raw) { [unowned self, unowned record] in standbySpoke(record) }
            }
        } catch {
            bury(standby)
            throw error
        }
        record.standby = standby
        return standby
    }

    private func standbySpoke(_ record: Record) {
        guard let standby = record.standby, standby.takeWord(loop) else { return }
        guard case .preparing(let program) = record.replacement, let process = record.process else { return }
        guard standby.call(after: nil, loop) else { return }
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
            // The old worker is on its way out; its program goes on when it has ended.
            log(record.address).error("\(record.address): the new worker failed while it took over (\(exit))")
        case .none, .onTrial, .wentBack:
            log(record.address).warning("\(record.address): the process that stood by ended with \(exit)")
            awaitStandby(record, seconds: 60)
        }
    }

    /// Ends what takes too long to get ready.
    func expireStandby(_ record: Record, now: UInt64) {
        guard let deadline = record.standby?.deadline, deadline <= now else { return }
        dismiss(record)
        awaitStandby(record, seconds: 60)
        refuse(record, "it was not ready within \(Standby.patience / RestartPolicy.second) s")
    }

    /// Ends whoever stands by.
    func dismiss(_ record: Record) {
        guard let standby = record.standby else { return }
        record.standby = nil
        bury(standby)
    }

    /// Kills a process that serves nobody, and takes its end when it comes.
    private func bury(_ standby: Standby) {
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

    /// Makes the process that stands by the worker, after the one before has ended; nil where there is none that can.
    func promote(_ record: Record) -> WorkerProcess? {
        guard let standby = record.standby else { return nil }
        guard standby.isCalled || standby.call(after: record.lastExit, loop) else {
            dismiss(record)
            return nil
        }
        record.standby = nil
        loop.remove(standby.process.pidfd.raw)
        return standby.process
    }
}
