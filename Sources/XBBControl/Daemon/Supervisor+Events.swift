// SPDX-License-Identifier: BSD-2-Clause
// Events of disks: what xbbd learns itself, what workers tell, and who asks for them.
import Base
import CLinux
import DiskEvents
import Support
import XenBus

/// A client that waits for an event.
struct EventWait {
    let client: ControlServer.ClientID
    let cursor: EventCursor
    /// When it is answered all the same, in ns of CLOCK_MONOTONIC.
    let deadline: UInt64
}

/// How xbbd gets a worker's events. One question is on its way, and is answered when there is something to tell.
struct EventQuestion {
    /// The call; nil while none is on its way.
    var call: UInt64?
    /// When it is asked next, in ns of CLOCK_MONOTONIC; nil: not at all, as it does not know the question.
    var askAt: UInt64?
    /// The last number that it gave.
    var last: UInt64 = 0
    /// Tries without an answer, one after the other.
    var failures: UInt64 = 0
    /// It has said what holds: the storage is open, and the disk is paused.
    var hasAnswered = false
    var isOpen = false
    var isPaused: Bool?

    /// Of a worker that begins at `now`.
    init(now: UInt64) { askAt = now }

    /// After how many ns a worker that did not listen is tried again: it may be about to begin, or hang.
    var pause: UInt64 { min(10 * RestartPolicy.millisecond << min(failures, 10), RestartPolicy.second) }
}

extension Supervisor {
    /// Clients that wait for events at the same time: others need a place, too.
    private static let mostWaits = 16
    /// How long a client waits at most, in ns: less than it waits for any answer.
    private static let waitLimit = 10 * RestartPolicy.second
    /// A worker that tells something all the time is asked that often.
    private static let askInterval = 100 * RestartPolicy.millisecond

    /// Tells that something happened to a disk: the one function for it in xbbd. Nothing is told of a state that the disk is in
    /// already, so that it may be called whenever the state is learned. What comes too often is dropped and counted; of states,
    /// the last one is told later (``careForEvents(_:now:)``).
    ///
    /// `time` is in seconds since 1970; nil: now.
    func emit(
        _ kind: DiskEventKind, of address: VBDAddress, _ details: [JSON.Member] = [], time: Double? = nil
    ) {
        let kinds = eventStore.history.meaning(of: kind, address)
        guard !kinds.isEmpty else { return }
        var suppressed: UInt64 = 0
        if let record = records[address], kind != .detached {
            guard let dropped = record.eventLimit.admit() else {
                record.eventsDue = record.eventsDue ?? clinux_monotonic_ns() &+ RestartPolicy.second
                return
            }
            suppressed = dropped
        }
        for told in kinds {
            eventStore.add(
                told, address, DiskEventDetails(told == kind ? details : []), time: time ?? wallClockSeconds(),
                suppressed: told == kinds.first ? suppressed : 0)
        }
        answerWaits { _ in true }
    }

    // MARK: What xbbd learns

    /// Tells in which state the node is.
    func noteState(_ record: Record) {
        guard let node = record.supervision.node else { return }
        emit(node.state == .connected ? .connected : .disconnected, of: record.address)
        if case .failed(let text) = record.supervision.phase {
            emit(.failed, of: record.address, [("text", .string(text))])
        }
    }

    /// A process serves the disk, by way of `how`. It is told where another one did before.
    func noteWorker(_ record: Record) {
        guard let process = record.process else { return }
        record.events = EventQuestion(now: clinux_monotonic_ns())
        if let exit = record.lastExit {
            emit(
                .workerReplaced, of: record.address,
                [("pid", .integer(process.process)), ("reason", .string("\(exit)"))])
        }
    }

    /// Disks that an earlier xbbd told of and that are gone since.
    func noteLost() {
        for address in eventStore.history.states.keys.sorted() where records[address] == nil {
            emit(.detached, of: address)
        }
    }

    // MARK: What workers tell

    /// Asks the worker for events, and tells states that could not be told before.
    func careForEvents(_ record: Record, now: UInt64) {
        if let due = record.eventsDue, due <= now {
            record.eventsDue = nil
            noteState(record)
            noteLevels(record)
        }
        guard let process = record.process, let question = record.events, question.call == nil,
            let askAt = question.askAt, askAt <= now
        else { return }
        let line = "events \(question.last)\(question.hasAnswered ? " wait" : "")"
        do throws(ControlError) {
            record.events?.call = try call(
                record.address, line, limit: nil, answerLimit: WorkerCall.shortAnswerLimit
            ) { [unowned self, weak record] _, result in
                guard let record, record.process === process else { return }
                takeEvents(result, record)
            }
        } catch {
            retryEvents(record, now: now)
        }
    }

    private func retryEvents(_ record: Record, now: UInt64) {
        guard var question = record.events else { return }
        question.call = nil
        question.askAt = now &+ question.pause
        question.failures += 1
        record.events = question
    }

    /// When there is something to do for events of a disk, in ns of CLOCK_MONOTONIC.
    func eventDeadline(_ record: Record) -> UInt64? {
        let ask = record.events?.call == nil ? record.events?.askAt : nil
        return [ask, record.eventsDue].compactMap { $0 }.min()
    }

