// SPDX-License-Identifier: BSD-2-Clause
// The queues of a frontend: connected, started and drained.
import BlockQueue
import PluginHost
import Base
import Blkif
import CLinux
import Support
import Xen
import XenBus

extension ServedDisk {
    /// Rings are mapped or about to be unmapped.
    var isConnected: Bool { !queues.isEmpty || startingQueue != nil }

    /// Maps the rings of `node`, binds their event channels and gets the queues ready, one after the other: all of them or
    /// none.
    ///
    /// `isStorageKnown`: of inherited rings, the images are known to be those that were served; `isExchanged`: they are to be
    /// others.
    /// `completion` gets what the frontend is offered, which is what the queues hold requests to; or why there are no
    /// queues, when none is left.
    func connect(
        _ node: FrontendNode, of domain: DomainID, _ origin: VBDMachine.RingOrigin, after predecessor: Predecessor,
        isStorageKnown: Bool, isExchanged: Bool,
        _ completion: @escaping (Result<OfferedFeatures, OperationError>) -> Void
    ) {
        guard let device, let request else {
            return completion(.failure(OperationError(.invalid, "no device is open")))
        }
        let connect = { [self] (result: Result<DeviceInfo, OperationError>) in
            switch result {
            case .failure(let error): completion(.failure(error))
            case .success(let info):
                device.adopt(info)
                makeQueues(
                    node, of: domain, origin, after: predecessor, isStorageKnown: isStorageKnown,
                    isExchanged: isExchanged, device, request, completion)
            }
        }
        // It may have grown while no queue looked. A frontend that goes on with its rings knows a size already, and is told
        // of another one as of every change.
        if origin == .inherited { return connect(.success(device.info)) }
        calls.make("get_info()", { () throws(OperationError) in try device.measure() }, connect)
    }

    private func makeQueues(
        _ node: FrontendNode, of domain: DomainID, _ origin: VBDMachine.RingOrigin, after predecessor: Predecessor,
        isStorageKnown: Bool, isExchanged: Bool, _ device: PluginDevice, _ request: DeviceRequest,
        _ completion: @escaping (Result<OfferedFeatures, OperationError>) -> Void
    ) {
        do throws(OperationError) {
            while statistics.count < node.rings.count {
                statistics.append(area?.queue(statistics.count) ?? QueueStatistics())
            }
            let offered = OfferedFeatures(
                request: request, device: device.facts, queueCount: node.rings.count, transfer: transfer(origin, node))
            let sources = try journal.sources(
                JournalConnection(
                    domain: domain, isNarrow: node.ringProtocol == .x86_32, isReadOnly: offered.isReadOnly,
                    rings: node.rings,
                    entries: RingLayout(node.abi).entryCount(pages: node.rings.first?.pageReferences.count ?? 0),
                    storage: device.storage, format: device.source.format, plugin: device.library.name),
                origin, after: predecessor, isStorageKnown: isStorageKnown, isExchanged: isExchanged)
            watch = RequestWatch()
            sharedQueues = SharedPluginQueue.queues(
                of: device, forRings: node.rings.count, threads: options.blockingThreads)
            connecting = Connecting(
                node: node, domain: domain, device: device, offered: offered,
                order: Self.order(of: node), sources: sources[...],
                completion: completion)
            startNextQueue()
        } catch {
            completion(.failure(error))
        }
    }

    /// What several queues agree on; nil for the only one.
    private static func order(of node: FrontendNode) -> DiskOrder? {
        if node.rings.count < 2 { return nil }
        let pages = node.rings.first?.pageReferences.count ?? 0
        return DiskOrder(queueCount: node.rings.count, listsPerQueue: RingLayout(node.abi).entryCount(pages: pages))
    }

    private func startNextQueue() {
        guard var connecting else { return }
        guard let source = connecting.sources.popFirst() else { return finishConnecting(connecting) }
        connecting.began = clinux_monotonic_ns()
        self.connecting = connecting
        do throws(OperationError) {
            startingQueue = try start(queues.count, for: connecting, source)
        } catch {
            failConnecting(error)
        }
    }

    /// The queue that was started runs, or has failed to.
    func queueStarted() {
        guard let queue = startingQueue else { return }
        startingQueue = nil
        do throws(OperationError) {
            try queue.finishStart()
            tune(queue)
            if isPauseWanted { queue.pause() }
            queues.append(queue)
            startNextQueue()
        } catch {
            failConnecting(error)
        }
    }

    private func failConnecting(_ error: OperationError) {
        guard let completion = connecting?.completion else { return }
        connecting = nil
        disconnect(.atOnce) { completion(.failure(error)) }
    }

    private func finishConnecting(_ done: Connecting) {
        connecting = nil
        hasServed = true
        journal.complete()
        var offered = done.offered
        // The size may have changed while the queues were started.
        offered.sectorCount = done.device.info.sectorCount
        if offered != done.offered { for queue in queues { queue.setOffered(offered) } }
        connection = Connection(node: done.node, offered: offered)
        log.info(
            "connected to domain \(done.domain): \(done.node.rings.count) queues"
                + (sharedQueues.isEmpty ? ", " : ", which share \(sharedQueues.count) of the plugin, ")
                + "\(done.node.rings[0].pageReferences.count) ring pages, \(done.node.ringProtocol.rawValue)")
        KillPoint.reach(.connected)
        done.completion(.success(offered))
    }

