// SPDX-License-Identifier: BSD-2-Clause
// The life of one VBD: hands what happens to the negotiation, and carries out what it decides.
//
// Everything here runs on the control thread. The negotiation (XenBus.VBDMachine) is pure; queues have threads of
// their own and speak to this one through the mailbox only. Nothing here waits for requests of a guest.
import BlockQueue
import PluginHost
import Base
import CLinux
import Glibc
import Settings
import Xen
import XenBus
import Support

/// Serves one VBD until it is over.
public final class VBDWorker<Platform: Xen.XenPlatform> {
    let platform: PreparedHandles<Platform>
    let log: Log
    let mailbox: Mailbox
    let nodes: NodeStore
    let disk: ServedDisk<PreparedHandles<Platform>>
    var options: VBDOptions { disk.options }
    let opener: StorageOpener
    let succession: Succession
    let inherited: InheritedStorage
    var loop: WorkerLoop
    var control: ControlSocket?
    var machine: VBDMachine
    /// Events that the machine has not had yet.
    var pending: [VBDMachine.Event] = []
    /// The storage that the machine was told of, and why another one is none.
    private(set) var configured: DeviceRequest?
    private var rejected: String?
    /// What does not end; looked at again at ``nextLook``, in ns of the monotonic clock.
    var stalls: [Stall] = []
    /// The size that events have told, in sectors of 512 bytes.
    var toldSectors: UInt64?
    /// Whether a limit of the disk holds requests back.
    var throttling = ThrottleWatch()
    var nextLook: UInt64 = 0
    /// Since when the disk must end whatever its guest does, in ns of the monotonic clock.
    var mustEndSince: UInt64?
    /// Whether looks are worth a wake-up.
    var idleRule = IdleRule()
    /// What operators are told while the disk is served.
    var trouble = DiskTrouble()
    /// Where xbbd is told what happens to the disk.
    let events = EventPort()
    /// The statistics of the process before were looked for.
    var hasStatistics = false
    /// The last error that was reported, until a frontend is served.
    var problem: String?
    /// The disk is getting other storage, and no guest was served from it yet.
    var exchange: StorageExchange?
    /// The size that the guest was told, in sectors of 512 bytes.
    var publishedSectorCount: UInt64?
    /// Why this process ends at once.
    var failure: OperationError?
    /// Nothing is held any more.
    var exitReason: VBDMachine.ExitReason?

    /// A worker that reads and writes its nodes through `store`. Opens the journal, whose file `reserveJournal` sizes when
    /// the process is confined; nil: the process keeps the file open.
    public init(
        platform: Platform, store: any XenStore, reserveJournal: ((_ bytes: Int) throws(OperationError) -> Void)? = nil,
        options: VBDOptions
    ) throws(OperationError) {
        self.platform = PreparedHandles(platform)
        let numbers = options.backendPath.split(separator: "/").suffix(2)
        var log = Log(name: "xbb-vbd \(options.shortName)", level: options.logLevel).about(
            domain: numbers.first.flatMap { DomainID($0) } ?? 0, device: numbers.last.flatMap { UInt32($0) } ?? 0,
            limit: LogLimit())
        log.file = options.logFile.flatMap { LogFile(path: $0) }
        if options.logFile != nil && log.file == nil {
            log.history = LogHistory(limit: LogHistory.workerLimit)
            log.warning("no room for a file of these lines; they end with this process")
        }
        self.log = log
        nodes = NodeStore(store, backendPath: options.backendPath)
        mailbox = try Mailbox()
        succession = try Succession(lock: options.lock, predecessor: options.predecessor, log: log)
        disk = ServedDisk(
            platform: self.platform, options: options, mailbox: mailbox, reserve: reserveJournal, log: log)
        inherited = InheritedStorage(channel: options.storage, log: log)
        opener = StorageOpener(
            options: options, nodes: nodes, mailbox: mailbox, inherited: inherited,
            calls: disk.calls, log: log)
        loop = WorkerLoop(mailbox: mailbox, signals: -1, output: nil)
        machine = VBDMachine(attachment: VBDMachine.Attachment(state: nil))
    }

