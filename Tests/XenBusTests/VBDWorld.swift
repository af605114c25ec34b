// SPDX-License-Identifier: BSD-2-Clause
// What surrounds the machine of a VBD: a hostile guest, a toolstack, slow storage. It says which promises were broken.
import TestSupport

@testable import XenBus

/// A store, a storage and rings that carry out actions as a host does, and complain about every broken promise.
struct VBDWorld {
    /// An action that waits for its answer.
    enum Work: Equatable {
        case open(DeviceRequest)
        case close
        case connect
        case disconnect
    }

    var machine: VBDMachine
    var random: SplitMix64
    let release: VBDMachine.StorageRelease

    // XenStore.
    var state: XenbusState?
    var isOnline = true
    var frontend: XenbusState?
    /// The state is the backend's own word and not the toolstack's or an earlier process's.
    var isOwnState = false
    /// The toolstack has shown this run of the frontend 5 or 6, and the machine was told.
    var isSentAway = false

    // The host.
    var isOpen = false
    var hasRings = false
    var work: Work?
    var timerRuns = false
    var exits: [VBDMachine.ExitReason] = []
    var storageWorks: UInt64
    var ringsWork: UInt64
    /// How often, in percent, the toolstack is faster than an update.
    var haste: UInt64 = 3
    var broken: [String] = []

    init(seed: UInt64) {
        var random = SplitMix64(seed: seed)
        release = random.chance(75) ? .withFrontend : .withDevice
        storageWorks = random.pick([0, 90, 100])
        ringsWork = random.pick([0, 70, 100])
        let states: [XenbusState] = [.initialising, .initialising, .initWait, .connected, .closing, .closed]
        state = random.pick(states)
        frontend = random.pick([.initialising, .initialised, .connected, .closing, .closed, .unknown, nil])
        self.random = random
        machine = VBDMachine(
            attachment: .init(state: state, isOnline: true, frontend: frontend),
            configuration: .init(storageRelease: release))
        carryOut(machine.start())
    }

    /// A new device whose storage and rings always work, and a toolstack that keeps still.
    init(calm seed: UInt64) {
        release = .withFrontend
        (storageWorks, ringsWork, haste) = (100, 100, 0)
        (state, frontend) = (.initialising, .initialising)
        random = SplitMix64(seed: seed)
        machine = VBDMachine(attachment: .init())
        carryOut(machine.start())
        hand(.storageConfigured(goodRequest))
    }

