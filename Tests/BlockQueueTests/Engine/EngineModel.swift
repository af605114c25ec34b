// SPDX-License-Identifier: BSD-2-Clause
// What a guest may expect of its disk, whatever fails in between.
import Blkif
import PluginAPI

@testable import BlockQueue

/// Follows every request from the ring to its answer and knows what the disk may contain.
final class EngineModel {
    /// A request that was sent.
    final class Entry {
        let sent: Sent
        /// Its place on the ring.
        let sequence: Int
        /// The status of a request that breaks a rule; nil if it breaks none.
        let refusal: Int16?
        /// Writes that had reached the disk when it was sent: a flush covers these.
        let writesBefore: UInt64
        var copyFailed = false
        var pluginFailed = false
        /// Something failed before its backend was killed; who follows may not meet it again.
        var failedBefore = false
        var isBarrier: Bool { sent.operation == BlockOperation.writeBarrier.rawValue && refusal == nil }

        init(_ sent: Sent, _ sequence: Int, refusal: Int16?, writesBefore: UInt64) {
            self.sent = sent
            self.sequence = sequence
            self.refusal = refusal
            self.writesBefore = writesBefore
        }
    }

    private let rig: EngineRig
    private let block: Int
    /// What each sector contains.
    private var content: [UInt64]
    /// What else a sector may contain, because a write failed.
    private var maybe: [Int: Set<UInt64>] = [:]
    private var readers: [UInt8]
    private var writers: [Bool]
    private var entries: [UInt64: Entry] = [:]
    private var owners: [UInt32: Entry] = [:]
    private var nextSequence = 0
    private(set) var answered = 0
    private(set) var failed = 0
    /// Flushes may have been skipped by a tunable.
    var flushesAreSkipped = false
    private(set) var problems: [String] = []

    init(_ rig: EngineRig) {
        self.rig = rig
        block = Int(rig.plugin.info.logicalBlock) / 512
        content = (0..<rig.disk.sectorCount).map(FakeDisk.firstTag)
        readers = [UInt8](repeating: 0, count: rig.disk.sectorCount)
        writers = [Bool](repeating: false, count: rig.disk.sectorCount)
        rig.onAnswer = { [unowned self] in answer($0) }
        rig.onFailedCall = { [unowned self] in owners[$0]?.copyFailed = true }
        rig.guest.onCopy = { [unowned self] in copied($0, toGuest: $1) }
        watchPlugin()
    }

    private func watchPlugin() { rig.plugin.onFailure = { [unowned self] in pluginFailed($0) } }

    /// Another process goes on: what has failed is done again, and what it answered and nobody saw is not known. What has
    /// reached the disk stays there, also where the request fails now.
    func backendDied() {
        watchPlugin()
        for entry in entries.values where entry.refusal == nil {
            entry.failedBefore = entry.failedBefore || entry.copyFailed || entry.pluginFailed
            (entry.copyFailed, entry.pluginFailed) = (false, false)
            for (index, tag) in entry.sent.tags.enumerated() where rig.disk.tag(entry.sent.sector + index) == tag {
                maybe[entry.sent.sector + index, default: []].insert(tag)
            }
        }
    }

    private func problem(_ text: String) {
        if problems.count < 5 { problems.append(text) }
    }

    // MARK: Sending

    /// True if a request may be sent: no other in flight writes what it touches, or reads what it writes.
    func isFree(_ range: Range<Int>, writing: Bool) -> Bool {
        var sector = range.lowerBound
        while sector < range.upperBound {
            if writers[sector] || (writing && readers[sector] > 0) { return false }
            sector += 1
        }
        return true
    }

    private func isWriting(_ sent: Sent) -> Bool { sent.operation != BlockOperation.read.rawValue }
    private func range(_ sent: Sent) -> Range<Int> { sent.sector..<(sent.sector + sent.count) }

    func sending(_ sent: Sent, refusal: Int16? = nil) {
        let entry = Entry(sent, nextSequence, refusal: refusal, writesBefore: rig.disk.writes)
        nextSequence += 1
        entries[sent.id] = entry
        for segment in sent.segments { owners[segment.reference] = entry }
        for list in sent.lists { owners[list] = entry }
        if refusal == nil { reserve(sent, 1) }
    }

    private func reserve(_ sent: Sent, _ step: Int) {
        let writing = isWriting(sent)
        var sector = sent.sector
        let end = sent.sector + sent.count
        while sector < end {
            if writing { writers[sector] = step > 0 } else { readers[sector] = UInt8(Int(readers[sector]) + step) }
            sector += 1
        }
    }

    // MARK: Failures

    func copyFails(_ reference: UInt32) { owners[reference]?.copyFailed = true }

    private func copied(_ reference: UInt32, toGuest: Bool) {
        guard let entry = owners[reference] else {
            problem("a copy of page \(reference), which no request has")
            return
        }
        if entry.refusal != nil { problem("a copy for a request that must be refused: \(entry.sent)") }
        if entry.sent.lists.contains(reference) {
            if toGuest { problem("a copy into a list of segments: \(entry.sent)") }
        } else if toGuest == isWriting(entry.sent) {
            problem("a copy in the wrong direction: \(entry.sent)")
        }
    }

