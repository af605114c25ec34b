// SPDX-License-Identifier: BSD-2-Clause
// A worker that does not answer is a state of its disk, which is told: it may be stopped, or hang.
import Base
import CLinux
import Support

extension Supervisor {
    /// Asks a worker whether it is there, when that is due, and tells when it does not answer in its time.
    func careForAnswers(_ record: Record, now: UInt64) {
        guard let process = record.process, var watch = record.answers else { return }
        // With an answer it is tried again to write down who serves.
        if watch.askAt <= now, record.isUnnoted || !watch.sleepsOn(runs: process.runs, now: now) {
            watch.ask(now: now)
            do throws(ControlError) {
                try ask(process, record)
            } catch {
                watch.failed(now: now)
            }
        }
        let isOver = watch.isOver(now: now)
        record.answers = watch
        if isOver, let text = silence(of: record) { log(record.address).error("\(record.address): \(text)") }
    }

    private func ask(_ process: WorkerProcess, _ record: Record) throws(ControlError) {
        record.question = try call(record.address, "ping last", limit: nil) { [unowned self, weak record] _, result in
            guard let record, record.process === process else { return }
            let now = clinux_monotonic_ns()
            record.question = nil
            guard case .success = result else {
                record.answers?.failed(now: now)
                return
            }
            if let seconds = record.answers?.answered(now: now, runs: process.runs) {
                log(record.address).info(
                    "\(record.address): worker \(process.process) answers again, after \(seconds) s")
            }
            noteHolder(of: record)
        }
    }

    /// The worker has ended, or another one serves: its answer is not waited for.
    func stopAsking(_ record: Record) {
        record.answers = nil
        if let id = record.question { calls[id]?.abandon() }
        record.question = nil
        if let id = record.events?.call { calls[id]?.abandon() }
        record.events = nil
    }

    /// Writes down who serves, where there was no room for that before.
    private func noteHolder(of record: Record) {
        guard record.isUnnoted, let process = record.process else { return }
        do throws(OperationError) {
            try FileLock.write(LockNote(holder: process.identity), to: directory.workerLock(record.address))
            record.isUnnoted = false
        } catch {}  // told when it was tried first
    }

    /// What a worker that does not answer is told as; nil of one that does, or that has time left. One that is stopped is
    /// told at once.
    func silence(of record: Record) -> String? {
        guard let process = record.process else { return nil }
        let state = process.state
        guard record.answers?.isSilent == true || state?.isStopped == true else { return nil }
        let seconds = record.answers?.seconds(now: clinux_monotonic_ns()) ?? 0
        let time = seconds > 0 ? " for \(seconds) s" : ""
        let advice =
            state?.isStopped == true
            ? "'kill -CONT \(process.process)' lets it go on" : "'kill -9 \(process.process)' lets another one go on"
        return "worker \(process.process) does not answer\(time): \(state?.text ?? "it is not known why"); \(advice)"
    }
}
