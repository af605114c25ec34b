// SPDX-License-Identifier: BSD-2-Clause
// The life of one VBD: carries out what the negotiation decides and tells it what happened.
//
// Everything here runs on the control thread. The negotiation (XenBus.VBDMachine) is pure; queues have threads of
// their own and speak to this one through the mailbox only.
import BlockQueue
import PluginHost
import Base
import Blkif
import CLinux
import Glibc
import PluginAPI
import Xen
import XenBus
import Support

/// Serves one VBD until it is over.
public final class VBDWorker<Platform: Xen.XenPlatform> {
    let platform: PreparedHandles<Platform>
    let options: VBDOptions
    let log: Log
    let store: any XenStore
    let mailbox: Mailbox
    let faultLimit = RateLimit()
    var machine: VBDMachine
    /// Who serves the disk; nil where nobody asks.
    var lock: DiskLock?
    /// How the process ended that served the disk before.
    var predecessor: Predecessor
    var tunables: Tunables

    /// The frontend's domain and node, as the toolstack wrote them.
    var frontendDomain: DomainID = 0
    var frontendPath = ""
    var device: PluginDevice?
    var request: DeviceRequest?
    var queues: [QueueThread<PreparedHandles<Platform>>] = []
    /// Statistics of each queue; they go on when the frontend reconnects.
    var statistics: [QueueStatistics] = []
    var connection: FrontendNode?
    /// What the queues hold requests to and XenStore says; nil while none are connected.
    var offered: OfferedFeatures?
    /// Which requests are in flight, for a successor; nil where there is none.
    var journal: JournalFile?
    /// Why there is no journal although there should be one.
    var journalProblem: String?
    /// Queues that wait until the one before has done the requests of an earlier process again.
    var queuesToStart: ArraySlice<QueueThread<PreparedHandles<Platform>>> = []

    /// The process has given up what it does not need to serve its open storage (docs/confinement.md).
    var isConfined = false
    var control: ControlSocket?
    var pending: [VBDMachine.Event] = []
    private var timerDeadline: UInt64?
    /// XenStore does not answer any more.
    private(set) var isStoreLost = false
    private var nextStoreCheck: UInt64 = 0
    private var isWatching = false
    private var backendChanged = true
    private var frontendChanged = true
    private var configured: DeviceRequest?
    private var rejected: String?
    private var exitReason: VBDMachine.ExitReason?

    private static var backendToken: String { "backend" }
    private static var frontendToken: String { "frontend" }

    /// Connects to XenStore and reads the backend's node.
    public init(platform: Platform, options: VBDOptions) throws(OperationError) {
        self.platform = PreparedHandles(platform)
        self.options = options
        let numbers = options.backendPath.split(separator: "/").suffix(2)
        log = Log(name: "xbb-vbd \(numbers.joined(separator: "/"))", level: options.logLevel).about(
            domain: numbers.first.flatMap { DomainID($0) } ?? 0, device: numbers.last.flatMap { UInt32($0) } ?? 0)
        store = try platform.openStore()
        mailbox = try Mailbox()
        predecessor = options.predecessor
        lock = try options.lock.map { (descriptor) throws(OperationError) in try DiskLock(owning: descriptor) }
        tunables = options.tunables
        tunables.pollMicroseconds = options.pollNanoseconds / 1000
        machine = VBDMachine(attachment: VBDMachine.Attachment(state: nil))
        openJournal()
    }

