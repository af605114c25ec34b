// SPDX-License-Identifier: BSD-2-Clause
// The life of one VBD as a pure function of events: what is held, what was agreed, and what to do next.
//
// What is held is a ladder. Every arrow down or up but those marked * waits for the answer of an action:
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
//   `discarding`: the frontend went on while its rings were being connected, so they are let go as soon as they are.
//   `ended` is reached from idle and resting only.
//
// What XenStore shows follows from the ladder and never runs ahead of it: 4 only while rings are connected (or after a
// process died with them), 6 only in idle and resting (in ready, too, where storage is kept), and 5 after the frontend's
// 5 only when its rings are gone.
//
//   frontend  1, 2      storage is opened, we are in 2
//             3, 4      rings are connected, then 4
//             5         rings are let go, then 5
//             6, gone   rings and storage are let go, then 6; from there 1 leads to 2 again
//   toolstack 5, or     we show 5; rings in use stay until the frontend leaves 3 and 4, be it by closing or by being
//   online=0            deleted (forced detach); then everything is let go, 6, and the end
//   toolstack 6         everything is let go at once
//   no node             everything is let go at once and nothing is written any more
public import Blkif

/// The negotiation of one VBD. A value without memory of its past: its size does not depend on how many events came.
///
/// The host hands over events with `handle` and carries out the returned actions in order. It never calls `handle` while
/// it carries out an action; answers are handed over afterwards. Events that cannot be meant are ignored.
public struct VBDMachine: Sendable {
    /// An open storage.
    public struct Device: Equatable, Sendable {
        /// What was asked for.
        public let request: DeviceRequest
        /// What it is.
        public var facts: DeviceFacts
        /// The storage failed while it was open; only closing it is valid.
        public var isLost = false
    }

    /// What is held, and which answer is awaited.
    public enum Stage: Equatable, Sendable {
        /// Nothing.
        case idle
        /// Nothing; the storage was closed a moment ago and the timer runs.
        case resting
        /// `openDevice` is under way.
        case opening(DeviceRequest)
        /// The storage.
        case ready(Device)
        /// `connectRings` is under way.
        case connecting(Device, RingOrigin)
        /// `connectRings` is under way, for rings that are not wanted any more.
        case discarding(Device)
        /// Storage and rings, whose requests are held to these features. `announced` is the size that the frontend was
        /// told, in sectors of 512 bytes.
        case connected(Device, OfferedFeatures, announced: UInt64?)
        /// `disconnectRings` is under way.
        case draining(Device)
        /// `closeDevice` is under way.
        case closing
        /// `exit` was given.
        case ended
    }

    /// What is known of the backend's node.
    enum Node: Equatable {
        /// This stands in `state`.
        case present(XenbusState)
        /// An update from the first state to the second is under way.
        case updating(XenbusState, to: XenbusState)
        /// Not ours any more: nothing is written.
        case lost(ExitReason)
    }

    /// What is known of the frontend.
    enum Peer: Equatable {
        /// Not there yet, in nodes made one after the other: no frontend that went away.
        case awaited
        /// This stands in its `state`.
        case present(XenbusState)
        /// Its `state` was deleted.
        case gone
    }

    /// How far the frontend's present run may come; each run that leaves states 3 and 4 is followed by an open one.
    enum Run: Equatable {
        /// In 3 or 4 it gets new rings connected.
        case open
        /// In 3 or 4 it has rings that an earlier process served.
        case inherited
        /// It was shown state 5: rings that it has are served until it leaves 3 and 4, new ones are not connected.
        case ending
        /// The toolstack wrote 6: no rings.
        case cut
    }

    /// Which storage there is to open.
    enum Storage: Equatable {
        case unconfigured
        case configured(DeviceRequest)
        /// It could not be opened or died; tried again when the frontend has closed.
        case failed(DeviceRequest)
        /// The keys break a rule: only the toolstack can help.
        case rejected(String)
    }

    /// What the service is there for.
    enum Purpose: Equatable {
        case serve
        case close
    }

    /// `hotplug-status` as it was written here.
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
    /// Entries that go with the next update: at most the three of a failed opening.
    var pendingEntries: [StoreUpdate.Entry] = []
    /// The error that goes with the next update; a newer one takes its place.
    var pendingError: String?
    /// The size that an earlier process told the frontend.
    let inheritedSectorCount: UInt64?
    /// What is held at present.
    public internal(set) var stage: Stage = .idle

    /// A machine for the node that the host found so. `start` gives the first actions.
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
            // A frontend gets to 4 by the backend's 4 only: the rings were in use.
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

    /// The backend's state as far as it is known, nil when the node is not ours any more.
    public var state: XenbusState? {
        switch node {
        case .present(let state), .updating(let state, to: _): state
        case .lost: nil
        }
    }

    /// The first actions.
    public mutating func start() -> [Action] {
        var actions: [Action] = []
        reconcile(&actions)
        return actions
    }

    /// Takes an event in and returns what is to be done, at most four actions.
    public mutating func handle(_ event: Event) -> [Action] {
        guard stage != .ended else { return [] }
        var actions: [Action] = []
        observe(event, &actions)
        reconcile(&actions)
        return actions
    }
}
