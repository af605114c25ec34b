// SPDX-License-Identifier: BSD-2-Clause
// Workers of a new version take over from those that run, and the old version comes back where the new one fails.
//
// The new worker is started beside the old one and prepares itself. Only when it says that it is ready is the old one told
// to hand over; if it is not, the old one serves on. The program of the old one is kept open, so that it is there after its
// file was replaced.
import Base
import CLinux
import Glibc
import Support

extension Supervisor {
    /// A change of a worker's program.
    enum Replacement {
        /// None, or it is long ago.
        case none
        /// A new worker prepares itself; the program of the one that serves.
        case preparing(Descriptor?)
        /// The worker was told to hand over; its program.
        case draining(Descriptor?)
        /// A new worker took over at this time, in ns; the program of the one before.
        case onTrial(Descriptor, since: UInt64)
        /// The new worker failed; workers are of this program until the next upgrade.
        case wentBack(Descriptor)

        var hasGoneBack: Bool {
            if case .wentBack = self { true } else { false }
        }
    }

    /// Starts new workers beside those that serve; returns whose disks are to go over.
    func upgrade(_ vbd: VBDReference?) throws(ControlError) -> [JSON] {
        let chosen = try vbd.map { (vbd) throws(ControlError) in [try record(vbd)] } ?? Array(records.values)
        var told: [JSON] = []
        for record in chosen.sorted(by: { $0.address < $1.address }) {
            guard let process = record.process else { continue }
            told.append(.object([("vbd", .string("\(record.address)")), ("pid", .integer(process.process))]))
            switch record.replacement {
            case .preparing, .draining: break
            case .none, .onTrial, .wentBack: begin(record, process)
            }
        }
        if told.isEmpty, let vbd { throw ControlError("\(vbd) has no worker that could hand over") }
        return told
    }

    private func begin(_ record: Record, _ process: WorkerProcess) {
        let raw = unsafe clinux_open("/proc/\(process.process)/exe", O_RDONLY | O_CLOEXEC, 0)
        record.replacement = .preparing(raw < 0 ? nil : Descriptor(owning: raw))
        record.refusal = nil
        dismiss(record)
        do throws(OperationError) {
            let standby = try startStandby(record, program: nil)
            log(record.address).info(
                "\(record.address): worker \(standby.process.process) prepares to take over from \(process.process)")
        } catch {
            refuse(record, "\(error)")
        }
    }

    /// The old worker serves on, and so does its program after it.
    func refuse(_ record: Record, _ reason: String) {
        guard case .preparing(let program) = record.replacement else { return }
        record.replacement = program.map { .wentBack($0) } ?? .none
        record.refusal = reason
        let process = record.process.map { "worker \($0.process)" } ?? "the old version"
        log(record.address).error(
            "\(record.address): the new worker cannot take over (\(reason)); \(process) serves on")
    }

    // MARK: The end of a worker

    /// What the end of a worker means for an upgrade; true if it ended as it was told to.
    func noteEnd(_ exit: WorkerExit, of record: Record) -> Bool {
        let now = clinux_monotonic_ns()
        switch record.replacement {
        case .preparing(let program):
            // It did not wait to be told. The new version goes on from what it left, like after any other end.
            dismiss(record)
            record.replacement = program.map { .onTrial($0, since: now) } ?? .none
            return false
        case .draining(let program):
            if record.standby != nil {
                record.replacement = program.map { .onTrial($0, since: now) } ?? .none
                return true
            }
            record.replacement = program.map { .wentBack($0) } ?? .none
            return !exit.isFailure && !exit.isFromOutside
        case .onTrial(let program, let since):
            if now &- since > settings.policy.steadySeconds * RestartPolicy.second {
                record.replacement = .none
                return false
            }
            if !exit.isFailure { return false }
            log(record.address).error(
                "\(record.address): the new worker failed (\(exit)); workers are of the version before it again, until "
                    + "the next upgrade")
            record.replacement = .wentBack(program)
            return true
        case .none, .wentBack: return false
        }
    }

    /// A name under which the program can be started; the child closes its descriptors before.
    static func path(of program: Descriptor) -> String { "/proc/\(getpid())/fd/\(program.raw)" }
}