    /// Runs until the VBD is over. `signals` is a signalfd with SIGTERM and SIGINT, or -1.
    public func run(signals: Int32 = -1) throws(OperationError) -> VBDMachine.ExitReason {
        if let channel = options.standby, !(try standBy(channel, signals: signals)) { return .handedOver }
        if let path = options.controlSocket {
            do throws(OperationError) {
                control = try ControlSocket(path: path)
            } catch {
                log.error(error.description)
            }
        }
        guard let node = try readBackend() else {
            log.info("\(options.backendPath) does not exist")
            return .vanished
        }
        let frontend: XenbusState?
        switch node {
        case .success(let node):
            frontendDomain = node.frontendID
            frontendPath = node.frontendPath
            frontend = try readFrontendState()
            machine = VBDMachine(
                attachment: VBDMachine.Attachment(
                    state: node.state, isOnline: node.isOnline, frontend: frontend,
                    publishedSectorCount: node.publishedSectorCount),
                configuration: configuration)
        case .failure(let error):
            // Without a frontend there is nothing to serve; say so where the toolstack looks, and wait for the end.
            machine = VBDMachine(
                attachment: VBDMachine.Attachment(
                    state: try readBackendState(), isOnline: try readBackendIsOnline(), frontend: nil),
                configuration: configuration)
            pending.append(.storageRejected(error.description))
        }
        perform(machine.start())
        // What was read is read again when there are watches; a guest whose worker died need not wait for that.
        if case .success(let node) = node { takeStorage(node) }
        while true {
            if let exitReason { return exitReason }
            do throws(OperationError) {
                if !pending.isEmpty {
                    hand(pending.removeFirst())
                } else if !isWatching {
                    try watch()
                } else if (backendChanged || frontendChanged) && !isStoreLost {
                    try readChanges()
                } else {
                    try wait(signals)
                }
            } catch {
                if !goesOn(after: error) { throw error }
            }
        }
    }

    /// Watches both nodes, which makes them be read again. Only when there is nothing to do for the first time: with a watch
    /// libxenstore has a thread, and each of its answers takes two or three times as long.
    private func watch() throws(OperationError) {
        isWatching = true
        try store.watch(options.backendPath, token: Self.backendToken)
        if !frontendPath.isEmpty {
            try store.watch("\(frontendPath)/\(FrontendKey.state)", token: Self.frontendToken)
        }
    }

    /// True where XenStore has died and rings are connected: they need it no more, and their guest is not to suffer.
    private func goesOn(after error: OperationError) -> Bool {
        if queues.isEmpty { return false }
        if isStoreLost { return true }
        do throws(OperationError) {
            _ = try store.text("domid")
            return false
        } catch {
            isStoreLost = true
        }
        log.error(
            "XenStore: \(error); the disk is served on and cannot be detached any more; SIGTERM ends this process"
        )
        return true
    }

    /// libxenstore does not say when its connection ends: nothing is ever readable again. So it is asked.
    private func checkStore() throws(OperationError) {
        let now = clinux_monotonic_ns()
        if isStoreLost || now < nextStoreCheck { return }
        nextStoreCheck = now &+ 10_000_000_000
        _ = try store.text("domid")
    }

    private var configuration: VBDMachine.Configuration {
        VBDMachine.Configuration(
            limits: FrontendLimits(
                maximumRingPageOrder: options.maxRingPageOrder, maximumQueueCount: options.maxQueues),
            // A confined process cannot open its storage again.
            storageRelease: options.confinement == nil ? .withFrontend : .withDevice)
    }

    private func hand(_ event: VBDMachine.Event) {
        log.debug("event \(event)")
        perform(machine.handle(event))
    }

    // MARK: XenStore

    /// The whole node in one transaction; nil if it is gone, a failure if a key breaks a rule.
    func readBackend() throws(OperationError) -> Result<BackendNode, NegotiationError>? {
        try store.transaction { [store, options] (transaction) throws(OperationError) in
            var gone = false
            var failure: OperationError?
            func value(_ key: String) -> [UInt8]? {
                do throws(OperationError) {
                    return try store.read("\(options.backendPath)/\(key)", in: transaction)
                } catch {
                    if !error.isNotFound { failure = error }
                    return nil
                }
            }
            gone = value(BackendKey.frontendID) == nil && value(BackendKey.state) == nil
            if gone && failure == nil { return nil }
            let result: Result<BackendNode, NegotiationError>
            do throws(NegotiationError) {
                result = .success(try BackendNode(read: value))
            } catch {
                result = .failure(error)
            }
            if let failure { throw failure }
            return result
        }
    }

    private func readBackendState() throws(OperationError) -> XenbusState? {
        do throws(OperationError) {
            return .reading(try store.read("\(options.backendPath)/\(BackendKey.state)", in: .none))
        } catch {
            if error.isNotFound { return nil }
            throw error
        }
    }

