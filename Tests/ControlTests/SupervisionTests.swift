// SPDX-License-Identifier: BSD-2-Clause
import PluginHost
import TestSupport
import Testing
import XenBus

@testable import XBBControl

@Suite struct SupervisionTests {
    static let second = RestartPolicy.second
    static let waiting = NodeFacts(state: .initWait)

    /// A supervision whose worker was started at time 0.
    private func running(_ node: NodeFacts = waiting) -> VBDSupervision {
        var supervision = VBDSupervision()
        #expect(supervision.handle(.node(node), now: 0) == [.start])
        #expect(supervision.handle(.started, now: 0) == [])
        return supervision
    }

    @Test("a node that is not over gets a worker", arguments: XenbusState.allCases)
    func start(_ state: XenbusState) {
        for isOnline in [true, false] {
            var supervision = VBDSupervision()
            let actions = supervision.handle(.node(NodeFacts(state: state, isOnline: isOnline)), now: 0)
            #expect(actions == (state == .closed && !isOnline ? [] : [.start]))
        }
    }

    @Test("the first failure is followed at once, later ones after 0.1 to 16 s, and then by the end") func backOff() {
        var supervision = running()
        var now: UInt64 = 0
        #expect(supervision.handle(.exited(.signalled(9), Self.waiting), now: now) == [.start])
        #expect(supervision.handle(.started, now: now) == [])
        for delay in [100, 250, 500, 1000, 2000, 4000, 8000, 16000] as [UInt64] {
            let time = delay * RestartPolicy.millisecond
            #expect(supervision.handle(.exited(.failed(1), Self.waiting), now: now) == [])
            #expect(supervision.deadline == now + time)
            #expect(supervision.handle(.timer, now: now + time - 1) == [])
            now += time
            #expect(supervision.handle(.timer, now: now) == [.start])
            #expect(supervision.handle(.started, now: now) == [])
        }
        let actions = supervision.handle(.exited(.signalled(11), Self.waiting), now: now)
        #expect(actions == [.giveUp("the worker failed 10 times in 300 s, last: signal 11 (SIGSEGV)")])
        #expect(supervision.deadline == nil)
        #expect(supervision.lastFailure == "signal 11 (SIGSEGV)")
    }

    @Test("a worker that ran for a minute has no failures behind it") func steady() {
        var supervision = running()
        var now: UInt64 = 0
        for _ in 0..<100 {
            now += 60 * Self.second
            #expect(supervision.handle(.exited(.failed(1), Self.waiting), now: now) == [.start])
            #expect(supervision.handle(.started, now: now) == [])
        }
    }

    @Test("a worker that fails every 50 s is started for ever") func slowFailures() {
        var supervision = running()
        var now: UInt64 = 0
        for _ in 0..<1000 {
            now += 50 * Self.second
            #expect(supervision.handle(.exited(.unknown, Self.waiting), now: now) == [.start], "at once")
            #expect(supervision.handle(.started, now: now) == [])
        }
    }

    @Test(
        "who hands over or loses its storage is followed at once, and nothing is counted",
        arguments: [0, 75] as [Int32])
    func handOver(_ status: Int32) {
        var supervision = running()
        let exit = status == 0 ? WorkerExit.handedOver : WorkerExit(code: status, signal: 0)
        for round in 0..<200 as Range<UInt64> {
            #expect(supervision.handle(.exited(exit, Self.waiting), now: round * Self.second) == [.start])
            #expect(supervision.handle(.started, now: round * Self.second) == [])
        }
        #expect(supervision.lastFailure == nil)
        // A failure after all these is the first one.
        #expect(supervision.handle(.exited(.failed(1), Self.waiting), now: 200 * Self.second) == [.start])
        // A guest that closed its disk before has a successor for its next driver.
        supervision = running()
        #expect(supervision.handle(.exited(.handedOver, NodeFacts(state: .closed)), now: 1) == [.start])
    }

    @Test("a worker that hands over all the time does not occupy the machine") func handOverStorm() {
        var supervision = running()
        var starts = 0
        var now: UInt64 = 0
        while now < 30 * Self.second {
            let actions = supervision.handle(.exited(.handedOver, Self.waiting), now: now)
            if actions.isEmpty, let deadline = supervision.deadline {
                now = deadline
                #expect(supervision.handle(.timer, now: now) == [.start])
            }
            #expect(supervision.handle(.started, now: now) == [])
            starts += 1
            now += RestartPolicy.millisecond
        }
        #expect(starts < 32 + 31 && supervision.lastFailure == nil)
    }

    @Test("status 0 without a hand-over is a failure: a plugin called exit()") func deserted() {
        var supervision = running()
        let connected = NodeFacts(state: .connected)
        #expect(supervision.handle(.exited(.clean, connected), now: 0) == [.start])
        #expect(supervision.handle(.started, now: 0) == [])
        #expect(supervision.handle(.exited(.clean, connected), now: 0) == [])
        #expect(supervision.deadline == 100 * RestartPolicy.millisecond)
        #expect(supervision.lastFailure == "exit status 0, and did not hand the disk over")
    }

