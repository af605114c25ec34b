// SPDX-License-Identifier: BSD-2-Clause
// Going on where an earlier process stopped, and leaving behind what a successor needs for that. docs/recovery.md
// explains the protocol.
import BlockQueue
import PluginHost
import Base
import Blkif
import Glibc
import Support
import XenBus

extension VBDWorker {
    /// Opens the journal while files can still be opened. A disk is served without one, too.
    func openJournal() {
        guard let path = options.journal else { return }
        do throws(OperationError) {
            journal = try JournalFile(path: path)
        } catch {
            journalProblem = error.description
            log.error("\(error); if this process is killed, the guest loses its disk")
        }
    }

    /// What a frontend may have. One that is connected already keeps what it has, whatever new ones may have now.
    func limits(_ origin: VBDMachine.RingOrigin, _ device: PluginDevice) -> FrontendLimits {
        let inherited = origin == .inherited
        let queues = inherited ? max(options.maxQueues, journal?.queueCount ?? 0) : options.maxQueues
        return FrontendLimits(
            maximumRingPageOrder: inherited ? FrontendLimits.highestRingPageOrder : options.maxRingPageOrder,
            maximumQueueCount: min(queues, device.maxQueues, device.info.logicalBlock > 512 ? 1 : 64))
    }

    /// Queues that handles are to be had for.
    var mostQueues: Int { max(options.maxQueues, journal?.queueCount ?? 0) }

    /// Where each queue writes down what it does.
    func journalSources(
        _ origin: VBDMachine.RingOrigin, _ node: FrontendNode, _ device: PluginDevice, _ offered: OfferedFeatures
    ) throws(OperationError) -> [QueueJournalSource] {
        let isNarrow = node.ringProtocol == .x86_32
        let connection = JournalConnection(
            domain: frontendDomain, isNarrow: isNarrow, isReadOnly: offered.isReadOnly, rings: node.rings,
            entries: RingLayout(isNarrow ? .x86_32 : .native).entryCount(
                pages: node.rings.first?.pageReferences.count ?? 0),
            storage: device.storage, format: device.source.format, plugin: device.library.name)
        if origin == .inherited, let journal {
            // The guest goes on with what it has read, so nothing but the same images will do: also where nothing is in
            // flight, where the journal is of no use otherwise, and where the process before handed over.
            try journal.compareStorage(connection)
        }
        var inheritance = QueueJournalSource.Inheritance.nothing
        if origin == .inherited, options.journal != nil {
            do throws(OperationError) {
                guard let journal else { throw OperationError(.journal, journalProblem ?? "there is none") }
                let mapping = try journal.adopt(connection)
                return (0..<node.rings.count).map {
                    QueueJournalSource(mapping: mapping, index: $0, inheritance: .journal(predecessor))
                }
            } catch {
                // Who hands over has answered all that it took, so that the ring alone says what is to be done.
                if predecessor != .handedOver { inheritance = .unusable(error.description) }
                log.info("journal \(options.journal ?? ""): \(error)")
            }
        }
        let mapping = try beginJournal(connection)
        return (0..<node.rings.count).map { QueueJournalSource(mapping: mapping, index: $0, inheritance: inheritance) }
    }

    private func beginJournal(_ connection: JournalConnection) throws(OperationError) -> JournalMapping {
        defer { KillPoint.reach(.journalBegun) }
        if let journal {
            do throws(OperationError) {
                return try journal.begin(connection)
            } catch {
                log.error("\(error); if this process is killed, the guest loses its disk")
            }
        }
        guard let mapping = JournalMapping.anonymous(queues: connection.rings.count, entries: connection.entries) else {
            throw OperationError(ENOMEM, "reserve memory for \(connection.rings.count) queues")
        }
        return mapping
    }

    // MARK: Replay

    /// Lets the queues begin: all at once, or one after the other where it is to be found out which request it was that
    /// made the earlier process crash.
    func startQueues() {
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
    func replayed(_ index: Int) {
        log.debug("queue \(index): requests of the process before this one are on their way")
        startMoreQueues()
    }

    private func startMoreQueues() {
        while let queue = queuesToStart.popFirst() {
            queue.beginTaking()
            if queue.recovery?.isCareful == true { return }
        }
    }
}