    /// Runs until the VBD is over. `signals` is a signalfd with SIGTERM and SIGINT, or -1; what `output` reads is logged.
    public func run(
        signals: Int32 = -1, output: CapturedOutput? = nil
    ) throws(OperationError) -> VBDMachine.ExitReason {
        loop = WorkerLoop(mailbox: mailbox, signals: signals, output: output)
        defer { takeOutput(isLast: true) }
        if let channel = options.standby, !(try standBy(channel)) { return .handedOver }
        if let path = options.controlSocket {
            do throws(OperationError) {
                control = try ControlSocket(path: path)
            } catch {
                log.error(error.description)
            }
        }
        guard let node = try nodes.readBackend() else {
            log.info("\(options.backendPath) does not exist")
            return .vanished
        }
        try attach(node)
        while true {
            if let exitReason { return exitReason }
            if let failure { throw failure }
            do throws(OperationError) {
                if !pending.isEmpty {
                    hand(pending.removeFirst())
                } else if watchDeadline <= clinux_monotonic_ns() {
                    try nodes.watch()
                    publish(nil)
                } else if nodes.isWatching, let change = nodes.takeChange() {
                    try read(change)
                } else {
                    try wait()
                }
            } catch {
                if !canServe(after: error) { throw error }
            }
        }
    }

    /// When watches are set, in ns of the monotonic clock; `UInt64.max` where they are.
    ///
    /// Not while the storage is opened or queues are started, for that is how long a guest waits whose worker died, and with
    /// a watch XenStore answers more slowly; but what takes long must not keep the node from being seen.
    private var watchDeadline: UInt64 {
        if nodes.isWatching { return .max }
        return disk.busySince.map { $0 &+ 100_000_000 } ?? 0
    }

    private func standBy(_ channel: Int32) throws(OperationError) -> Bool {
        try succession.standBy(
            channel, signals: loop.signals,
            prepare: { () throws(OperationError) -> Bool in
                guard case .success(let node)? = try nodes.readBackend() else {
                    log.info("\(options.backendPath) does not exist any more, or breaks a rule")
                    return false
                }
                try opener.prepare(for: node)
                return true
            }, handOver: nodes.handOver)
    }

    /// Begins where the node stands.
    private func attach(_ node: Result<BackendNode, NegotiationError>) throws(OperationError) {
        let attachment: VBDMachine.Attachment
        switch node {
        case .success(let node):
            nodes.follow(node)
            disk.offeredBefore = node.offered
            takeOffers(of: node)
            inherit(node)
            attachment = VBDMachine.Attachment(
                state: node.state, isOnline: node.isOnline, frontend: try nodes.readFrontendState(),
                publishedSectorCount: node.publishedSectorCount)
            disk.inheritedTransfer = node.publishedTransfer
        case .failure(let error):
            // Without a frontend there is nothing to serve; say so where the toolstack looks, and wait for the end.
            let (state, isOnline) = try nodes.readBackendState()
            attachment = VBDMachine.Attachment(state: state, isOnline: isOnline, frontend: nil)
            pending.append(.storageRejected(error.description))
        }
        machine = VBDMachine(
            attachment: attachment,
            configuration: VBDMachine.Configuration(
                limits: FrontendLimits(
                    maximumRingPageOrder: options.maxRingPageOrder, maximumQueueCount: options.maxQueues),
                // A confined process cannot open its storage again, and keeps it for the guest's next driver. Where no
                // script runs when the disk is removed, nobody could wait for its end: state 6 is all that xl looks at.
                storageRelease: options.confinement == nil || options.storageSource == .params
                    ? .withFrontend : .withDevice))
        perform(machine.start())
        // Before anybody asks or changes something: also of a disk that no guest is connected to.
        if case .success = node { resumeStatistics() }
        // What was read is read again when there are watches; a guest whose worker died need not wait for that.
        if case .success(let node) = node { takeStorage(node) }
    }

