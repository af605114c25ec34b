// SPDX-License-Identifier: BSD-2-Clause
// Derives the next step from what is known: the only place that decides what XenStore shows and what is held next.

extension VBDMachine {
    /// What the frontend is doing, as far as it matters here.
    private enum Phase {
        /// State 1 or 2, or not there yet.
        case preparing
        /// State 3 or 4: its rings are there.
        case ready
        /// State 5.
        case closing
        /// State 6, or deleted.
        case closed
        /// A state that no block frontend has, or an invalid value.
        case invalid
    }

    private var phase: Phase {
        switch frontend {
        case .awaited, .present(.initialising), .present(.initWait): .preparing
        case .present(.initialised), .present(.connected): .ready
        case .present(.closing): .closing
        case .present(.closed), .gone: .closed
        case .present(.unknown), .present(.reconfiguring), .present(.reconfigured): .invalid
        }
    }

    /// The frontend is in state 5 or 6, or deleted.
    var isFrontendLeaving: Bool { phase == .closing || phase == .closed }

    /// The frontend is in state 3 or 4.
    var isFrontendReady: Bool { phase == .ready }

    /// The toolstack or the host wants the device removed.
    public var isDetaching: Bool { !isOnline || purpose == .close }

    /// The node is no longer ours.
    var isLost: Bool {
        if case .lost = node { true } else { false }
    }

    /// The open storage, in whichever stage.
    var heldDevice: Device? {
        switch stage {
        case .ready(let device), .connecting(let device, _), .discarding(let device), .connected(let device, _, _),
            .draining(let device):
            device
        case .idle, .resting, .opening, .closing, .ended: nil
        }
    }

    private var holdsRings: Bool {
        switch stage {
        case .connecting, .discarding, .connected, .draining: true
        case .idle, .resting, .opening, .ready, .closing, .ended: false
        }
    }

    private var holdsNothing: Bool {
        switch stage {
        case .idle, .resting, .ended: true
        case .opening, .ready, .connecting, .discarding, .connected, .draining, .closing: false
        }
    }

    private var isStorageBroken: Bool {
        switch storage {
        case .failed, .rejected: true
        case .unconfigured, .configured: false
        }
    }

    /// Changes what is known about the open storage.
    mutating func changeDevice(_ change: (inout Device) -> Void) {
        guard var device = heldDevice else { return }
        change(&device)
        switch stage {
        case .ready: stage = .ready(device)
        case .connecting(_, let origin): stage = .connecting(device, origin)
        case .discarding: stage = .discarding(device)
        case .connected(_, let offered, let announced): stage = .connected(device, offered, announced: announced)
        case .draining: stage = .draining(device)
        case .idle, .resting, .opening, .closing, .ended: break
        }
    }

    /// Releases connected rings.
    mutating func disconnect(_ end: RingEnd, _ actions: inout [Action]) {
        guard case .connected(let device, _, _) = stage else { return }
        stage = .draining(device)
        actions.append(.disconnectRings(end))
    }

    /// Takes the next step: at most one for the rings and the storage, and at most one update of the node.
    mutating func reconcile(_ actions: inout [Action]) {
        if isLost || run == .cut {
            if case .connecting(let device, _) = stage { stage = .discarding(device) }
            disconnect(.atOnce, &actions)
        }
        updateNode(&actions)
        step(&actions)
    }

    // MARK: What is held

    private mutating func step(_ actions: inout [Action]) {
        switch stage {
        case .idle:
            guard !exitIfDone(&actions), mayAcquire, wantsStorage, case .configured(let request) = storage
            else { return }
            stage = .opening(request)
            actions.append(.openDevice(request))
        case .resting:
            _ = exitIfDone(&actions)
        case .ready(let device):
            if !keepsOpen(device) {
                stage = .closing
                actions.append(.closeDevice)
            } else if phase == .ready, mayAcquire, wantsStorage {
                let origin: RingOrigin = run == .inherited ? .inherited : .fresh
                stage = .connecting(device, origin)
                actions.append(.connectRings(origin))
            }
        case .opening, .connecting, .discarding, .connected, .draining, .closing, .ended: break
        }
    }