    private func pluginFailed(_ request: HeldRequest) {
        let isFlush = request.op == Int(XBB_OP_FLUSH)
        let first = request.sector / block * block
        let end = (request.sector + request.sectorCount + block - 1) / block * block
        for entry in entries.values where entry.refusal == nil {
            let sent = entry.sent
            let operation = BlockOperation(rawValue: sent.operation)
            if isFlush {
                if operation == .flush || operation == .writeBarrier { entry.pluginFailed = true }
            } else if sent.count > 0, sent.sector / block * block < end,
                (sent.sector + sent.count + block - 1) / block * block > first
            {
                entry.pluginFailed = true
            }
        }
    }

    // MARK: Answers

    private func answer(_ response: BlockResponse) {
        guard let entry = entries.removeValue(forKey: response.id) else { return }
        answered += 1
        let sent = entry.sent
        if response.status != 0 { failed += 1 }
        if let refusal = entry.refusal {
            if response.status != refusal { problem("\(response.status) for a request that breaks a rule: \(sent)") }
        } else {
            reserve(sent, -1)
            if sent.references.contains(where: rig.guest.revoked.contains) { entry.copyFailed = true }
            // Where the list of segments cannot be read, an indirect request is refused like one that breaks a rule: at once.
            let mayBeRefused = !sent.lists.isEmpty && (entry.copyFailed || entry.failedBefore)
            if response.status == 0 || !mayBeRefused { checkOrder(entry) }
            judge(entry, response.status)
        }
        for reference in sent.references {
            owners[reference] = nil
            rig.guest.revoked.remove(reference)
        }
        rig.givePagesBack(sent)
        rig.forget(sent)
    }

    private func checkOrder(_ entry: Entry) {
        for other in entries.values {
            if other.isBarrier && other.sequence < entry.sequence {
                problem("request \(entry.sequence) overtook barrier \(other.sequence)")
            }
            if entry.isBarrier && other.sequence < entry.sequence {
                problem("barrier \(entry.sequence) was answered before request \(other.sequence)")
            }
        }
    }

    private func judge(_ entry: Entry, _ status: Int16) {
        let sent = entry.sent
        let operation = BlockOperation(rawValue: sent.operation)
        // A flush that fails keeps the data from being copied at all.
        if entry.copyFailed && status == 0 { problem("success, but a page could not be copied: \(sent)") }
        if status != 0 && !entry.copyFailed && !entry.pluginFailed && !entry.failedBefore {
            problem("\(status) without a reason: \(sent)")
        }
        switch operation {
        case .read: if status == 0 { read(sent) }
        case .write: wrote(entry, status)
        case .writeBarrier, .flush:
            wrote(entry, status)
            if status == 0 { checkDurable(entry) }
        case .discard: discarded(sent, status)
        case nil: problem("an unknown operation was not refused")
        }
    }

    private func read(_ sent: Sent) {
        for (index, tag) in rig.guestTags(sent).enumerated() { pin(sent.sector + index, tag, "read") }
    }

    private func pin(_ sector: Int, _ tag: UInt64, _ what: String) {
        if tag == content[sector] || maybe[sector]?.contains(tag) == true {
            content[sector] = tag
            maybe[sector] = nil
        } else {
            problem(
                "\(what): sector \(sector) has \(String(tag, radix: 16)), not \(String(content[sector], radix: 16))")
        }
    }

    private func wrote(_ entry: Entry, _ status: Int16) {
        let sent = entry.sent
        if entry.copyFailed && status != 0 { return }
        for (index, tag) in sent.tags.enumerated() {
            let sector = sent.sector + index
            if status == 0 {
                content[sector] = tag
                maybe[sector] = nil
            } else {
                maybe[sector, default: []].insert(tag)
            }
        }
    }

    private func discarded(_ sent: Sent, _ status: Int16) {
        let first = (sent.sector + block - 1) / block * block
        let end = (sent.sector + sent.count) / block * block
        guard first < end else { return }
        for sector in first..<end {
            if status == 0 {
                content[sector] = 0
                maybe[sector] = nil
            } else {
                maybe[sector, default: []].insert(0)
            }
        }
    }

    private func checkDurable(_ entry: Entry) {
        guard rig.plugin.info.capabilities.contains(.flush) else { return }
        if !entry.isBarrier && flushesAreSkipped { return }
        if rig.disk.hasDirty(upTo: entry.writesBefore) { problem("not all is on stable storage after \(entry.sent)") }
        if entry.isBarrier, range(entry.sent).contains(where: rig.disk.isDirty) {
            problem("a barrier's data is not on stable storage: \(entry.sent)")
        }
    }

    /// Compares the disk with what it may contain.
    func checkDisk() {
        for sector in 0..<rig.disk.sectorCount { pin(sector, rig.disk.tag(sector), "disk") }
    }
}