    private func takeEvents(_ result: Result<[UInt8], ControlError>, _ record: Record) {
        let now = clinux_monotonic_ns()
        guard case .success(let text) = result else { return retryEvents(record, now: now) }
        var answer = JSON.null
        do throws(JSONError) { answer = try JSON(parsing: text) } catch {}
        guard let events = answer["events"], case .array = events, var question = record.events else {
            // A worker of an earlier version: what its node says is told all the same.
            record.events?.call = nil
            record.events?.askAt = nil
            return
        }
        question.call = nil
        question.failures = 0
        for event in events.elements.prefix(PendingEvents.limit) {
            guard let number = event["number"]?.unsigned, number > question.last,
                let kind = event["event"]?.string.flatMap({ DiskEventKind(rawValue: $0) }), Self.workerTells(kind)
            else { continue }
            question.last = number
            let time = event["time"]?.double.flatMap { (0...1e11).contains($0) ? $0 : nil }
            emit(kind, of: record.address, event.members, time: time)
        }
        question.hasAnswered = true
        question.askAt = now &+ (events.elements.isEmpty ? 10 * RestartPolicy.millisecond : Self.askInterval)
        question.isOpen = answer["open"] == .bool(true)
        question.isPaused = answer["paused"].map { $0 == .bool(true) }
        record.events = question
        noteLevels(record)
    }

    /// Tells the states that the worker has told: also what an earlier one did not come to tell.
    private func noteLevels(_ record: Record) {
        guard let question = record.events, question.hasAnswered else { return }
        if question.isOpen { emit(.attached, of: record.address) }
        // A disk whose storage was released does not go on before it has that again.
        if let isPaused = question.isPaused, isPaused || question.isOpen {
            emit(isPaused ? .paused : .resumed, of: record.address)
        }
    }

    /// What a worker may say of its disk; the rest xbbd knows better.
    private static func workerTells(_ kind: DiskEventKind) -> Bool {
        switch kind {
        case .attached, .error, .paused, .resumed, .resized, .limitReached, .imageDamaged: true
        case .connected, .disconnected, .workerReplaced, .failed, .detached: false
        }
    }

    // MARK: Who asks

    /// Answers with events from `cursor` on; if it `waits`, when there are some.
    func tellEvents(_ cursor: EventCursor?, waits: Bool, to client: ControlServer.ClientID) throws(ControlError) {
        let history = eventStore.history
        let part = history.part(from: cursor)
        if waits, part.events.isEmpty, part.dropped == 0 {
            // Those who are gone do not take a place.
            eventWaits.removeAll { !isConnected($0.client) }
            guard eventWaits.count < Self.mostWaits else {
                throw ControlError(
                    "\(Self.mostWaits) others wait for events already; try again when one of them has ended",
                    status: .timedOut)
            }
            eventWaits.append(
                EventWait(
                    client: client, cursor: cursor ?? EventCursor(epoch: history.epoch, sequence: history.next),
                    deadline: clinux_monotonic_ns() &+ Self.waitLimit))
            return
        }
        answer(Self.json(part, history.epoch), to: client)
    }

    private static func json(_ part: EventHistory.Part, _ epoch: String) -> JSON {
        .object([
            ("epoch", .string(epoch)), ("next", .integer(part.next)),
            ("gap", .bool(part.dropped != 0)), ("dropped", part.dropped.map { .integer($0) } ?? .null),
            ("events", .array(part.events.map { .object([("epoch", .string(epoch))] + $0.members) })),
        ])
    }

    private func answerWaits(where isOver: (EventWait) -> Bool) {
        let over = eventWaits.filter(isOver)
        guard !over.isEmpty else { return }
        eventWaits.removeAll(where: isOver)
        for wait in over {
            answer(Self.json(eventStore.history.part(from: wait.cursor), eventStore.history.epoch), to: wait.client)
        }
    }

    /// Answers those who have waited long enough.
    func expireEvents(now: UInt64) { answerWaits { $0.deadline <= now } }

    /// What state a disk is in, as its events tell, and where a reader stands that wants to know what comes.
    func state(of vbd: VBDReference) -> JSON {
        let history = eventStore.history
        let record = records.values.first { vbd.matches($0.address) }
        let address = record?.address ?? history.states.keys.first { vbd.matches($0) }
        let state = address.flatMap { history.states[$0] }
        // What a worker has done is in the node before its answer is; its events may come later.
        let isReleased = record?.isReleased == true
        let isToldPaused = state?.isPaused == true
        let isPaused = isReleased || isToldPaused && record.map(isPauseKept) ?? true
        let isServed =
            switch record?.supervision.phase {
            case .running?, .foreign?: true
            default: false
            }
        let isRunning =
            isServed && state?.hasFailed == false && !isReleased && !isToldPaused && record.map(isPauseKept) == false
        return .object([
            ("vbd", .text(address.map { "\($0)" })), ("attached", .bool(state != nil)),
            ("connected", .bool(state?.isConnected == true)), ("paused", .bool(isPaused)),
            ("running", .bool(isRunning)),
            ("failed", .bool(state?.hasFailed == true)), ("known", .bool(record != nil)),
            ("worker", .text(record.map(word))), ("epoch", .string(history.epoch)), ("next", .integer(history.next)),
        ])
    }

    /// The node says that the disk is paused, also for a worker that is to come.
    private func isPauseKept(_ record: Record) -> Bool {
        do throws(OperationError) {
            return try store.text("\(record.address.backendPath(own: own))/\(BackendKey.paused)") != nil
        } catch {
            return false
        }
    }
}
