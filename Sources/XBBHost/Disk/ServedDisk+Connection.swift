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
    var isConnected: Bool { !queues.isEmpty }

    /// Maps the rings of `node`, binds their event channels and gets the queues ready: all of them or none.
    ///
    /// `isStorageKnown`: of inherited rings, the images are known to be those that were served.
    /// `completion` gets what the frontend is offered, which is what the queues hold requests to; or why there are no
    /// queues, when none is left.
    func connect(
        _ node: FrontendNode, of domain: DomainID, _ origin: VBDMachine.RingOrigin, after predecessor: Predecessor,
        isStorageKnown: Bool,
        _ completion: @escaping (Result<OfferedFeatures, OperationError>) -> Void
    ) {
        guard let device, let request else {
            return completion(.failure(OperationError(.invalid, "no device is open")))
        }
        do throws(OperationError) {
            // It may have grown while no queue looked. A frontend that goes on with its rings knows a size already, and is
            // told of another one as of every change.
            if origin == .fresh { try device.refresh() }
            while statistics.count < node.rings.count { statistics.append(QueueStatistics()) }
            let offered = OfferedFeatures(request: request, device: device.facts, queueCount: node.rings.count)
            let sources = try journal.sources(
                JournalConnection(
                    domain: domain, isNarrow: node.ringProtocol == .x86_32, isReadOnly: offered.isReadOnly,
                    rings: node.rings,
                    entries: RingLayout(node.abi).entryCount(pages: node.rings.first?.pageReferences.count ?? 0),
                    storage: device.storage, format: device.source.format, plugin: device.library.name),
                origin, after: predecessor, isStorageKnown: isStorageKnown)
            for (index, source) in sources.enumerated() {
                try start(index, of: node, domain, device, offered, source)
            }
            journal.complete()
            connection = Connection(node: node, offered: offered)
            log.info(
                "connected to domain \(domain): \(node.rings.count) queues, "
                    + "\(node.rings[0].pageReferences.count) ring pages, \(node.ringProtocol.rawValue)")
            KillPoint.reach(.connected)
            completion(.success(offered))
        } catch {
            disconnect(.atOnce) { completion(.failure(error)) }
        }
    }

    private func start(
        _ index: Int, of node: FrontendNode, _ domain: DomainID, _ device: PluginDevice, _ offered: OfferedFeatures,
        _ journal: QueueJournalSource
    ) throws(OperationError) {
        let mailbox = mailbox
        var configuration = QueueConfiguration(
            domain: domain, index: index, ringReferences: node.rings[index].pageReferences,
            eventChannel: node.rings[index].eventChannel, abi: node.abi,
            disk: offered, memoryBytes: options.memoryBytes, blockingThreads: blockingThreads(device, node),
            pollNanoseconds: tunables.pollMicroseconds * 1000, tuning: tunables.tuning)
        configuration.journal = journal
        let queue = try QueueThread(
            platform: platform, device: device, configuration: configuration, statistics: statistics[index],
            log: log, faultLimit: faultLimit,
            onFailure: { mailbox.post(.queueFailed($0.description)) }, onReplayed: { mailbox.post(.replayed(index)) },
            onPaused: { mailbox.post(.queuePaused) }, onEnd: { mailbox.post(.queueEnded) })
        try queue.start()
        if isPauseWanted { queue.pause() }
        queues.append(queue)
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
        if queues.isEmpty { return completion() }
        if drain == nil {
            KillPoint.reach(.draining)
            drain = Drain(began: clinux_monotonic_ns())
            for queue in queues { queue.beginDraining(end) }
        }
        drain?.completions.append(completion)
    }

    /// A queue's thread has ended; the last one ends the connection.
    func queueEnded() {
        guard let drain, queues.allSatisfy(\.hasEnded) else { return }
        for queue in queues { queue.join() }
        KillPoint.reach(.drained)
        queues = []
        connection = nil
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
