// SPDX-License-Identifier: BSD-2-Clause
// Whether the worker of one VBD is to run, as a pure function of what happened.
//
//        node                   worker started                  worker ended
//   idle ────► starting ──────────────────────────► running ───────────────┬─ node gone ──► forgotten
//                 ▲  │ ▲                                                    ├─ 6 ──────────► over
//                 │  │ └──────── each second ───── foreign                  ├─ handed over, or node made anew ──► starting
//  (released: as waiting, with the time that the administrator has the storage)
//           timer │  │ somebody else holds the lock ──► ▲                   └─ failure ─┬──► waiting
//                 └──┼──────────────────────────── waiting                              └──► failed (too often)
//                    └ cannot be started ─────────► ▲
//
// One worker at most: `start` is given in `starting` only, and that has one answer.
public import XenBus

/// What a backend's node says.
public struct NodeFacts: Equatable, Sendable {
    /// The backend's state.
    public var state: XenbusState
    /// False once the toolstack wants the device removed.
    public var isOnline: Bool
    /// Until when no worker is to serve, in ns of CLOCK_MONOTONIC; nil: one is.
    public var releasedUntil: UInt64?
    /// The disk is getting other storage.
    public var exchange: StorageExchange?
    /// A guest may be served from what ``exchange`` has brought.
    public var isExchangeServed = false

    /// State and `online`.
    public init(state: XenbusState, isOnline: Bool = true) {
        self.state = state
        self.isOnline = isOnline
    }

    /// Nothing is left to do: the device is closed and will not be opened again.
    public var isOver: Bool { state == .closed && !isOnline }

    /// The toolstack wants the device removed and waits for state 6.
    var awaitsClose: Bool { state == .closing && !isOnline }

    /// The administrator has the storage. Not of a disk that is to end: its worker closes it.
    func isReleased(now: UInt64) -> Bool {
        guard let releasedUntil, isOnline else { return false }
        return now < releasedUntil && [.initWait, .connected].contains(state)
    }
}

/// The supervision of one VBD. Times are in ns of CLOCK_MONOTONIC.
public struct VBDSupervision: Sendable {
    /// What is known about the worker.
    public enum Phase: Equatable, Sendable {
        /// Nothing is known yet.
        case idle
        /// `start` was given.
        case starting
        /// A worker serves the VBD.
        case running(since: UInt64)
        /// An unknown process serves the VBD.
        case foreign(recheck: UInt64)
        /// The administrator has the storage, until this time at most.
        case released(until: UInt64)
        /// A worker failed; the next one starts at this time.
        case waiting(until: UInt64)
        /// Workers failed too often.
        case failed(String)
        /// The VBD is closed.
        case over
    }

    /// What happened.
    public enum Event: Equatable, Sendable {
        /// The node was read; nil if it is gone.
        case node(NodeFacts?)
        /// Answer to `start`: a worker runs.
        case started
        /// Answer to `start`: no worker could be started.
        case startFailed(String)
        /// Answer to `start`: the VBD's lock is held by an unknown process.
        case lockHeld
        /// The worker ended; the node was read after that.
        case exited(WorkerExit, NodeFacts?)
        /// The worker ended as it was told to, so that another one continues; the node was read after that.
        case replaced(NodeFacts?)
        /// ``VBDSupervision/deadline`` has come.
        case timer
        /// The administrator wants another attempt.
        case retry
    }

    /// What to do, in order.
    public enum Action: Equatable, Sendable {
        /// Start a worker, unless there is one. Answer: `started`, `startFailed`, `lockHeld`.
        case start
        /// Tell the toolstack that the VBD is not served.
        case giveUp(String)
        /// The guest uses a disk that is no longer served: let its frontend close it.
        case closeFrontend
        /// Remove what `giveUp` wrote.
        case clearError
        /// The toolstack waits for state 6, and there is no worker to write it.
        case closeNode
        /// The VBD is gone: drop everything that is kept for it.
        case forget
    }

    let policy: RestartPolicy
    /// What is known about the worker.
    public private(set) var phase = Phase.idle
    /// The node as it was last read.
    public private(set) var node: NodeFacts?
    /// How the last worker failed.
    public private(set) var lastFailure: String?
    /// When workers failed, oldest first; at most as many as the policy's limit.
    private var failures: [UInt64] = []
    /// When workers handed over, oldest first; at most as many as the policy's limit.
    private var handOvers: [UInt64] = []
    /// The node was made anew since the worker started: it is another device, whose first worker is to come.
    private var isMadeAnew = false

    /// A VBD that nothing is known about.
    public init(policy: RestartPolicy = RestartPolicy()) {
        self.policy = policy
    }

    /// When `timer` is due; nil if it is not needed.
    public var deadline: UInt64? {
        switch phase {
        case .waiting(let until): until
        case .foreign(let recheck): recheck
        case .released(let until): until
        case .idle, .starting, .running, .failed, .over: nil
        }
    }

