// SPDX-License-Identifier: BSD-2-Clause
// How a queue begins: with a ring of its own time, or with what an earlier process left of one.
import PluginHost
import Base
import Blkif
import CLinux
import Memory
import Xen

/// Where a queue's journal is, and how its contents are treated.
package struct QueueJournalSource: Sendable {
    /// What an earlier process left.
    package enum Inheritance: Sendable {
        /// The ring is new, or it is gone on with as it stands: nobody else has anything in flight.
        case nothing
        /// The journal is of this connection, and counts.
        case journal(Predecessor)
        /// There is no journal that counts, for this reason: only an empty ring can be gone on with.
        case unusable(String)
    }

    let mapping: JournalMapping
    let index: Int
    var inheritance = Inheritance.nothing

    /// The journal of queue `index` in a mapping that has room for it.
    package init(mapping: JournalMapping, index: Int, inheritance: Inheritance = .nothing) {
        self.mapping = mapping
        self.index = index
        self.inheritance = inheritance
    }

    /// A journal that ends with the process; nil if the kernel refuses the memory.
    static func anonymous(entries: Int) -> QueueJournalSource? {
        JournalMapping.anonymous(queues: 1, entries: entries).map { QueueJournalSource(mapping: $0, index: 0) }
    }

    /// True if the ring was in use before this process began.
    var isInherited: Bool {
        if case .nothing = inheritance { false } else { true }
    }

    /// Reads or begins the journal of `ring`, which then stands where this process goes on.
    func start(_ ring: inout BackRing) throws(OperationError) -> (QueueJournal, QueueRecovery) {
        let pages = mapping.queue(index)
        let entries = ring.entryCount
        guard pages.byteCount >= JournalLayout.queueSize(entries: entries) else {
            throw OperationError(.journal, "journal of queue \(index): it is too short for the ring")
        }
        do throws(OperationError) {
            switch inheritance {
            case .journal(let predecessor):
                var recovery = try QueueRecovery(reading: pages, entries: entries, published: ring.responseProducer)
                recovery.adopt(pages, entries: entries, after: predecessor)
                ring.resume(consumer: UInt32(truncatingIfNeeded: recovery.consumed))
                return (QueueJournal(pages, consumed: recovery.consumed), recovery)
            case .unusable(let text):
                if ring.hasNewRequests { throw OperationError(.journal, text) }
            case .nothing: break
            }
        } catch {
            throw error.within("requests in flight are lost: their journal is of no use")
        }
        let recovery = QueueRecovery(startingAt: ring.requestConsumer)
        recovery.begin(pages, entries: entries)
        return (QueueJournal(pages, consumed: recovery.consumed), recovery)
    }
}

/// What a queue found, for the log.
package struct RecoverySummary: Sendable {
    /// Requests that are done again.
    package var count = 0
    package var isCareful = false
    /// The first of them in words.
    package var examples: [String] = []

    /// Looks at the requests that will be done again. `disk` is what they are checked against.
    init(_ recovery: QueueRecovery, _ journal: QueueJournal, layout: RingLayout, disk: OfferedFeatures) {
        count = recovery.replays.count
        isCareful = recovery.isCareful && count > 0
        for index in recovery.replays.prefix(3) {
            var slot = SlotBytes()
            let request = ParsedRequest()
            journal.copy(index, into: &slot)
            let problem = request.read(slot, layout: layout, disk: disk)
            examples.append(problem == nil ? request.request.text : "a request that breaks a rule")
        }
    }
}

extension BlockRequest {
    /// For operators: "write".
    package var name: String {
        switch operation {
        case .read: "read"
        case .write: "write"
        case .writeBarrier: "barrier"
        case .flush: "flush"
        case .discard: "discard"
        }
    }

    /// For operators: "write of 4096 bytes at 1048576", without the length where that stands in pages of the guest.
    package var text: String {
        if sectorCount == 0 {
            return operation == .read || operation == .write ? "\(name) at \(firstSector &* 512)" : name
        }
        return "\(name) of \(sectorCount &* 512) bytes at \(firstSector &* 512)"
    }
}

/// Binds a frontend's event channel.
///
/// After a process died with requests in flight, Xen lets the port go only when its kernel has let go of their pages,
/// which took up to 1.7 s (EINVAL until then). A `patient` call tries again and again, for five seconds.
func bind<Events: EventChannels>(
    _ port: EventPort, of domain: DomainID, on channels: Events, patient: Bool
) throws(OperationError) -> EventPort {
    let deadline = clinux_monotonic_ns() &+ 5_000_000_000
    var pause: UInt32 = 100
    while true {
        do throws(OperationError) {
            return try channels.bind(port, of: domain)
        } catch {
            guard patient, error.code == EINVAL, clinux_monotonic_ns() < deadline else { throw error }
        }
        usleep(pause)
        pause = min(pause &* 2, 5000)
    }
}