    private func start(
        _ index: Int, for connecting: Connecting, _ journal: QueueJournalSource
    ) throws(OperationError) -> QueueThread<Platform> {
        let (mailbox, node, device) = (mailbox, connecting.node, connecting.device)
        var configuration = QueueConfiguration(
            domain: connecting.domain, index: index, ringReferences: node.rings[index].pageReferences,
            eventChannel: node.rings[index].eventChannel, abi: node.abi,
            disk: connecting.offered, memoryBytes: options.memoryBytes, blockingThreads: blockingThreads(device, node),
            tuning: tuning)
        configuration.mapAtUse = options.mapAtUse
        configuration.mappedPages = PersistentGrantLimits.pages(ofEachOf: node.rings.count)
        configuration.journal = journal
        configuration.order = connecting.order
        if !sharedQueues.isEmpty { configuration.sharedQueue = sharedQueues[index % sharedQueues.count] }
        let queue = try QueueThread(
            platform: platform, device: device, configuration: configuration, statistics: statistics[index],
            log: log, errorLimit: errorLimit,
            onFailure: { mailbox.post(.queueFailed($0.description)) }, onStarted: { mailbox.post(.queueStarted) },
            onReplayed: { mailbox.post(.replayed(index)) },
            onPaused: { mailbox.post(.queuePaused) }, onStorageError: { mailbox.post(.storageFailed) },
            onHold: { mailbox.post(.holdChanged) }, onAwake: { mailbox.post(.queueAwoke) },
            onEnd: { mailbox.post(.queueEnded) })
        try queue.begin()
        return queue
    }

    /// Each thread of a blocking plugin takes a queue of it.
    private func blockingThreads(_ device: PluginDevice, _ node: FrontendNode) -> Int {
        max(1, min(options.blockingThreads, device.maxQueues / max(1, node.rings.count)))
    }

    // MARK: Start

    /// Lets the queues begin: all at once, or one after the other where it is to be found out which request it was that
    /// made the earlier process crash.
    func startQueues(after predecessor: Predecessor) {
        KillPoint.reach(.started)
        let found = queues.compactMap(\.recovery)
        if !found.isEmpty {
            let count = found.reduce(0) { $0 + $1.count }
            let plugin = device?.library.name ?? ""
            let examples = found.flatMap(\.examples).prefix(3).joined(separator: ", ")
            log.write(
                predecessor.hasCrashed ? .error : .info,
                "the process before this one \(predecessor.text) with \(count) requests in flight in plugin "
                    + "'\(plugin)', which are done again\(found.contains(where: \.isCareful) ? " one by one" : ""): "
                    + "\(examples)\(count > 3 ? ", ..." : "")")
        }
        queuesToStart = queues[...]
        startMoreQueues()
    }

    /// A queue has begun again, or done, what was in flight.
    func queueReplayed(_ index: Int) {
        log.debug("queue \(index): requests of the process before this one are on their way")
        startMoreQueues()
    }

    private func startMoreQueues() {
        while let queue = queuesToStart.popFirst() {
            queue.beginTaking()
            if queue.recovery?.isCareful == true { return }
        }
    }

    // MARK: End

    /// Takes what `end` says, finishes what is in flight, then unmaps and unbinds. `completion` comes when no queue is left.
    func disconnect(_ end: DrainRule, _ completion: @escaping () -> Void) {
        queuesToStart = []
        if queues.isEmpty {
            journal.end()
            return completion()
        }
        if drain == nil {
            KillPoint.reach(.draining)
            drain = Drain(began: clinux_monotonic_ns())
            // What waits for space is a successor's, if it can find it.
            let isLeft = end == .atOnce && isHandingOver && journal.isKept
            for queue in queues { queue.beginDraining(isLeft ? .handOver : end) }
        }
        drain?.completions.append(completion)
    }

    /// A queue's thread has ended; the last one ends the connection.
    func queueEnded() {
        guard let drain, queues.allSatisfy(\.hasEnded) else { return }
        for queue in queues { queue.join() }
        leftRequests = queues.reduce(0) { $0 + $1.leftRequests }
        KillPoint.reach(.drained)
        if let limiter { area?.store(limitDebt: limiter.debtUntil(now: clinux_monotonic_ns())) }
        queues = []
        connection = nil
        journal.end()
        self.drain = nil
        reportPause()
        for completion in drain.completions { completion() }
    }
}

extension VBDMachine.RingEnd {
    /// What a queue takes before it ends.
    var drain: DrainRule {
        switch self {
        case .atOnce: .atOnce
        case .emptied: .whenEmpty
        case .quiet: .whenQuiet
        }
    }
}

extension FrontendNode {
    /// The layout of its rings.
    var abi: RingABI { ringProtocol == .x86_32 ? .x86_32 : .native }
}
