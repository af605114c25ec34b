// SPDX-License-Identifier: BSD-2-Clause
// Upgrades: workers of a new version take over from running ones, and the old version returns if the new one fails.
//
// The new worker is started beside the old one and prepares itself. Only when it reports that it is ready is the old
// one told to hand over; otherwise the old one keeps serving. The old one's program file is kept open, so that it can
// still be started after the file was replaced.
import Base
import CLinux
import Glibc
import Support

extension Supervisor {
    /// A change of a worker's program.
    enum Replacement {
        /// No change, or the last one is long ago.
        case none
        /// A new worker is preparing itself. Holds the program of the worker that serves.
        case preparing(Descriptor?)
        /// The old worker was told to hand over. Holds its program.
        case draining(Descriptor?)
        /// A new worker took over at this time, in ns. Holds the program of the worker before.
        case onTrial(Descriptor, since: UInt64)
        /// The new worker failed; workers run this program until the next upgrade.
        case rolledBack(Descriptor)

        var hasRolledBack: Bool {
            if case .rolledBack = self { true } else { false }
        }
    }

    /// Starts new workers beside those that serve. Returns the disks that are to be handed over.
    func upgrade(_ vbd: VBDReference?) throws(ControlError) -> [JSON] {
        let chosen = try vbd.map { (vbd) throws(ControlError) in [try record(vbd)] } ?? Array(records.values)
        var told: [JSON] = []
        for record in chosen.sorted(by: { $0.address < $1.address }) {
            guard let process = record.process else { continue }
            told.append(.object([("vbd", .string("\(record.address)")), ("pid", .integer(process.process))]))
            if let silence = silence(of: record) {
                record.refusal = silence
                continue
            }
            if record.exchange != nil || record.isReleasing {
                record.refusal = "it is paused, or gets other storage"
                continue
            }
            switch record.replacement {
            case .preparing, .draining: break
            case .none, .onTrial, .rolledBack: begin(record, process)
            }
        }
        if told.isEmpty, vbd != nil, let record = chosen.first { throw missingWorker(of: record) }
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

    /// Abandons an upgrade: the old worker keeps serving, and its program stays in use.
    func refuse(_ record: Record, _ reason: String) {
        guard case .preparing(let program) = record.replacement else { return }
        record.replacement = program.map { .rolledBack($0) } ?? .none
        record.refusal = reason
        let process = record.process.map { "worker \($0.process)" } ?? "the old version"
        log(record.address).error(
            "\(record.address): the new worker cannot take over (\(reason)); \(process) serves on")
    }

    // MARK: The end of a worker

    /// Works out what the end of a worker means for an upgrade. Returns true if the worker ended as it was told to.
    func noteEnd(_ exit: WorkerExit, of record: Record) -> Bool {
        let now = clinux_monotonic_ns()
        switch record.replacement {
        case .preparing(let program):
            // The old worker ended before it was told to. The new version continues from there, as after any other end.
            dismiss(record)
            record.replacement = program.map { .onTrial($0, since: now) } ?? .none
            return false
        case .draining(let program):
            if record.standby != nil {
                record.replacement = program.map { .onTrial($0, since: now) } ?? .none
                return true
            }
            record.replacement = program.map { .rolledBack($0) } ?? .none
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
            record.replacement = .rolledBack(program)
            return true
        case .none, .rolledBack: return false
        }
    }

    /// A path under which the program can be started, even though the child closes its descriptors first.
    static func path(of program: Descriptor) -> String { "/proc/\(getpid())/fd/\(program.raw)" }
}