    private func readBackendIsOnline() throws(OperationError) -> Bool {
        do throws(OperationError) {
            return BackendNode.isOnline(
                reading: try store.read("\(options.backendPath)/\(BackendKey.online)", in: .none))
        } catch {
            if error.isNotFound { return BackendNode.isOnline(reading: nil) }
            throw error
        }
    }

    private func readFrontendState() throws(OperationError) -> XenbusState? {
        do throws(OperationError) {
            return .reading(try store.read("\(frontendPath)/\(FrontendKey.state)", in: .none))
        } catch {
            // A guest may take away our right to read its node; that is as good as no node.
            if error.isNotFound || error.code == EACCES { return nil }
            throw error
        }
    }

    /// Reads what watches said has changed, and hands over what stands there now.
    private func readChanges() throws(OperationError) {
        if backendChanged {
            backendChanged = false
            try readBackendChange()
            return
        }
        frontendChanged = false
        if frontendPath.isEmpty { return }
        hand(.frontendChanged(try readFrontendState()))
    }

    private func readBackendChange() throws(OperationError) {
        guard let node = try readBackend() else {
            hand(.backendChanged(state: nil, isOnline: false))
            return
        }
        switch node {
        case .failure(let error):
            // A toolstack can detach a disk whatever else its node says.
            hand(.backendChanged(state: try readBackendState(), isOnline: try readBackendIsOnline()))
            reject(error)
        case .success(let node):
            hand(.backendChanged(state: node.state, isOnline: node.isOnline))
            takeStorage(node)
        }
    }

    /// What the node says of the storage, if it is new.
    private func takeStorage(_ node: BackendNode) {
        do throws(NegotiationError) {
            guard let request = try node.deviceRequest(from: options.storageSource) else { return }
            rejected = nil
            if request != configured {
                configured = request
                pending.append(.storageConfigured(request))
            }
        } catch {
            reject(error)
        }
    }

    private func reject(_ error: NegotiationError) {
        if rejected == error.description { return }
        rejected = error.description
        configured = nil
        pending.append(.storageRejected(error.description))
    }

    private func takeWatchEvents() throws(OperationError) {
        // A frontend may rewrite its node without end: whatever number of events that makes, they are two questions.
        while let event = try store.nextWatchEvent() {
            if event.token == Self.backendToken { backendChanged = true } else { frontendChanged = true }
        }
    }

    // MARK: Waiting

    private func wait(_ signals: Int32) throws(OperationError) {
        var descriptors = [store.watchFileDescriptor, mailbox.descriptor, signals] + (control?.descriptors ?? [])
        descriptors = descriptors.filter { $0 >= 0 && !(isStoreLost && $0 == store.watchFileDescriptor) }
        var entries = descriptors.map { pollfd(fd: $0, events: Int16(POLLIN), revents: 0) }
        let count = unsafe poll(&entries, nfds_t(entries.count), timeout())
        if count < 0 && errno != EINTR { throw OperationError(errno, "wait for events") }
        if let deadline = timerDeadline, clinux_monotonic_ns() >= deadline {
            timerDeadline = nil
            pending.append(.timerFired)
        }
        try checkStore()
        for entry in entries where entry.revents != 0 {
            if entry.fd == store.watchFileDescriptor {
                try takeWatchEvents()
            } else if entry.fd == mailbox.descriptor {
                for message in mailbox.take() { receive(message) }
            } else if entry.fd == signals {
                takeSignal(signals)
            } else {
                control?.serve(entry.fd) { answer($0) }
            }
        }
    }

    private func timeout() -> Int32 {
        let deadline = min(timerDeadline ?? .max, isStoreLost ? .max : nextStoreCheck)
        if deadline == .max { return -1 }
        let now = clinux_monotonic_ns()
        return deadline <= now ? 0 : Int32(clamping: (deadline - now + 999_999) / 1_000_000)
    }

    private func takeSignal(_ signals: Int32) {
        var info = signalfd_siginfo()
        guard unsafe read(signals, &info, MemoryLayout<signalfd_siginfo>.size) > 0 else { return }
        if info.ssi_signo == UInt32(SIGINT) {
            log.info("closing the device")
            pending.append(.stopRequested(.closeDevice))
        } else {
            log.info("handing the device over")
            pending.append(.stopRequested(.handOver))
        }
    }

