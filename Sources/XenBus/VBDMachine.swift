// SPDX-License-Identifier: BSD-2-Clause
// The life of one VBD as a pure function of events: what is held, what was agreed, and what to do next.
//
// The stages form a ladder. Every arrow, except those marked *, waits for the answer to an action:
//
//      idle ◄───────────── timer ─────────────── resting
//       │ openDevice                                ▲ deviceClosed, or the opening failed
//       ▼                                           │
//     opening ──── deviceOpened ────┐            closing
//                                   ▼               ▲ closeDevice
//       ┌──────────────────────── ready ────────────┘
//       │ connectRings               ▲  ▲
//       ▼                            │  └─ ringsDisconnected ─ draining ◄──┐
//   connecting ──── ringsFailed ─────┘                            ▲        │ disconnectRings
//       │    └──*── discarding ───── ringsConnected ──────────────┘        │
//       └────────── ringsConnected ────────────────────────► connected ────┘
//
//   `discarding`: the frontend moved on while its rings were being connected; they are released as soon as they are.
//   `ended` is reached from idle and resting only.
//
// What XenStore shows follows from the stage and never runs ahead of it: 4 only while rings are connected (or after a
// process died with them), 6 only in idle and resting (also in ready, if storage is kept open), and 5 in answer to the
// frontend's 5 only once its rings are released.
//
//   frontend  1, 2      storage is opened, we are in 2
//             3, 4      rings are connected, then 4
//             5         rings are released, then 5
//             6, gone   rings and storage are released, then 6; from there 1 leads to 2 again
//   toolstack 5, or     we show 5; rings in use stay until the frontend leaves 3 and 4, by closing or by being
//   online=0            deleted (forced detach); then what it asked for is answered, everything is released, 6, and the
//                       end
//   toolstack 6         everything is released at once
//   no node             everything is released at once and nothing is written any more
public import Blkif

/// The negotiation of one VBD. Its size does not depend on how many events it has seen.
///
/// The host hands over events with `handle` and carries out the returned actions in order. It never calls `handle`
/// while it carries out an action; answers are handed over afterwards. Events that make no sense at the moment are
/// ignored.
public struct VBDMachine: Sendable {
    /// An open storage device.
    public struct Device: Equatable, Sendable {
        /// What was asked for.
        public let request: DeviceRequest
        /// What the device reported.
        public var facts: DeviceFacts
        /// The storage failed while it was open; only closing it is valid.
        public var isLost = false
    }

    /// What is held, and which answer is pending.
    public enum Stage: Equatable, Sendable {
        /// Nothing.
        case idle
        /// Nothing; the storage was closed recently and the timer is running.
        case resting
        /// `openDevice` is in progress.
        case opening(DeviceRequest)
        /// The storage.
        case ready(Device)
        /// `connectRings` is in progress.
        case connecting(Device, RingOrigin)
        /// `connectRings` is in progress, for rings that are no longer wanted.
        case discarding(Device)
        /// Storage and rings. The queues enforce these features; `announced` is the size that the frontend was told, in
        /// sectors of 512 bytes.
        case connected(Device, OfferedFeatures, announced: UInt64?)
        /// `disconnectRings` is in progress.
        case draining(Device)
        /// `closeDevice` is in progress.
        case closing
        /// `exit` was given.
        case ended
    }

    /// What is known of the backend's node.
    enum Node: Equatable {
        /// `state` has this value.
        case present(XenbusState)
        /// An update from the first state to the second is in progress.
        case updating(XenbusState, to: XenbusState)
        /// No longer ours: nothing is written.
        case lost(ExitReason)
    }

    /// What is known of the frontend.
    enum Peer: Equatable {
        /// Not there yet, in nodes that are created one after the other; not to be taken for a frontend that left.
        case awaited
        /// Its `state` has this value.
        case present(XenbusState)
        /// Its `state` was deleted.
        case gone
    }

