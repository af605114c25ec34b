// SPDX-License-Identifier: BSD-2-Clause
// Workers of a new version take over from those that run, and the old version comes back where the new one fails.
//
// A worker that is told to hand over finishes what is in flight and ends; the next one goes on with the same rings. The
// program of the one that ends is kept open, so that it is there after its file was replaced.
import CLinux
import Glibc
import Support
import Xen

extension Supervisor {
    /// A change of a worker's program.
    enum Replacement {
        /// None, or it is long ago.
        case none
        /// The worker was told to hand over; its program.
        case draining(Descriptor?)
        /// A new worker was started at this time, in ns; the program of the one before.
        case onTrial(Descriptor, since: UInt64)
        /// The new worker failed; workers are of this program until the next upgrade.
        case wentBack(Descriptor)

        var hasGoneBack: Bool {
            if case .wentBack = self { true } else { false }
        }
    }

    /// Tells workers to hand over; returns who was told.
    func upgrade(_ vbd: VBDReference?) throws(ControlError) -> [JSON] {
        let chosen = try vbd.map { (vbd) throws(ControlError) in [try record(vbd)] } ?? Array(records.values)
        var told: [JSON] = []
        for record in chosen.sorted(by: { $0.address < $1.address }) {
            guard let process = record.process else { continue }
            let raw = unsafe clinux_open("/proc/\(process.process)/exe", O_RDONLY | O_CLOEXEC, 0)
            record.replacement = .draining(raw < 0 ? nil : Descriptor(owning: raw))
            process.send(SIGTERM)
            log(record.address).info("\(record.address): worker \(process.process) is told to hand over")
            told.append(.object([("vbd", .string("\(record.address)")), ("pid", .integer(process.process))]))
        }
        if told.isEmpty, let vbd { throw ControlError("\(vbd) has no worker that could hand over") }
        return told
    }

    /// What the end of a worker means for an upgrade; true if it ended as it was told to.
    func noteEnd(_ exit: WorkerExit, of record: Record) -> Bool {
        switch record.replacement {
        case .draining(let program):
            record.replacement = program.map { .onTrial($0, since: clinux_monotonic_ns()) } ?? .none
            return !exit.isFailure && !exit.isFromOutside
        case .onTrial(let program, let since):
            if clinux_monotonic_ns() &- since > settings.policy.steadySeconds * RestartPolicy.second {
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
