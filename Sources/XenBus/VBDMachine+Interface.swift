// SPDX-License-Identifier: BSD-2-Clause
// The interface between the negotiation and the host: the events that go in and the actions that come out.
public import Blkif

extension VBDMachine {
    /// What the host found when it took over the node.
    public struct Attachment: Equatable, Sendable {
        /// The backend's state: 1 for a new device; anything else is left from an earlier process.
        public var state: XenbusState?
        /// `online` of the backend's node.
        public var isOnline: Bool
        /// The frontend's state; nil if it has none.
        public var frontend: XenbusState?
        /// The size that is published in the backend's node, in sectors of 512 bytes.
        public var publishedSectorCount: UInt64?

        /// By default, a new device.
        public init(
            state: XenbusState? = .initialising, isOnline: Bool = true, frontend: XenbusState? = .initialising,
            publishedSectorCount: UInt64? = nil
        ) {
            self.state = state
            self.isOnline = isOnline
            self.frontend = frontend
            self.publishedSectorCount = publishedSectorCount
        }
    }

    /// When the storage is closed.
    public enum StorageRelease: Equatable, Sendable {
        /// Before state 6 is written: whoever sees 6 may take the storage away at once, as libxl does.
        case withFrontend
        /// Only with the device, as in FreeBSD and Linux: for a process that could not open the storage again.
        case withDevice
    }

    /// What does not change during the life of a VBD.
    public struct Configuration: Equatable, Sendable {
        /// The most that a frontend may ask for.
        public var limits: FrontendLimits
        /// When storage is closed.
        public var storageRelease: StorageRelease
        /// The shortest time between two openings of the storage, however fast a guest comes and goes.
        public var reopenDelayMilliseconds: Int

        /// The default configuration.
        public init(
            limits: FrontendLimits = FrontendLimits(), storageRelease: StorageRelease = .withFrontend,
            reopenDelayMilliseconds: Int = 250
        ) {
            self.limits = limits
            self.storageRelease = storageRelease
            self.reopenDelayMilliseconds = reopenDelayMilliseconds
        }
    }

    /// How the service ends.
    public enum StopKind: Equatable, Sendable {
        /// Ask the frontend to close, wait for it, and leave the node in state 6.
        case closeDevice
        /// Finish the requests in flight, release everything, and leave the node as it is for a successor that
        /// continues with the same rings. Also ends a `.closeDevice` that takes too long.
        case handOver
    }

    /// What happened. Values of nodes are levels: only the current value counts, not how often it changed.
    public enum Event: Equatable, Sendable {
        /// The backend's node: `state` as `XenbusState.reading` returns it, nil if the node is gone, and `online`. Read
        /// them in one transaction when the event is handed over, and never before the actions of earlier events were
        /// carried out. Also the answer to an update that found other values.
        case backendChanged(state: XenbusState?, isOnline: Bool)
        /// The frontend's `state`; nil if it or the whole path is gone.
        case frontendChanged(XenbusState?)
        /// The update took effect. Must be handed over before any other event.
        case updateDone
        /// XenStore failed for a reason other than a conflict: the negotiation cannot go on.
        case storeFailed(String)
        /// `BackendNode.deviceRequest` returned the storage. May be repeated.
        case storageConfigured(DeviceRequest)
        /// `BackendNode` or its storage breaks a rule. May be repeated.
        case storageRejected(String)
        /// Answer to `openDevice`.
        case deviceOpened(DeviceFacts)
        /// Answer to `openDevice`: it failed and nothing is open.
        case deviceOpenFailed(String)
        /// The open device has a new size, in sectors of 512 bytes. `offered` is what connected queues enforce from now
        /// on; nil if none are connected.
        case deviceResized(sectorCount: UInt64, offered: OfferedFeatures?)
        /// The open device has failed; it still has to be closed.
        case deviceLost(String)
        /// Answer to `closeDevice`, which cannot fail.
        case deviceClosed
        /// Answer to `connectRings`: the features that the queues enforce, to be published.
        case ringsConnected(OfferedFeatures)
        /// Answer to `connectRings`: it failed and nothing is mapped or bound. `NegotiationError.description` is a
        /// suitable text.
        case ringsFailed(String)
        /// Answer to `disconnectRings`: no request is in flight and nothing is mapped or bound.
        case ringsDisconnected
        /// The service is to end.
        case stopRequested(StopKind)
        /// Answer to `startTimer`.
        case timerFired
    }

    /// Where the rings to be connected come from.
    public enum RingOrigin: Equatable, Sendable {
        /// Created by the frontend for this connection: all indexes start at zero.
        case fresh
        /// Used by an earlier process: continue at `rsp_prod`.
        case inherited
    }

    /// Which requests are still taken from rings that are about to be released.
    ///
    /// A request that is never answered stays in its frontend for ever: Linux waits for it in del_gendisk(), and its thread
    /// for XenStore with it.
    public enum RingEnd: Equatable, Sendable {
        /// None: a successor takes them, or the frontend has new rings, or the toolstack wants an end at once.
        case atOnce
        /// Those that the ring holds: the frontend is in state 5 or 6 and adds none.
        case emptied
        /// Those that the ring holds, and those that come until the frontend has noticed: its node was deleted under it
        /// (forced detach), and it goes on for a moment.
        case quiet
    }

    /// Why the machine ended.
    public enum ExitReason: Equatable, Sendable {
        /// The device is closed and its node in state 6.
        case detached
        /// The node was deleted, and perhaps created again for another instance.
        case vanished
        /// Another driver writes the node's state.
        case conflict(XenbusState)
        /// XenStore failed.
        case storeFailed(String)
        /// A successor may take over the node.
        case handedOver
    }

    /// What to do, in order. Every action except `startQueues` and `exit` has exactly one answer.
    public enum Action: Equatable, Sendable {
        /// Change the backend's node. Answer: `updateDone`; `backendChanged` if other values were found; `storeFailed`.
        case update(StoreUpdate)
        /// Open the storage. Answer: `deviceOpened`, `deviceOpenFailed`.
        case openDevice(DeviceRequest)
        /// Close the storage, which no request uses any more. Answer: `deviceClosed`.
        case closeDevice
        /// Read `FrontendNode` in a transaction, map its rings and bind its event channels: all of it or nothing.
        /// Answer: `ringsConnected`, `ringsFailed`.
        case connectRings(RingOrigin)
        /// Start to take requests.
        case startQueues
        /// Take what `RingEnd` says, finish what is in flight, then unmap and unbind. Answer: `ringsDisconnected`.
        case disconnectRings(RingEnd)
        /// Start a timer. Answer: `timerFired`.
        case startTimer(milliseconds: Int)
        /// Nothing is held any more and no further event matters. Given once, as the last action. Unless the reason is
        /// `handedOver` or `storeFailed`, remove `error/<backend path>`: it lives as long as the node.
        case exit(ExitReason)
    }
}