    /// What the disk's node says of queues, rings and requests: before anything is offered. What is wrong with it is said when
    /// the storage is opened, and then nobody is served.
    private func takeOffers(of node: BackendNode) {
        do throws(OperationError) {
            disk.options = options.with(try SettingsSchema.settings(among: node.options))
        } catch {}  // what is usual, until then
    }

    private func hand(_ event: VBDMachine.Event) {
        log.debug("event \(event)")
        if case .stopRequested(let kind) = event { disk.willEnd(handsOver: kind == .handOver) }
        perform(machine.handle(event))
        if patience == .never { opener.stopWaiting() }
    }

    /// True where XenStore has died and rings are connected: they need it no more, and their guest is not to suffer.
    func canServe(after error: OperationError) -> Bool {
        if !disk.isConnected { return false }
        if nodes.isLost { return true }
        if nodes.answers() { return false }
        log.error(
            "XenStore: \(error); the disk is served on and cannot be detached any more; SIGTERM ends this process"
        )
        return true
    }

    // MARK: What XenStore says

    /// Reads what a watch said has changed, and hands over what stands there now.
    private func read(_ change: NodeStore.Change) throws(OperationError) {
        switch change {
        case .frontend: hand(.frontendChanged(try nodes.readFrontendState()))
        case .backend:
            switch try nodes.readBackend() {
            case nil: hand(.backendChanged(state: nil, isOnline: false))
            case .failure(let error):
                // A toolstack can detach a disk whatever else its node says.
                let (state, isOnline) = try nodes.readBackendState()
                hand(.backendChanged(state: state, isOnline: isOnline))
                reject(error)
            case .success(let node):
                hand(.backendChanged(state: node.state, isOnline: node.isOnline))
                takeStorage(node)
            }
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
        if mayGoBack { return giveUpExchange(OperationError(.open, error.description)) }
        pending.append(.storageRejected(error.description))
    }

    // MARK: What wakes the control thread

    private func wait() throws(OperationError) {
        let ready = try loop.wait(
            store: nodes.isWatching ? nodes.watchDescriptor : nil, storeEnd: nodes.endDescriptor,
            control: control?.descriptors ?? [],
            until: min(
                min(nodes.checkDeadline, nodes.errorDeadline, log.tellingDeadline, lookDeadline, watchDeadline),
                min(
                    control?.deadline ?? .max, trouble.deadline, disk.question?.deadline ?? .max, disk.pauseDeadline)))
        log.tellDropped()
        lookForStalls()
        control?.expire()
        if loop.takeTimer() { pending.append(.timerFired) }
        try nodes.check()
        try nodes.writeWaitingError()
        careForTrouble()
        careForPause()
        disk.expireQuestion()
        for source in ready {
            switch source {
            case .store: try nodes.takeWatchEvents()
            case .storeEnd: try nodes.hungUp()
            case .mailbox: for message in mailbox.take() { receive(message) }
            case .signals: takeSignal()
            case .output: takeOutput()
            case .control(let descriptor): serve(descriptor)
            }
        }
    }

    /// Logs what the plugin or a library has printed.
    func takeOutput(isLast: Bool = false) {
        loop.output?.take(isLast: isLast) { line in log.warning("printed: \(String(decoding: line, as: UTF8.self))") }
        if isLast { log.tellDropped(isLast: true) }
    }

    private func takeSignal() {
        guard let kind = loop.takeSignal() else { return }
        log.info(kind == .closeDevice ? "closing the device" : "handing the device over")
        pending.append(.stopRequested(kind))
    }

    private func serve(_ descriptor: Int32) {
        let service = ControlService(
            disk: disk, nodes: nodes, stalls: stalls, trouble: trouble, events: events, problem: problem, log: log
        ) { [weak self] event in
            self?.tellSize()
            self?.pending.append(event)
        }
        control?.serve(descriptor) { line, reply in service.answer(line, machine, reply) }
    }
}