    @Test(
        "a node made anew is a first start, however the worker before ended",
        arguments: [.clean, .handedOver, .failed(1), .signalled(11), .unknown] as [WorkerExit])
    func firstStart(_ exit: WorkerExit) {
        var supervision = running()
        let new = NodeFacts(state: .initialising)
        for round in 0..<200 as Range<UInt64> {
            let now = round * RestartPolicy.millisecond
            #expect(supervision.handle(.node(NodeFacts(state: .closed, isOnline: false)), now: now) == [])
            // Seen before the old worker's end, or only then.
            if round % 2 == 0 { #expect(supervision.handle(.node(new), now: now) == []) }
            #expect(supervision.handle(.exited(exit, new), now: now) == [.start])
            #expect(supervision.handle(.started, now: now) == [])
        }
        #expect(supervision.lastFailure == nil)
    }

    @Test("nobody serves a disk whose storage the administrator has, until the time is over or it is to end")
    func released() {
        var held = NodeFacts(state: .connected)
        held.releasedUntil = 100
        func released() -> VBDSupervision {
            var supervision = running()
            #expect(supervision.handle(.exited(.handedOver, held), now: 1) == [])
            #expect(supervision.phase == .released(until: 100) && supervision.deadline == 100)
            #expect(supervision.handle(.node(held), now: 2) == [] && supervision.handle(.timer, now: 99) == [])
            return supervision
        }
        var supervision = released()
        #expect(supervision.handle(.timer, now: 100) == [.start])
        supervision = released()
        #expect(supervision.handle(.node(NodeFacts(state: .connected)), now: 2) == [.start])
        supervision = released()
        #expect(supervision.handle(.node(nil), now: 2) == [.forget])
        for (state, isOnline) in [(XenbusState.closing, false), (.connected, false), (.closing, true)] {
            supervision = released()
            var facts = NodeFacts(state: state, isOnline: isOnline)
            facts.releasedUntil = 100
            #expect(supervision.handle(.node(facts), now: 2) == [.start])
        }
        // Later ones, and those that an xbbd finds.
        supervision = released()
        held.releasedUntil = 200
        #expect(supervision.handle(.node(held), now: 2) == [] && supervision.deadline == 200)
        supervision = VBDSupervision()
        #expect(supervision.handle(.node(held), now: 2) == [] && supervision.deadline == 200)
        #expect(supervision.handle(.retry, now: 3) == [] && supervision.handle(.timer, now: 200) == [.start])
    }

    @Test("who was told to hand over is followed at once, and nothing is counted") func replaced() {
        var supervision = running()
        for second in 0..<100 as Range<UInt64> {
            #expect(supervision.handle(.replaced(Self.waiting), now: second * Self.second) == [.start])
            #expect(supervision.handle(.started, now: second * Self.second) == [])
        }
        #expect(supervision.handle(.replaced(nil), now: 1) == [.forget])
    }

    @Test("wrong usage does not get better") func usage() {
        var supervision = running()
        let actions = supervision.handle(.exited(.usage, Self.waiting), now: 1)
        #expect(actions.count == 1)
        guard case .giveUp? = actions.first else {
            Issue.record("\(actions)")
            return
        }
    }

    @Test("the end of the node ends it, whatever the worker did") func nodeGone() {
        for exit in [.clean, .failed(1), .signalled(9), .unknown, .usage] as [WorkerExit] {
            var supervision = running()
            #expect(supervision.handle(.node(nil), now: 1) == [])
            #expect(supervision.handle(.exited(exit, nil), now: 2) == [.forget])
        }
    }

    @Test("a node made anew while the old worker leaves gets a new worker at once") func madeAnew() {
        var supervision = running()
        #expect(supervision.handle(.node(nil), now: 1) == [])
        #expect(supervision.handle(.node(NodeFacts(state: .initialising)), now: 2) == [])
        #expect(supervision.handle(.exited(.clean, NodeFacts(state: .initialising)), now: 3) == [.start])
    }

    @Test("a device that its worker closed stays closed until its state changes") func closed() {
        let closed = NodeFacts(state: .closed)
        var supervision = running()
        #expect(supervision.handle(.exited(.clean, closed), now: 1) == [])
        #expect(supervision.phase == .over)
        #expect(supervision.handle(.node(closed), now: 2) == [])
        #expect(supervision.handle(.retry, now: 2) == [])
        #expect(supervision.handle(.node(NodeFacts(state: .initialising)), now: 3) == [.start])
        // One that crashed in that state did not mean it.
        supervision = running()
        #expect(supervision.handle(.exited(.signalled(6), closed), now: 1) == [.start])
        // And one that xbbd finds so at its start is served.
        supervision = VBDSupervision()
        #expect(supervision.handle(.node(closed), now: 0) == [.start])
    }

    @Test("what was given up is tried again when it is made anew or the administrator says so") func givenUp() {
        var failed = running()
        _ = failed.handle(.exited(.usage, Self.waiting), now: 1)
        for state in XenbusState.allCases where state != .initialising && state != .closed {
            var supervision = failed
            #expect(supervision.handle(.node(NodeFacts(state: state)), now: 2) == [])
            #expect(supervision.handle(.node(NodeFacts(state: .initialising)), now: 3) == [.clearError, .start])
        }
        var supervision = failed
        #expect(supervision.handle(.retry, now: 2) == [.clearError, .start])
        supervision = failed
        #expect(supervision.handle(.node(nil), now: 2) == [.clearError, .forget])
    }

    @Test("the toolstack gets its state 6 though no worker is left") func closeWithoutWorker() {
        let closing = NodeFacts(state: .closing, isOnline: false)
        var supervision = running()
        _ = supervision.handle(.exited(.usage, Self.waiting), now: 1)
        #expect(supervision.handle(.node(NodeFacts(state: .closing)), now: 2) == [])
        #expect(supervision.handle(.node(closing), now: 3) == [.closeNode])
        #expect(supervision.handle(.node(NodeFacts(state: .closed, isOnline: false)), now: 4) == [.clearError])
        #expect(supervision.phase == .over)
        supervision = running()
        #expect(supervision.handle(.exited(.usage, closing), now: 1).last == .closeNode)
    }

    @Test("a guest whose disk is given up is told so") func dismissal() {
        let connected = NodeFacts(state: .connected)
        var supervision = running(connected)
        #expect(supervision.handle(.exited(.usage, connected), now: 1).last == .closeFrontend)
        var policy = RestartPolicy()
        policy.failureLimit = 1
        supervision = VBDSupervision(policy: policy)
        #expect(supervision.handle(.node(connected), now: 0) == [.start])
        #expect(supervision.handle(.started, now: 0) == [])
        let text = "the worker failed 1 times in 300 s, last: signal 9 (SIGKILL)"
        #expect(supervision.handle(.exited(.signalled(9), connected), now: 1) == [.giveUp(text), .closeFrontend])
    }

    @Test("a process that is not known is waited for") func foreign() {
        var supervision = VBDSupervision()
        #expect(supervision.handle(.node(Self.waiting), now: 0) == [.start])
        for round in 0..<100 as Range<UInt64> {
            #expect(supervision.handle(.lockHeld, now: round * Self.second) == [])
            #expect(supervision.handle(.node(Self.waiting), now: round * Self.second) == [])
            #expect(supervision.handle(.timer, now: (round + 1) * Self.second) == [.start])
        }
        _ = supervision.handle(.lockHeld, now: 0)
        _ = supervision.handle(.node(nil), now: 0)
        #expect(supervision.handle(.timer, now: Self.second) == [.forget])
    }

    @Test("random lives: never two workers, never a question without an answer", arguments: [UInt64(11), 12, 13, 14])
    func randomLives(seed: UInt64) {
        var random = SplitMix64(seed: seed)
        for life in 0..<300 {
            var supervision = VBDSupervision()
            var hasWorker = false
            var node: NodeFacts?
            var now: UInt64 = 0
            for _ in 0..<200 {
                now += UInt64.random(in: 0...40, using: &random) * Self.second
                var actions: [VBDSupervision.Action]
                switch Int.random(in: 0..<10, using: &random) {
                case 0..<4:
                    node =
                        Int.random(in: 0..<5, using: &random) == 0
                        ? nil
                        : NodeFacts(
                            state: XenbusState.allCases.randomElement(using: &random) ?? .unknown,
                            isOnline: Bool.random(using: &random))
                    actions = supervision.handle(.node(node), now: now)
                case 4..<8 where hasWorker:
                    hasWorker = false
                    let exits: [WorkerExit] = [.clean, .failed(1), .usage, .signalled(9), .unknown]
                    let exit = exits.randomElement(using: &random)
                    actions = supervision.handle(.exited(exit ?? .clean, node), now: now)
                case 9: actions = supervision.handle(.retry, now: now)
                default: actions = supervision.handle(.timer, now: now)
                }
                var rounds = 0
                while !actions.isEmpty {
                    rounds += 1
                    #expect(rounds < 10, "seed \(seed), life \(life)")
                    switch actions.removeFirst() {
                    case .start:
                        #expect(!hasWorker && node != nil, "seed \(seed), life \(life)")
                        switch Int.random(in: 0..<4, using: &random) {
                        case 0: actions += supervision.handle(.startFailed("no memory"), now: now)
                        case 1: actions += supervision.handle(.lockHeld, now: now)
                        default:
                            actions += supervision.handle(.started, now: now)
                            hasWorker = true
                        }
                    case .forget:
                        #expect(!hasWorker && node == nil, "seed \(seed), life \(life)")
                        supervision = VBDSupervision()
                    case .closeNode: #expect(!hasWorker && node?.state == .closing, "seed \(seed), life \(life)")
                    case .closeFrontend: #expect(!hasWorker && node?.state == .connected, "seed \(seed), life \(life)")
                    case .giveUp, .clearError: #expect(!hasWorker, "seed \(seed), life \(life)")
                    }
                }
                #expect(supervision.phase != .starting, "seed \(seed), life \(life)")
                if case .running = supervision.phase {
                    #expect(hasWorker)
                } else {
                    #expect(!hasWorker)
                }
            }
        }
    }
}
