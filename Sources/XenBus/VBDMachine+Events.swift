// SPDX-License-Identifier: BSD-2-Clause
// How each event changes what the machine knows and holds. VBDMachine+Reconcile.swift decides what follows from it.

extension VBDMachine {
    /// Records `event`. Answers that nobody waits for and values that are known already change nothing.
    mutating func observe(_ event: Event, _ actions: inout [Action]) {
        switch event {
        case .backendChanged(let state, let isOnline):
            self.isOnline = isOnline
            observeNode(state)
        case .frontendChanged(let state):
            observeFrontend(state, &actions)
        case .updateDone:
            if case .updating(_, to: let state) = node { node = .present(state) }
        case .storeFailed(let text):
            loseNode(.storeFailed(OperatorText.message(text)))
        case .stopRequested(.closeDevice):
            purpose = .close
        case .stopRequested(.handOver):
            loseNode(.handedOver)
        case .timerFired:
            if stage == .resting { stage = .idle }
        case .storageConfigured, .storageRejected, .deviceOpened, .deviceOpenFailed, .deviceResized, .deviceLost,
            .deviceClosed:
            observeStorage(event, &actions)
        case .ringsConnected, .ringsFailed, .ringsDisconnected:
            observeRings(event, &actions)
        }
    }

    /// The node's state was read. A state that this machine did not write comes from the toolstack or from another
    /// driver.
    private mutating func observeNode(_ state: XenbusState?) {
        let known: XenbusState
        switch node {
        case .present(let state), .updating(let state, to: _): known = state
        case .lost: return
        }
        switch state {
        case known?:
            node = .present(known)
        case .closing?:
            node = .present(.closing)
            if run == .open { run = .ending }
        case .closed?:
            node = .present(.closed)
            run = .cut
        case nil, .initialising?:
            // A node that was deleted and created again between two reads is for another instance.
            loseNode(.vanished)
        case let state?:
            loseNode(.conflict(state))
        }
    }

    private mutating func observeFrontend(_ state: XenbusState?, _ actions: inout [Action]) {
        let old = frontend
        switch (state, old) {
        case (nil, .awaited): break
        case (nil, _): frontend = .gone
        case (let state?, _): frontend = .present(state)
        }
        guard frontend != old else { return }
        // A frontend that goes from 4 back to 3 always has new rings, even if the states in between were not seen.
        let hasLeft = !isFrontendReady || (old == .present(.connected) && state == .initialised)
        guard hasLeft else { return }
        run = .open
        switch stage {
        case .connecting(let device, _): stage = .discarding(device)
        case .connected: disconnect(ringEnd, &actions)
        default: break
        }
        if isFrontendLeaving, case .failed(let request) = storage { storage = .configured(request) }
        switch state {
        case .unknown?, .reconfiguring?, .reconfigured?:
            report("state of the frontend is \(state?.text ?? ""), or none at all: expected 1, 3, 4, 5 or 6")
        default: break
        }
    }

    /// How the rings of a frontend that has left states 3 and 4 end.
    private var ringEnd: RingEnd {
        switch frontend {
        case .gone: .quiet
        case .present(.closing), .present(.closed): .emptied
        case .present, .awaited: .atOnce
        }
    }

    private mutating func observeStorage(_ event: Event, _ actions: inout [Action]) {
        switch (event, stage) {
        case (.storageConfigured(let request), _):
            if storage != .failed(request) { storage = .configured(request) }
        case (.storageRejected(let text), .idle), (.storageRejected(let text), .resting):
            // The report changes the node, which makes the host read it again: report each text only once.
            guard storage != .rejected(text) else { return }
            storage = .rejected(text)
            reportStorage(text)
        case (.deviceOpened(let facts), .opening(let request)):
            stage = .ready(Device(request: request, facts: facts))
            pendingEntries = [.write(BackendKey.hotplugStatus, "connected")]
            if hotplugStatus == .error { pendingEntries.append(.remove(BackendKey.hotplugError)) }
            hotplugStatus = .connected
        case (.deviceOpenFailed(let text), .opening(let request)):
            rest(&actions)
            failStorage(request)
            reportStorage(text)
        case (.deviceClosed, .closing):
            rest(&actions)
        case (.deviceResized(let sectorCount, let offered), _):
            changeDevice { $0.facts.sectorCount = sectorCount }
            if case .connected(let device, _, let announced) = stage, let offered {
                stage = .connected(device, offered, announced: announced)
            }
        case (.deviceLost(let text), _):
            guard let device = heldDevice, !device.isLost else { return }
            changeDevice { $0.isLost = true }
            failStorage(device.request)
            if run == .open, isFrontendReady { run = .ending }
            report(text)
        default: break
        }
    }

    private mutating func observeRings(_ event: Event, _ actions: inout [Action]) {
        switch (event, stage) {
        case (.ringsConnected(let offered), .connecting(let device, let origin)):
            stage = .connected(device, offered, announced: origin == .inherited ? inheritedSectorCount : nil)
            actions.append(.startQueues)
            if run == .inherited { run = state == .connected && !isDetaching ? .open : .ending }
        case (.ringsConnected, .discarding(let device)):
            stage = .draining(device)
            actions.append(.disconnectRings(.atOnce))
        case (.ringsFailed(let text), .connecting(let device, _)):
            stage = .ready(device)
            if run != .cut { run = .ending }
            report(text)
        case (.ringsFailed, .discarding(let device)), (.ringsDisconnected, .draining(let device)):
            stage = .ready(device)
        default: break
        }
    }

    /// From now on nothing is written. The first reason counts.
    private mutating func loseNode(_ reason: ExitReason) {
        if case .lost = node { return }
        node = .lost(reason)
    }

    /// Not tried again during the frontend's present run; the next run may succeed.
    private mutating func failStorage(_ request: DeviceRequest) {
        if storage == .configured(request), !isFrontendLeaving { storage = .failed(request) }
    }

    /// Nothing is held any more. The timer limits how often a guest can make the storage be opened again.
    private mutating func rest(_ actions: inout [Action]) {
        guard !isLost, !isDetaching else {
            stage = .idle
            return
        }
        stage = .resting
        actions.append(.startTimer(milliseconds: configuration.reopenDelayMilliseconds))
    }

    private mutating func report(_ text: String) {
        pendingError = OperatorText.message(text)
    }

    /// xl prints hotplug-error; scripts that wait read hotplug-status.
    private mutating func reportStorage(_ text: String) {
        report(text)
        pendingEntries = [
            .write(BackendKey.hotplugError, OperatorText.message(text)), .write(BackendKey.hotplugStatus, "error"),
        ]
        hotplugStatus = .error
    }
}