    mutating func complain(_ text: String) {
        broken.append("\(text), in \(String(describing: machine.stage).prefix(while: { $0 != "(" }))")
    }

    mutating func hand(_ event: VBDMachine.Event) {
        carryOut(machine.handle(event))
    }

    mutating func carryOut(_ actions: [VBDMachine.Action]) {
        if actions.count > 4 { complain("\(actions.count) actions") }
        if actions.reduce(0, { if case .update = $1 { $0 + 1 } else { $0 } }) > 1 { complain("two updates at once") }
        if machine.pendingEntries.count > 3 { complain("entries pile up") }
        for action in actions {
            if !exits.isEmpty { complain("an action after the end") }
            carryOut(action)
        }
        // 4 stands for connected rings, unless an earlier process left it or a later one is to go on with it.
        if state == .connected, isOwnState, !hasRings, machine.state != nil { complain("Connected without rings") }
    }

    mutating func carryOut(_ action: VBDMachine.Action) {
        switch action {
        case .update(let update): apply(update)
        case .openDevice(let request):
            if isOpen || work != nil { complain("opened twice") }
            work = .open(request)
        case .closeDevice:
            if !isOpen || hasRings || work != nil { complain("closed while in use or not open") }
            work = .close
        case .connectRings:
            if !isOpen || hasRings || work != nil { complain("connected without storage or twice") }
            work = .connect
        case .startQueues:
            if !hasRings { complain("started without rings") }
        case .disconnectRings:
            if !hasRings || work != nil { complain("disconnected without rings") }
            work = .disconnect
        case .startTimer:
            if timerRuns { complain("two timers") }
            timerRuns = true
        case .exit(let reason):
            if isOpen || hasRings || work != nil { complain("the end while something is held") }
            switch reason {
            case .detached: if state != .closed { complain("detached in state \(state as Any)") }
            case .vanished, .handedOver, .storeFailed, .conflict: break
            }
            exits.append(reason)
        }
    }

    mutating func apply(_ update: StoreUpdate) {
        // Now and then the toolstack is faster.
        if random.chance(haste) { detachByToolstack() }
        guard let found = state, found == update.replacing, isOnline == update.isOnline else {
            readBackend()
            return
        }
        for entry in update.entries {
            let key =
                switch entry {
                case .write(let key, _), .remove(let key): key
                }
            if ["online", "frontend", "frontend-id", "params", "mode"].contains(key) { complain("wrote \(key)") }
        }
        switch update.state {
        case .connected? where !hasRings || work == .disconnect: complain("4 without rings")
        case .closed? where hasRings: complain("6 with rings")
        case .closed? where isOpen && (release == .withFrontend || !isOnline): complain("6 with storage")
        case .closing? where hasRings && frontend == .closing && isOnline && machine.purpose == .serve:
            complain("5 before the rings are gone")
        case .initialising?, .initialised?, .unknown?, .reconfiguring?, .reconfigured?: complain("a senseless state")
        case .initWait? where isSentAway, .connected? where isSentAway: complain("overruled the toolstack")
        default: break
        }
        if let new = update.state {
            state = new
            isOwnState = true
        }
        hand(.updateDone)
    }

    // MARK: What may happen

    mutating func finishWork() {
        guard let work else { return }
        self.work = nil
        switch work {
        case .open:
            isOpen = random.chance(storageWorks)
            let facts = DeviceFacts(sectorCount: UInt64(random.below(9 as Int)))
            hand(isOpen ? .deviceOpened(facts) : .deviceOpenFailed("no"))
        case .close:
            isOpen = false
            hand(.deviceClosed)
        case .connect:
            hasRings = random.chance(ringsWork)
            hand(hasRings ? .ringsConnected(offered()) : .ringsFailed("no"))
        case .disconnect:
            hasRings = false
            hand(.ringsDisconnected)
        }
    }

    mutating func fireTimer() {
        guard timerRuns else { return }
        timerRuns = false
        hand(.timerFired)
    }

    mutating func setFrontend(_ new: XenbusState?) {
        let isReady = new == .initialised || new == .connected
        if new != frontend, !isReady || (frontend == .connected && new == .initialised) { isSentAway = false }
        frontend = new
        hand(.frontendChanged(new))
    }

    mutating func detachByToolstack() {
        guard state != nil else { return }
        isOnline = false
        if state != .closed {
            state = .closing
            isOwnState = false
        }
    }

    mutating func readBackend() {
        if state != machine.state, state == .closing || state == .closed { isSentAway = true }
        hand(.backendChanged(state: state, isOnline: isOnline))
    }

    mutating func happen() {
        switch random.below(100) {
        case 0..<30:
            setFrontend(random.pick(XenbusState.allCases.map { $0 } + [nil, .initialising, .initialised, .connected]))
        case 30..<60: finishWork()
        case 60..<68: fireTimer()
        case 68..<78: hand(.storageConfigured(goodRequest))
        case 78..<80: hand(.storageRejected(random.pick(["a", "b"])))
        case 80..<83: hand(resized(UInt64(random.below(9 as Int))))
        case 83..<84: if isOpen { hand(.deviceLost("lost")) }
        case 84..<94: readBackend()
        case 94:
            detachByToolstack()
            readBackend()
        case 95:
            guard state != nil else { return }
            (state, isOwnState) = (random.pick([.closing, .closed]), false)
            readBackend()
        case 96: if random.chance(20) { hand(.stopRequested(.closeDevice)) }
        case 97:
            // Answers that nobody asked for.
            if work == nil {
                hand(
                    random.pick([
                        .deviceOpened(goodFacts), .deviceClosed, .ringsConnected(offered()), .ringsFailed("x"),
                        .ringsDisconnected, .updateDone, .deviceOpenFailed("x"),
                    ]))
            }
        default: break
        }
    }

    /// Lets everything that is under way come to its end.
    mutating func settle() {
        var rounds = 0
        while work != nil || timerRuns {
            finishWork()
            fireTimer()
            rounds += 1
            if rounds > 100 {
                complain("does not come to rest")
                return
            }
        }
    }

    /// The VBD ends in one of the ways in which it may, and must end then.
    mutating func end() {
        let mayHaveEnded = machine.purpose == .close || !isOnline
        if !exits.isEmpty, !mayHaveEnded { complain("ended without a reason") }
        guard exits.isEmpty else { return }
        switch random.below(5) {
        case 0:
            // Forced detach: the frontend's path goes first.
            detachByToolstack()
            setFrontend(nil)
            readBackend()
        case 1:
            // Safe detach of a guest that obeys.
            detachByToolstack()
            readBackend()
            settle()
            if exits.isEmpty { setFrontend(.closing) }
            if exits.isEmpty { settle() }
            if exits.isEmpty { setFrontend(.closed) }
        case 2:
            // libxl closes the disk of a dying domain itself, and deletes it then.
            let isNews = machine.state != .closed
            (state, isOwnState) = (.closed, false)
            readBackend()
            settle()
            if isNews, isOpen || hasRings { complain("something is held in the toolstack's 6") }
            guard exits.isEmpty else { return }
            state = nil
            readBackend()
        case 3:
            state = nil
            readBackend()
        default:
            hand(.stopRequested(.handOver))
        }
        settle()
        if exits.count != 1 { complain("\(exits.count) ends") }
        if state != nil, machine.stage != .ended { complain("not ended") }
    }
}