    /// Handles an event that happened at `now`.
    public mutating func handle(_ event: Event, now: UInt64) -> [Action] {
        switch event {
        case .node(let facts): return nodeRead(facts, now: now)
        case .started:
            guard phase == .starting else { return [] }
            phase = .running(since: now)
            isMadeAnew = false
            return []
        case .startFailed(let text):
            guard phase == .starting else { return [] }
            return fail(text, now: now)
        case .lockHeld:
            guard phase == .starting else { return [] }
            phase = .foreign(recheck: now &+ RestartPolicy.second)
            return []
        case .exited(let exit, let facts): return exited(exit, facts, now: now)
        case .replaced(let facts):
            note(facts)
            guard case .running = phase else { return [] }
            return begin(now: now)
        case .timer:
            guard let deadline, now >= deadline else { return [] }
            return begin(now: now)
        case .retry: return retry(now: now)
        }
    }

    /// Starts a worker if the node needs one.
    private mutating func begin(now: UInt64) -> [Action] {
        guard let node else {
            phase = .idle
            return [.forget]
        }
        // A device that a worker closed stays closed until its state is changed.
        if node.isOver || (phase == .over && node.state == .closed) {
            phase = .over
            return []
        }
        if let until = node.releasedUntil, node.isReleased(now: now) {
            phase = .released(until: until)
            return []
        }
        phase = .starting
        return [.start]
    }

    /// Takes what the node says now. True if it was made anew since it was read before.
    @discardableResult private mutating func note(_ facts: NodeFacts?) -> Bool {
        let isNew = facts?.state == .initialising && node?.state != .initialising
        node = facts
        if isNew { isMadeAnew = true }
        return isNew
    }

    private mutating func nodeRead(_ facts: NodeFacts?, now: UInt64) -> [Action] {
        let isNew = note(facts)
        switch phase {
        case .starting, .running, .foreign: return []  // whoever serves the VBD reads the node too
        case .idle, .over, .released: return begin(now: now)
        case .waiting:
            guard let facts else { return begin(now: now) }
            if isNew {
                failures = []
                return begin(now: now)
            }
            if facts.isOver { phase = .over }
            return []
        case .failed:
            guard let facts else { return [.clearError] + begin(now: now) }
            if isNew || facts.isOver {
                failures = []
                return [.clearError] + begin(now: now)
            }
            return facts.awaitsClose ? [.closeNode] : []
        }
    }

    private mutating func exited(_ exit: WorkerExit, _ facts: NodeFacts?, now: UInt64) -> [Action] {
        note(facts)
        guard case .running(let since) = phase else { return [] }
        guard let facts else { return begin(now: now) }
        // A worker that closed the device for good was told to; one that handed over left it to a successor.
        if facts.isOver || (exit == .clean && facts.state == .closed) {
            phase = .over
            return []
        }
        if isMadeAnew {
            // However the worker of the device before ended, this one has had none.
            failures = []
            lastFailure = nil
            return begin(now: now)
        }
        if now &- since >= policy.steadySeconds * RestartPolicy.second { failures = [] }
        switch exit {
        case .handedOver, .leftRequests, .storageGone: return handedOver(now: now)
        case .clean where facts.state == .initialising && failures.isEmpty:
            // It may have left an earlier node, if nobody read the node in between.
            failures = [now]
            return begin(now: now)
        case .usage:
            lastFailure = "\(exit)"
            return giveUp("the worker ended with \(exit)")
        case .clean: return fail("\(exit), and did not hand the disk over", now: now)
        case .deserted, .failed, .signalled, .unknown: return fail("\(exit)", now: now)
        }
    }

    private mutating func handedOver(now: UInt64) -> [Action] {
        handOvers = handOvers.filter { now &- $0 < policy.burstSeconds * RestartPolicy.second }
        if handOvers.count >= policy.handOverLimit {
            phase = .waiting(until: now &+ RestartPolicy.second)
            return []
        }
        handOvers.append(now)
        return begin(now: now)
    }

    private mutating func fail(_ text: String, now: UInt64) -> [Action] {
        lastFailure = text
        let window = policy.windowSeconds * RestartPolicy.second
        failures = failures.filter { now &- $0 < window } + [now]
        if failures.count >= policy.failureLimit {
            return giveUp("the worker failed \(failures.count) times in \(policy.windowSeconds) s, last: \(text)")
        }
        let recent = failures.count { now &- $0 < policy.burstSeconds * RestartPolicy.second }
        let delay = policy.delay(afterFailures: recent)
        if delay == 0 { return begin(now: now) }
        phase = .waiting(until: now &+ delay)
        return []
    }

    private mutating func giveUp(_ text: String) -> [Action] {
        failures = []
        phase = .failed(text)
        if node?.awaitsClose == true { return [.giveUp(text), .closeNode] }
        return [.giveUp(text)] + (node?.state == .connected ? [.closeFrontend] : [])
    }

    private mutating func retry(now: UInt64) -> [Action] {
        switch phase {
        case .waiting:
            failures = []
            return begin(now: now)
        case .failed:
            failures = []
            return [.clearError] + begin(now: now)
        case .idle, .starting, .running, .foreign, .released, .over: return []
        }
    }
}