    private func receive(_ message: DeviceMessage) {
        switch message {
        case .queueFailed(let text):
            log.error(text)
            reportError(text)
        case .replayed(let index): replayed(index)
        case .notified(let what):
            notified(what)
        }
    }

    private func notified(_ what: UInt32) {
        switch Int(what) {
        case Int(XBB_NOTIFY_INFO):
            guard let device else { return }
            do throws(OperationError) {
                try device.refresh()
                log.info("the disk has \(device.info.sectorCount) sectors now")
                offered?.sectorCount = device.info.sectorCount
                if let offered { for queue in queues { queue.setOffered(offered) } }
                pending.append(.deviceResized(sectorCount: device.info.sectorCount, offered: offered))
            } catch {
                log.error(error.description)
            }
        case Int(XBB_NOTIFY_LOST): log.error("the storage is gone; requests fail until it is back")
        case Int(XBB_NOTIFY_FOUND): log.info("the storage is back")
        case Int(XBB_NOTIFY_CORRUPT): log.error("the plugin found the image damaged")
        default: log.warning("the plugin reported \(what), which this host does not know")
        }
    }

    // MARK: Actions

    private func perform(_ actions: [VBDMachine.Action]) {
        for action in actions {
            log.debug("action \(action)")
            perform(action)
        }
    }

    private func perform(_ action: VBDMachine.Action) {
        switch action {
        case .update(let update): pending.insert(apply(update), at: 0)
        case .openDevice(let request): pending.append(open(request))
        case .closeDevice:
            device?.close()
            device = nil
            pending.append(.deviceClosed)
        case .connectRings(let origin): pending.append(connect(origin))
        case .startQueues: startQueues()
        case .disconnectRings:
            disconnect()
            pending.append(.ringsDisconnected)
        case .startTimer(let milliseconds):
            timerDeadline = clinux_monotonic_ns() &+ UInt64(max(milliseconds, 0)) &* 1_000_000
        case .exit(let reason):
            finish(reason)
            exitReason = reason
        }
    }

    private func finish(_ reason: VBDMachine.ExitReason) {
        disconnect()
        device?.close()
        device = nil
        log.info("done: \(reason)")
        switch reason {
        case .handedOver:
            KillPoint.reach(.closed)
            // A name that the next process gives to its own socket.
            control = nil
            lock?.letGo()
            KillPoint.reach(.letGo)
        case .storeFailed: break
        case .detached, .vanished, .conflict:
            do throws(OperationError) { try store.remove(errorNode, in: .none) } catch {}
        }
    }

    /// Makes a change of the node in a transaction that finds the state it expects, or none.
    private func apply(_ update: StoreUpdate) -> VBDMachine.Event {
        if let error = update.error { log.error(error) }
        let path = options.backendPath
        do throws(OperationError) {
            return try store.transaction { [store] (transaction) throws(OperationError) -> VBDMachine.Event in
                let state: XenbusState?
                do throws(OperationError) {
                    state = .reading(try store.read("\(path)/\(BackendKey.state)", in: transaction))
                } catch {
                    guard error.isNotFound else { throw error }
                    state = nil
                }
                let online = try store.text("\(path)/\(BackendKey.online)", in: transaction)
                let isOnline = BackendNode.isOnline(reading: online.map { Array($0.utf8) })
                guard state == update.replacing, isOnline == update.isOnline else {
                    return .backendChanged(state: state, isOnline: isOnline)
                }
                for entry in update.entries {
                    switch entry {
                    case .write(let key, let value): try store.write("\(path)/\(key)", value, in: transaction)
                    case .remove(let key):
                        do throws(OperationError) {
                            try store.remove("\(path)/\(key)", in: transaction)
                        } catch {
                            guard error.isNotFound else { throw error }
                        }
                    }
                }
                if let error = update.error { try store.write("\(errorNode)/error", error, in: transaction) }
                return .updateDone
            }
        } catch {
            return goesOn(after: error) ? .updateDone : .storeFailed(error.description)
        }
    }

