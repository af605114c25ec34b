// SPDX-License-Identifier: BSD-2-Clause
// A device in XenStore and its way through the states, in the steps of Linux's blkfront.
//
//     connect():  findBackend ─► start (own state 1) ─► awaitInitWait (backend 2) ─► makeQueues ─► publish (own state 3)
//                 ─► awaitConnected (backend 4) ─► readBackendInfo ─► useIndirect ─► own state 4
//     close():    own state 5 ─► backend 5 or 6 ─► own state 6 ─► backend 6 ─► dismantle
//
// Every step is public, so that tests can leave the road after any of them.
import Base
import Blkif
import XenBus
public import Xen
public import XenLoopback

/// What the backend's state tells a connected frontend.
public enum FrontEvent: Sendable, Equatable {
    /// The backend wrote Connected again with a new size, in bytes.
    case resized(UInt64)
    /// The backend wants to close, or has closed, or its node is gone.
    case backendCloses(XenbusState)
}

/// A block device of a domain. Use from one thread; the queues may be used from others.
public final class FrontDevice {
    /// The domain that the device belongs to.
    public let domain: LoopbackDomain
    /// The frontend's connection to XenStore.
    public let store: any XenStore
    /// The number under `device/vbd`.
    public let number: UInt32
    /// The frontend's directory, "/local/domain/<domid>/device/vbd/<number>".
    public let path: String
    /// What is asked for.
    public var options: FrontOptions
    /// The backend's directory; "" before ``findBackend()``.
    public private(set) var backendPath = ""
    /// The backend's domain.
    public private(set) var backend: DomainID = 0
    /// The state that this frontend last wrote.
    public private(set) var state = XenbusState.unknown
    /// The backend's description of its disk, read when it is connected.
    public private(set) var info = BackendInfo()
    /// The negotiated number of pages of each ring.
    public private(set) var ringPages = 0
    /// The queues; empty until ``makeQueues()``.
    public private(set) var queues: [FrontQueueBox] = []
    /// Whether the device still works; a new one for each connection.
    public private(set) var health = FrontHealth()
    /// Grants that the backend still used when the device was closed. Their frames are never used again.
    public private(set) var leakedGrants: [UInt32] = []
    private var watches = false
    private var lastBackendState = XenbusState.unknown

    private static let token = "blkfront-backend"

    /// A device that the toolstack has created in XenStore; nothing is read yet.
    public init(
        domain: LoopbackDomain, store: any XenStore, number: UInt32, options: FrontOptions = FrontOptions()
    ) {
        self.domain = domain
        self.store = store
        self.number = number
        self.options = options
        path = "/local/domain/\(domain.id)/device/vbd/\(number)"
    }

    // MARK: The whole way

    /// Connects, or throws what went wrong. May be called again after ``close()``.
    public func connect() throws(BlkfrontError) {
        if let complaint = options.complaint { throw .invalid(complaint) }
        if !queues.isEmpty { throw .invalid("the device is connected already") }
        try findBackend()
        try start()
        try awaitInitWait()
        do {
            try makeQueues()
            try publish()
            try awaitConnected()
            try readBackendInfo()
            useIndirect()
            try setState(.connected)
        } catch {
            health.end(error)
            dismantle()
            throw error
        }
    }

    // MARK: Steps

    /// Reads "backend" and "backend-id" and watches the backend's state.
    public func findBackend() throws(BlkfrontError) {
        if watches { try? store.unwatch("\(backendPath)/state", token: Self.token) }
        watches = false
        guard let found = try text("\(path)/backend"), !found.isEmpty else {
            throw .badKey(path: "\(path)/backend", value: nil)
        }
        backendPath = found
        backend = try BackendInfo.required("\(path)/backend-id", store)
        do {
            try store.watch("\(backendPath)/state", token: Self.token)
        } catch {
            throw .store(error)
        }
        watches = true
    }

    /// Sets the frontend's state to Initialising. First closes what an earlier connection left open
    /// (`xenbus_reset_state`).
    public func start() throws(BlkfrontError) {
        health = FrontHealth()
        let own = XenbusState(try text("\(path)/state"))
        let other = try backendState()
        if own != .initialising, own != .unknown, other.rawValue >= XenbusState.initialised.rawValue, other != .closed {
            try setState(.closing)
            _ = try awaitBackend("leave the state of an earlier connection") { $0 == .closing || $0.isOver }
            try setState(.closed)
            _ = try awaitBackend("close an earlier connection") { $0.isOver || $0 == .initWait }
        }
        try setState(.initialising)
    }

    /// Waits until the backend is in InitWait.
    public func awaitInitWait() throws(BlkfrontError) {
        // Toolstacks make both ends at once: what is not there now does not come.
        if try text("\(backendPath)/state") == nil { throw .closed("there is no backend at \(backendPath)") }
        let state = try awaitBackend("reach InitWait") { $0 == .initWait || $0 == .closing }
        if state == .closing { throw .closed("the backend closes\(try reason())") }
    }

    /// Reads the backend's features, and creates rings, grants, event channels and buffers.
    public func makeQueues() throws(BlkfrontError) {
        let order = try BackendInfo.optional("\(backendPath)/max-ring-page-order", store) ?? 0
        let offered = order < 8 ? 1 << Int(order) : 256
        ringPages = options.insistOnRingPages ? options.ringPages : min(options.ringPages, offered)
        let maxQueues = Int(
            clamping: try BackendInfo.optional("\(backendPath)/multi-queue-max-queues", store) ?? 1)
        let count = options.insistOnQueues ? options.queues : min(options.queues, max(maxQueues, 1))
        for index in 0..<count {
            do {
                let resources = try QueueResources(
                    domain: domain, backend: backend, ringPageCount: ringPages, options: options)
                queues.append(
                    FrontQueueBox(
                        FrontQueue(
                            index: index, resources: resources, backend: backend,
                            handle: UInt16(truncatingIfNeeded: number), options: options, health: health)))
            } catch {
                throw .domain(error)
            }
        }
    }