    /// Storage and rings are acquired in state 2 only, those of an earlier process in any state. Never during an
    /// update, which may reveal that the node belongs to another driver.
    private var mayAcquire: Bool {
        switch node {
        case .present(let state): state == .initWait || run == .inherited
        case .updating, .lost: false
        }
    }

    /// The frontend's present run needs the storage, or will need it.
    private var wantsStorage: Bool {
        switch (phase, run) {
        case (.ready, .inherited): true
        case (.ready, .open), (.preparing, .open): !isDetaching
        default: false
        }
    }

    /// In stage `ready`: the storage stays open.
    private func keepsOpen(_ device: Device) -> Bool {
        guard !isLost, run != .cut, !device.isLost, storage == .configured(device.request) else { return false }
        return switch phase {
        case .ready: run == .inherited || !isDetaching
        case .preparing: run == .open && !isDetaching
        case .closing, .invalid: !isDetaching
        case .closed: !isDetaching && configuration.storageRelease == .withDevice
        }
    }

    private mutating func exitIfDone(_ actions: inout [Action]) -> Bool {
        switch node {
        case .lost(let reason):
            actions.append(.exit(reason))
        case .present(.closed) where isDetaching:
            actions.append(.exit(.detached))
        case .present, .updating:
            return false
        }
        stage = .ended
        return true
    }

    // MARK: What XenStore shows

    private mutating func updateNode(_ actions: inout [Action]) {
        guard case .present(let state) = node else { return }
        let wanted = wantedState(from: state)
        var entries = pendingEntries
        var newState: XenbusState? = wanted == state ? nil : wanted
        if case .connected(let device, let offered, let announced) = stage, wanted == .connected {
            if state != .connected {
                let description = BackendDescription(
                    offered, physicalSectorSize: device.facts.physicalSectorSize,
                    deviceType: device.request.deviceType, isRemovable: device.request.isRemovable)
                entries += description.entries
            } else if announced != offered.sectorCount {
                // A frontend reads the size again when 4 is written again.
                entries.append(.write(BackendKey.sectors, String(offered.sectorCount)))
                newState = .connected
            }
            stage = .connected(device, offered, announced: offered.sectorCount)
        }
        if newState == .initWait { entries += BackendOffer(limits: configuration.limits).entries }
        if wanted == .closed, !isOnline, hotplugStatus != .untouched {
            entries.append(.remove(BackendKey.hotplugStatus))
            hotplugStatus = .untouched
        }
        guard newState != nil || !entries.isEmpty || pendingError != nil else { return }
        actions.append(
            .update(
                StoreUpdate(
                    replacing: state, isOnline: isOnline, entries: entries, error: pendingError, state: newState)))
        pendingEntries = []
        pendingError = nil
        node = .updating(state, to: wanted)
        if newState == .closing, phase == .ready, run == .open { run = .ending }
    }

    /// The state that the node should have, given that it has `state` now.
    private func wantedState(from state: XenbusState) -> XenbusState {
        if isDetaching { return closingState(from: state) }
        // A toolstack waits for 2, whatever the frontend is doing.
        if state == .initialising { return .initWait }
        switch phase {
        case .preparing:
            if run != .open { return closingState(from: state) }
            if isStorageBroken { return .closing }
            return holdsRings ? state : .initWait
        case .ready:
            return wantedStateForReadyFrontend(from: state)
        case .closing, .invalid:
            return holdsRings || state == .closed ? state : .closing
        case .closed:
            if holdsRings { return state }
            let isFree = holdsNothing || configuration.storageRelease == .withDevice
            return isFree || state == .closed ? .closed : .closing
        }
    }

    private func wantedStateForReadyFrontend(from state: XenbusState) -> XenbusState {
        switch run {
        case .open:
            if case .connected = stage { return .connected }
            if isStorageBroken { return .closing }
            return holdsRings ? state : .initWait
        case .inherited: return isStorageBroken ? .closing : state
        case .ending: return .closing
        case .cut: return holdsNothing ? .closed : state
        }
    }

    /// 5 until nothing is held, then 6; a 6 that the toolstack wrote stays. Rings that an earlier process left with
    /// requests in them are served first.
    private func closingState(from state: XenbusState) -> XenbusState {
        let owesService = run == .inherited && !isStorageBroken
        return holdsNothing && !owesService || state == .closed ? .closed : .closing
    }
}
