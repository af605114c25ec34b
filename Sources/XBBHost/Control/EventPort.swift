// SPDX-License-Identifier: BSD-2-Clause
// Where a worker tells xbbd what happened to its disk.
import CLinux
import DiskEvents
import Support

/// Events on their way to xbbd, which asks for them at the control socket. Control thread only.
final class EventPort {
    private struct Question {
        let levels: () -> [JSON.Member]
        let reply: (JSON) -> Void
    }

    private var pending = PendingEvents()
    private var questions: [Question] = []
    /// Others than xbbd may ask, too; they have no claim to an answer of their own.
    private static let mostQuestions = 4
    /// What a guest, an image or a plugin can cause again and again.
    private let limit = RateLimit(burst: 16, perSecond: 1)

    /// Tells that something happened: the one function for it in a worker. Whatever is told too often is dropped, and xbbd says
    /// how often that was.
    func emit(_ kind: DiskEventKind, _ details: [JSON.Member] = []) {
        var details = details
        switch kind {
        case .error, .limitReached, .imageDamaged, .resized:
            guard let suppressed = limit.admit() else { return }
            if suppressed > 0, !details.contains(where: { $0.name == "count" }) {
                details.append(("count", .integer(suppressed + 1)))
            }
        case .attached, .connected, .disconnected, .paused, .resumed, .workerReplaced, .failed, .detached: break
        }
        pending.add(kind, DiskEventDetails(details), time: wallClockSeconds())
        answer()
    }

    /// Answers with the events behind `number`, which need not be told again; `levels` says what holds when the answer goes out.
    /// One that waits is answered when there is something to tell.
    func ask(
        after number: UInt64, waits: Bool, levels: @escaping () -> [JSON.Member], _ reply: @escaping (JSON) -> Void
    ) {
        pending.acknowledge(number)
        questions.append(Question(levels: levels, reply: reply))
        if !waits || !pending.isEmpty { return answer() }
        if questions.count > Self.mostQuestions {
            let oldest = questions.removeFirst()
            oldest.reply(.object(oldest.levels()))
        }
    }

    private func answer() {
        guard !questions.isEmpty else { return }
        let asked = questions
        questions = []
        let events = pending.take()
        for question in asked { question.reply(.object(events + question.levels())) }
    }
}