    /// Writes the rings and features in one transaction, and the state that asks the backend to connect.
    public func publish() throws(BlkfrontError) {
        do {
            try store.transaction { transaction throws(OperationError) in
                for (key, value) in keys() {
                    if let value {
                        try store.write("\(path)/\(key)", value, in: transaction)
                    } else {
                        try store.remove("\(path)/\(key)", in: transaction)
                    }
                }
            }
        } catch {
            throw .store(error)
        }
        try setState(options.connectsDirectly ? .connected : .initialised)
    }

    /// Waits until the backend is connected.
    public func awaitConnected() throws(BlkfrontError) {
        let state = try awaitBackend("connect") { $0 == .connected || $0 == .closing || $0.isOver }
        if state != .connected { throw .closed("the backend refuses to connect\(try reason())") }
    }

    /// Reads the disk's size and features.
    public func readBackendInfo() throws(BlkfrontError) {
        info = try BackendInfo(path: backendPath, store: store, largeSectors: options.largeSectors)
    }

    /// Gets the queues ready for indirect requests, if both ends want more than 11 pages a request. Where the domain has no
    /// room for that, a queue goes on without.
    public func useIndirect() {
        let segments = min(options.indirectSegments, info.maxIndirectSegments)
        guard segments > BlkifLimits.segmentsPerRequest else { return }
        for queue in queues { try? queue.useIndirect(segments) }
    }

    /// The most bytes of a read or a write: those of the queue that takes the fewest.
    public var bufferSize: Int { queues.map(\.bufferSize).min() ?? FrontQueue.directSize }

    /// Writes the frontend's state.
    public func setState(_ state: XenbusState) throws(BlkfrontError) {
        do {
            try store.write("\(path)/state", state.text)
        } catch {
            throw .store(error)
        }
        self.state = state
    }

    /// The backend's current state.
    public func backendState() throws(BlkfrontError) -> XenbusState {
        XenbusState(try text("\(backendPath)/state"))
    }

    // MARK: Life

    /// Takes the waiting watch events and returns what they mean for a connected device. Never blocks.
    ///
    /// If the backend wants to close, the caller must answer with ``close()``.
    public func handleStoreEvents() throws(BlkfrontError) -> [FrontEvent] {
        guard try takeWatchEvents() else { return [] }
        let now = try backendState()
        defer { lastBackendState = now }
        switch now {
        case .connected where state == .connected:
            let old = info.byteCount
            try readBackendInfo()
            return info.byteCount == old ? [] : [.resized(info.byteCount)]
        case .closing, .closed, .unknown:
            return state == .connected || state == .initialised ? [.backendCloses(now)] : []
        default:
            return []
        }
    }

    /// Closes the device: no new requests, then the states down to Closed, then the end of all grants.
    ///
    /// The caller has waited for the requests that it wants to be answered. Throws a timeout if the backend does not
    /// follow, or the fault of a grant that it still uses; the device is closed and cleaned up in either case.
    public func close() throws(BlkfrontError) {
        health.end(.closed("closed by the frontend"))
        var failure: BlkfrontError?
        do {
            try closeStates()
        } catch {
            failure = error
        }
        dismantle()
        if let failure { throw failure }
        if let first = leakedGrants.first { throw .dead(.grantInUse(reference: first, id: .max)) }
    }

    private func closeStates() throws(BlkfrontError) {
        // A node that the toolstack has removed must not be created again.
        guard try text("\(path)/state") != nil else {
            state = .closed
            return
        }
        if try !backendState().isOver {
            try setState(.closing)
            _ = try awaitBackend("follow to Closing") { $0 == .closing || $0.isOver }
        }
        try setState(.closed)
        _ = try awaitBackend("close") { $0.isOver || $0 == .initWait }
    }

    /// Ends the grants and frees ports and frames, whatever the backend does. ``close()`` calls it too.
    public func dismantle() {
        for queue in queues { leakedGrants += queue.dismantle() }
        queues = []
    }

    // MARK: Waiting for the backend

    /// Waits until the backend's state satisfies `accept`. `step` completes the message "the backend did not ...".
    public func awaitBackend(
        _ step: String, timeout: Int? = nil, where accept: (XenbusState) -> Bool
    ) throws(BlkfrontError) -> XenbusState {
        let deadline = Deadline(milliseconds: timeout ?? options.timeout)
        while true {
            let now = try backendState()
            if accept(now) {
                lastBackendState = now
                return now
            }
            guard deadline.wait(for: store.watchFileDescriptor) else {
                throw .timeout(
                    "the backend did not \(step) in \(timeout ?? options.timeout) ms; "
                        + "\(backendPath)/state is \(now)\(try reason())")
            }
            _ = try takeWatchEvents()
        }
    }

    private func takeWatchEvents() throws(BlkfrontError) -> Bool {
        var any = false
        do {
            while try store.nextWatchEvent() != nil { any = true }
        } catch {
            throw .store(error)
        }
        return any
    }

    /// The backend's own error text, for messages.
    private func reason() throws(BlkfrontError) -> String {
        for key in ["hotplug-error", "error"] {
            if let text = (try? text("\(backendPath)/\(key)")) ?? nil, !text.isEmpty { return ": \(text)" }
        }
        return ""
    }

    func text(_ path: String) throws(BlkfrontError) -> String? { try BackendInfo.text(path, store) }
}
