// SPDX-License-Identifier: BSD-2-Clause
// A disk that takes no requests for a while: the guest waits, and nothing of it is lost.
import Base
import BlockQueue
import CLinux
import PluginHost
import Xen

/// What a plugin that drains was told of a pause.
enum PluginDrain {
    /// Nothing.
    case none
    /// drain_begin() is being called.
    case beginning
    /// Nothing is submitted.
    case begun
    /// drain_end() is being called; requests go on then.
    case ending
}

extension ServedDisk {
    /// How long requests may take that were in flight when a pause began, in ns.
    static var longestRest: UInt64 { 10_000_000_000 }

    /// Whether requests are taken.
    var intake: Intake {
        if !isPauseWanted { return .running }
        return queues.allSatisfy(\.isPaused) ? .paused : .pausing
    }

    /// Takes no more requests; those in flight are finished and answered. Rings stay mapped and event channels bound.
    ///
    /// `completion` gets true when nothing is in flight, or false if ``resume()``, ``expirePause(now:)`` or
    /// ``willEnd(handsOver:)`` came before. The pause lasts until `end`, in ns of the monotonic clock: also while queues drain,
    /// which they do all the same, and for the next frontend.
    func pause(until end: UInt64, _ completion: @escaping (_ isPaused: Bool) -> Void) {
        if isEnding { return completion(false) }
        if intake == .running { restLimit = min(end, clinux_monotonic_ns() &+ Self.longestRest) }
        isPauseWanted = true
        pauseEnd = end
        pauseCompletions.append(completion)
        for queue in queues { queue.pause() }
        reportPause()
    }

    /// Goes on with the pause of the process before, until `end` in ns of the monotonic clock. Before there is a queue.
    func inheritPause(until end: UInt64) {
        isPauseWanted = true
        pauseEnd = end
    }

    /// Goes on where the pause began; each queue looks at its ring at once.
    func resume() {
        isPauseWanted = false
        pauseNumber &+= 1
        (pauseEnd, restLimit) = (.max, .max)
        completePause(false)
        endDrain()
    }

    /// Lets requests go on, once the plugin knows.
    private func endDrain() {
        switch drained {
        case .none: for queue in queues { queue.resume() }
        case .beginning, .ending: break
        case .begun:
            guard let device else { return }
            drained = .ending
            calls.make("drain_end()") { () throws(OperationError) in
                device.endDrain()
            } _: { [self] _ in
                guard self.device === device else { return }
                drained = .none
                if isPauseWanted { reportPause() } else { endDrain() }
            }
        }
    }

    /// Tells the plugin that nothing is submitted, before anybody is told that the disk is paused.
    private func beginDrain(_ device: PluginDevice) {
        drained = .beginning
        calls.make("drain_begin()", { () throws(OperationError) in try device.beginDrain() }) { [self] result in
            // Closed meanwhile: nothing is left to drain.
            guard self.device === device else { return reportPause() }
            drained = .begun
            if case .failure(let error) = result { drainFailure = error } else { drainFailure = nil }
            if isPauseWanted { reportPause() } else { endDrain() }
        }
    }

    /// When ``expirePause(now:)`` has something to do, in ns of the monotonic clock.
    var pauseDeadline: UInt64 { isPauseWanted ? min(pauseEnd, restLimit) : .max }

    /// Ends a pause whose time is over, or that does not come about; why it did, nil if it did not.
    func expirePause(now: UInt64) -> String? {
        if now < pauseDeadline { return nil }
        let text: String
        if now >= pauseEnd {
            text = "goes on: the time limit of the pause is over"
        } else if intake == .pausing {
            let stall = stalls(limit: 0, now: now).first.map { ": \($0.text)" } ?? ""
            text = "is not paused and goes on: \(requestsInFlight) requests are still in flight\(stall)"
        } else {
            restLimit = .max
            return nil
        }
        resume()
        return text
    }

    /// Makes everything that was answered durable; `completion` gets why that failed.
    func sync(_ completion: @escaping (Result<Void, OperationError>) -> Void) {
        guard let device else { return completion(.success(())) }
        if drained == .begun, let drainFailure { return completion(.failure(drainFailure)) }
        calls.make("fsync()", { () throws(OperationError) in try device.sync() }, completion)
    }

    /// This process is about to give the disk up: whoever takes it is paused where XenStore says so.
    func willEnd(handsOver: Bool) {
        isEnding = true
        isHandingOver = handsOver
        completePause(false)
    }

    /// A queue has nothing in flight; the last one completes the pause.
    func queuePaused() { reportPause() }

    /// Tells those who wait if the disk has come to rest.
    func reportPause() {
        guard intake == .paused else { return }
        restLimit = .max
        // One that is about to be closed comes to rest by that.
        if let device, device.drains, drained != .begun, drain == nil, !isEnding {
            if drained == .none { beginDrain(device) }
            return
        }
        completePause(true)
    }

    private func completePause(_ isPaused: Bool) {
        let completions = pauseCompletions
        pauseCompletions = []
        for completion in completions { completion(isPaused) }
    }
}
