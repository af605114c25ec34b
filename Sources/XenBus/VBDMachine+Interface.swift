// SPDX-License-Identifier: BSD-2-Clause
// What goes into the machine and what comes out of it: the whole interface between negotiation and the host.
public import Blkif

extension VBDMachine {
    /// What the host found when it took the node on.
    public struct Attachment: Equatable, Sendable {
        /// The backend's state: 1 for a new device, anything else after an earlier process.
        public var state: XenbusState?
        /// `online` of the backend's node.
        public var isOnline: Bool
        /// The frontend's state, nil where it has none.
        public var frontend: XenbusState?
        /// The size that stands in the backend's node, in sectors of 512 bytes.
        public var publishedSectorCount: UInt64?

        /// A new device unless told otherwise.
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

    /// Whether the storage stays open while no frontend uses it.
    public enum StorageRelease: Equatable, Sendable {
        /// Closed before state 6 is written: who sees 6 may take the storage away at once, as libxl does.
        case withFrontend
        /// Open until the device goes, as in FreeBSD and Linux: for a process that could not open it again.
        case withDevice
    }

    /// What does not change during a VBD's life.
    public struct Configuration: Equatable, Sendable {
        /// What a frontend may ask for.
        public var limits: FrontendLimits
        /// When storage is closed.
        public var storageRelease: StorageRelease
        /// A guest that comes and goes opens the storage no more often than once in this time.
        public var reopenDelayMilliseconds: Int

        /// The usual configuration.
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
        /// The frontend is asked to close and waited for; the node ends in state 6.
        case closeDevice
        /// Requests in flight are finished, everything is let go, and the node stays as it is for a successor that
        /// goes on with the same rings. Also ends a `.closeDevice` that takes too long.
        case handOver
    }

    /// What happened. Values of nodes are levels: only what stands there now counts, not how often it changed.
    public enum Event: Equatable, Sendable {
        /// The backend's node: `state` as `XenbusState.reading` has it, nil when the node is gone, and `online`. Read
        /// them when the event is handed over, in one transaction, and never before the actions of earlier events were
        /// carried out. Also the answer to an update that found something else.
        case backendChanged(state: XenbusState?, isOnline: Bool)
        /// The frontend's `state`, nil when it or the whole path is gone.
        case frontendChanged(XenbusState?)
        /// The update took effect. Handed over before any other event.
        case updateDone
        /// XenStore failed in another way than by a conflict: nothing more can be agreed on.
        case storeFailed(String)
        /// `BackendNode.deviceRequest` knows the storage. May come again.
        case storageConfigured(DeviceRequest)
        /// `BackendNode` or its storage breaks a rule. May come again.
        case storageRejected(String)
        /// Answer to `openDevice`.
        case deviceOpened(DeviceFacts)
        /// Answer to `openDevice`: nothing is open.
        case deviceOpenFailed(String)
        /// The open device has another size, in sectors of 512 bytes. `offered` is what connected queues are held to from
        /// now on, nil where none are connected.
        case deviceResized(sectorCount: UInt64, offered: OfferedFeatures?)
        /// The open device is dead; it is still to be closed.
        case deviceLost(String)
        /// Answer to `closeDevice`, which cannot fail.
        case deviceClosed
        /// Answer to `connectRings`: the very value that the queues hold requests to, which is published.
        case ringsConnected(OfferedFeatures)
        /// Answer to `connectRings`: nothing is mapped or bound. `NegotiationError.description` is a good text.
        case ringsFailed(String)
        /// Answer to `disconnectRings`: no request is in flight, nothing is mapped or bound.
        case ringsDisconnected
        /// The service is to end.
        case stopRequested(StopKind)
        /// Answer to `startTimer`.
        case timerFired
    }

    /// Whose rings are to be connected.
    public enum RingOrigin: Equatable, Sendable {
        /// Made by the frontend for this connection: all indexes begin at zero.
        case fresh
        /// In use since an earlier process: go on from `rsp_prod`.
        case inherited
    }

    /// Why the machine came to its end.
    public enum ExitReason: Equatable, Sendable {
        /// The device is closed and its node in state 6.
        case detached
        /// The node was deleted, or deleted and made anew for another instance.
        case vanished
        /// Another driver writes the node's state.
        case conflict(XenbusState)
        /// XenStore failed.
        case storeFailed(String)
        /// A successor may take the node on.
        case handedOver
    }

    /// What to do, in order. Every action but `startQueues` and `exit` has exactly one answer.
    public enum Action: Equatable, Sendable {
        /// Change the backend's node. Answer: `updateDone`, `backendChanged` where something else was found,
        /// `storeFailed`.
        case update(StoreUpdate)
        /// Open the storage. Answer: `deviceOpened`, `deviceOpenFailed`.
        case openDevice(DeviceRequest)
        /// Close the storage; no request uses it. Answer: `deviceClosed`.
        case closeDevice
        /// Read `FrontendNode` in a transaction, map its rings and bind its event channels, all or nothing.
        /// Answer: `ringsConnected`, `ringsFailed`.
        case connectRings(RingOrigin)
        /// Begin to take requests.
        case startQueues
        /// Stop taking requests, finish those in flight, then unmap and unbind. Answer: `ringsDisconnected`.
        case disconnectRings
        /// Answer: `timerFired`.
        case startTimer(milliseconds: Int)
        /// Nothing is held any more and no event is of interest. Comes once, and last. Unless the reason is
        /// `handedOver` or `storeFailed`, remove `error/<backend path>`: it lives as long as the node.
        case exit(ExitReason)
    }
}