    /// What the frontend's present run is still entitled to. When a run leaves states 3 and 4, a new one begins as
    /// `open`.
    enum Run: Equatable {
        /// In state 3 or 4, new rings are connected.
        case open
        /// In state 3 or 4, it has rings that an earlier process served.
        case inherited
        /// State 5 was shown: existing rings are served until it leaves states 3 and 4, new ones are not connected.
        case ending
        /// The toolstack wrote 6: rings are released at once.
        case cut
    }

    /// The storage to open.
    enum Storage: Equatable {
        case unconfigured
        case configured(DeviceRequest)
        /// It could not be opened, or failed while open; tried again after the frontend has closed.
        case failed(DeviceRequest)
        /// The keys break a rule: only the toolstack can change that.
        case rejected(String)
    }

    /// What the machine works towards.
    enum Purpose: Equatable {
        case serve
        case close
    }

    /// The value of `hotplug-status` that this machine wrote.
    enum HotplugStatus: Equatable {
        case untouched
        case connected
        case error
    }

    let configuration: Configuration
    var node: Node
    var isOnline: Bool
    var frontend: Peer
    var run: Run
    var storage: Storage = .unconfigured
    var purpose: Purpose = .serve
    var hotplugStatus: HotplugStatus = .untouched
    /// Entries for the next update: at most the three of a failed opening.
    var pendingEntries: [StoreUpdate.Entry] = []
    /// The error for the next update; a newer one replaces it.
    var pendingError: String?
    /// The size that an earlier process told the frontend.
    let inheritedSectorCount: UInt64?
    /// What is held now.
    public internal(set) var stage: Stage = .idle

    /// A machine for a node that the host found as `attachment` says. `start` returns the first actions.
    public init(attachment: Attachment, configuration: Configuration = Configuration()) {
        self.configuration = configuration
        isOnline = attachment.isOnline
        inheritedSectorCount = attachment.publishedSectorCount
        frontend = attachment.frontend.map { .present($0) } ?? .gone
        run = .open
        switch (attachment.state, attachment.frontend) {
        case (nil, _):
            node = .lost(.vanished)
        case (let state?, nil) where state == .initialising || state == .initWait:
            node = .present(state)
            frontend = .awaited
        case (let state?, let peer?) where state == .connected && (peer == .initialised || peer == .connected),
            (let state?, let peer?) where state == .closing && peer == .connected:
            // A frontend enters 4 only after the backend's 4, so these rings were in use.
            node = .present(state)
            run = .inherited
        case (.closing?, .initialised?):
            node = .present(.closing)
            run = .ending
        case (let state?, _) where [.initialising, .initWait, .connected, .closing, .closed].contains(state):
            node = .present(state)
        case (let state?, _):
            node = .lost(.conflict(state))
        }
    }

    /// The backend's state as far as it is known; nil if the node is no longer ours.
    public var state: XenbusState? {
        switch node {
        case .present(let state), .updating(let state, to: _): state
        case .lost: nil
        }
    }

    /// The frontend waits on rings that an earlier process served.
    public var ownsInheritedRings: Bool { run == .inherited }

    /// Another process goes on with this VBD.
    public var leavesToSuccessor: Bool {
        switch node {
        case .lost(.handedOver), .lost(.storeFailed): true
        case .lost, .present, .updating: false
        }
    }

    /// The disk is to end, and no guest has it any more: its node was taken away, or its frontend was or has closed it, or
    /// the service hands it over.
    public var mustEnd: Bool {
        if stage == .ended { return false }
        return isLost || isDetaching && (frontend == .gone || frontend == .present(.closed))
    }

    /// The first actions.
    public mutating func start() -> [Action] {
        var actions: [Action] = []
        reconcile(&actions)
        return actions
    }

    /// Takes an event and returns what is to be done: at most four actions.
    public mutating func handle(_ event: Event) -> [Action] {
        guard stage != .ended else { return [] }
        var actions: [Action] = []
        observe(event, &actions)
        reconcile(&actions)
        return actions
    }
}
