// SPDX-License-Identifier: BSD-2-Clause
// A disk that takes no requests for a while: the guest waits, and nothing of it is lost.
import BlockQueue
import Xen

extension ServedDisk {
    /// Whether requests are taken.
    var intake: Intake {
        if !isPauseWanted { return .running }
        return queues.allSatisfy(\.isPaused) ? .paused : .pausing
    }

    /// Takes no more requests; those in flight are finished and answered. Rings stay mapped and event channels bound.
    ///
    /// `completion` gets true when nothing is in flight, or false if ``resume()`` or ``willEnd(handsOver:)`` came before. The pause lasts until then:
    /// also while queues drain, which they do all the same, and for the next frontend. It ends with the process.
    func pause(_ completion: @escaping (_ isPaused: Bool) -> Void) {
        if isEnding { return completion(false) }
        isPauseWanted = true
        pauseCompletions.append(completion)
        for queue in queues { queue.pause() }
        reportPause()
    }

    /// Goes on where the pause began; each queue looks at its ring at once.
    func resume() {
        isPauseWanted = false
        for queue in queues { queue.resume() }
        completePause(false)
    }

    /// This process is about to give the disk up: whoever takes it is not paused.
    func willEnd(handsOver: Bool) {
        isEnding = true
        isHandingOver = handsOver
        completePause(false)
    }

    /// A queue has nothing in flight; the last one completes the pause.
    func queuePaused() { reportPause() }

    /// Tells those who wait if the disk has come to rest.
    func reportPause() {
        if intake == .paused { completePause(true) }
    }

    private func completePause(_ isPaused: Bool) {
        let completions = pauseCompletions
        pauseCompletions = []
        for completion in completions { completion(isPaused) }
    }
}