    /// Where errors of this device stand: "error/" and the backend's path, in the backend's home.
    private var errorNode: String {
        let parts = options.backendPath.split(separator: "/", omittingEmptySubsequences: true)
        guard parts.count > 3 else { return "error\(options.backendPath)" }
        return "/" + parts.prefix(3).joined(separator: "/") + "/error/" + parts.dropFirst(3).joined(separator: "/")
    }

    private func reportError(_ text: String) {
        do throws(OperationError) { try store.write("\(errorNode)/error", String(text.prefix(512))) } catch {
            log.error(error.description)
        }
    }

    // MARK: Queues

    private func connect(_ origin: VBDMachine.RingOrigin) -> VBDMachine.Event {
        guard let device, let request else { return .ringsFailed("no device is open") }
        do throws(OperationError) {
            let read = try readFrontend(limits(origin, device))
            let node: FrontendNode
            switch read {
            case .failure(let error): return .ringsFailed(error.description)
            case .success(let value): node = value
            }
            while statistics.count < node.rings.count { statistics.append(QueueStatistics()) }
            let offered = OfferedFeatures(request: request, device: device.facts, queueCount: node.rings.count)
            let sources = try journalSources(origin, node, device, offered)
            for (index, (ring, source)) in zip(node.rings, sources).enumerated() {
                try start(index, ring, node, device, offered, source)
            }
            journal?.complete()
            connection = node
            self.offered = offered
            log.info(
                "connected to domain \(frontendDomain): \(node.rings.count) queues, "
                    + "\(node.rings[0].pageReferences.count) ring pages, \(node.ringProtocol.rawValue)")
            KillPoint.reach(.connected)
            return .ringsConnected(offered)
        } catch {
            disconnect()
            return .ringsFailed(error.description)
        }
    }

    private func start(
        _ index: Int, _ ring: FrontendRing, _ node: FrontendNode, _ device: PluginDevice, _ offered: OfferedFeatures,
        _ journal: QueueJournalSource
    ) throws(OperationError) {
        let mailbox = mailbox
        var configuration = QueueConfiguration(
            domain: frontendDomain, index: index, ringReferences: ring.pageReferences,
            eventChannel: ring.eventChannel, abi: node.ringProtocol == .x86_32 ? .x86_32 : .native,
            disk: offered, memoryBytes: options.memoryBytes, blockingThreads: blockingThreads(device, node),
            pollNanoseconds: tunables.pollMicroseconds * 1000, tuning: tunables.tuning)
        configuration.journal = journal
        let queue = try QueueThread(
            platform: platform, device: device, configuration: configuration, statistics: statistics[index],
            log: log, faultLimit: faultLimit,
            onFailure: { mailbox.post(.queueFailed($0.description)) }, onReplayed: { mailbox.post(.replayed(index)) })
        try queue.start()
        queues.append(queue)
    }

    /// Each thread of a blocking plugin takes a queue of it.
    private func blockingThreads(_ device: PluginDevice, _ node: FrontendNode) -> Int {
        max(1, min(options.blockingThreads, device.maxQueues / max(1, node.rings.count)))
    }

    private func disconnect() {
        if !queues.isEmpty { KillPoint.reach(.draining) }
        queuesToStart = []
        for queue in queues { queue.stop() }
        if !queues.isEmpty { KillPoint.reach(.drained) }
        queues = []
        connection = nil
        offered = nil
    }

    private func readFrontend(_ limits: FrontendLimits) throws(OperationError) -> Result<FrontendNode, NegotiationError>
    {
        let path = frontendPath
        return try store.transaction { [store] (transaction) throws(OperationError) in
            var failure: OperationError?
            func value(_ key: String) -> [UInt8]? {
                do throws(OperationError) {
                    return try store.read("\(path)/\(key)", in: transaction)
                } catch {
                    if !error.isNotFound && error.code != EACCES { failure = error }
                    return nil
                }
            }
            let result: Result<FrontendNode, NegotiationError>
            do throws(NegotiationError) {
                result = .success(try FrontendNode(limits: limits, read: value))
            } catch {
                result = .failure(error)
            }
            if let failure { throw failure }
            return result
        }
    }
}
