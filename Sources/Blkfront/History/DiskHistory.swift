// SPDX-License-Identifier: BSD-2-Clause
// Decides what the sectors of a disk may contain, given what the disk's user was told. A value without clock, thread or
// disk.
//
// Each sector of 512 bytes is an independent register. When a write is acknowledged, it replaces every write of the
// sector that was acknowledged before it was submitted. Of writes that were in progress at the same time, any one may
// remain, but only one. Until it is acknowledged, a write may be carried out more than once: a successor's replay does
// that. So a read may see
//
// - what was not replaced before the read was submitted,
// - what was in progress at any time during the read, and a mixture of these while a write is in progress (a page cache
//   copies without a lock),
// - but nothing that was acknowledged before another read that found something else.
//
// After a power loss, the disk contains what could be found by a read that began at the last acknowledged flush and
// lasted until the loss; in the sectors of an acknowledged barrier also nothing older than the barrier. Killing a
// worker must take back nothing.

/// Numbers a write or discard in the order in which ``DiskHistory`` was told of it; 0 is the initial content.
public typealias WriteNumber = UInt64

/// What a sector was found to hold.
public enum SectorFinding: Equatable, Sendable {
    /// The whole content of a write.
    case write(WriteNumber)
    /// Anything else, described in words.
    case mangled(String)
}

/// Why a sector cannot contain what was found there.
public struct HistoryFault: Error, Equatable, Sendable, CustomStringConvertible {
    /// The rule that is broken.
    public enum Kind: String, Sendable {
        /// Not a whole write.
        case mangled
        /// A write that was never submitted to this sector.
        case foreign
        /// A write that was replaced before the read began.
        case replaced
        /// One of several candidates, but an earlier read has found another one.
        case changed
        /// After a power loss: older than what a flush made durable.
        case lost
    }

    /// The rule that is broken.
    public let kind: Kind
    /// The sector, counted from the start of the history's part of the disk.
    public let sector: Int
    /// Sector, what was found, what was allowed and why, on one line.
    public let description: String
}

/// The history of a part of a disk. It must be told what the disk's user did and was told, in that order.
public struct DiskHistory: Sendable {
    /// A point in time: the number of calls before it.
    public typealias Moment = UInt64

    /// A write that may be, or may have been, the content of a sector.
    private struct Version {
        var number: WriteNumber
        var submitted: Moment
        /// nil: still in progress, or its end was never reported.
        var acknowledged: Moment?
        /// When a write that was submitted after this one's end was first acknowledged, and the number of that write.
        var replaced: Moment?
        var replacedBy: WriteNumber = 0
        /// Reads that begin later must find another write, because an earlier read did. If this is before
        /// ``submitted``, nothing of this write may ever be seen.
        var passed: Moment?
        /// A barrier made a later write durable.
        var isBehindBarrier = false
        /// A discard: any content is allowed.
        var isAnything = false

        func isVisible(from moment: Moment) -> Bool {
            (replaced.map { $0 > moment } ?? true) && (passed.map { $0 >= max(moment, submitted) } ?? true)
        }
        func isUnderWay(from moment: Moment) -> Bool { acknowledged.map { $0 > moment } ?? true }
    }

    private struct Write {
        var sectors: Range<Int>
        var submitted: Moment
    }

    private var sectors: [[Version]]
    private var writes: [WriteNumber: Write] = [:]
    private var lastNumber: WriteNumber = 0
    private var now: Moment = 0
    /// When the last acknowledged flush was submitted.
    private var durable: Moment = 0
    /// Reads in progress.
    private var readings: Set<Moment> = []
    /// Number of sectors that were compared.
    public private(set) var comparisons = 0
    /// Number of comparisons with more than one candidate.
    public private(set) var choices = 0

    /// A history of `count` sectors that all contain write 0; with `unknown`, they may contain anything.
    public init(sectors count: Int, unknown: Bool = false) {
        let first = Version(number: 0, submitted: 0, acknowledged: 0, isAnything: unknown)
        sectors = [[Version]](repeating: [first], count: count)
    }

    /// Number of sectors.
    public var sectorCount: Int { sectors.count }

    private mutating func tick() -> Moment {
        now += 1
        return now
    }

    // MARK: Writes

    /// Tells of a write that will be submitted; its content must contain the returned number.
    public mutating func submitWrite(_ range: Range<Int>) -> WriteNumber { submit(range, isAnything: false) }

    /// Tells of a discard that will be submitted.
    public mutating func submitDiscard(_ range: Range<Int>) -> WriteNumber { submit(range, isAnything: true) }

    private mutating func submit(_ range: Range<Int>, isAnything: Bool) -> WriteNumber {
        let moment = tick()
        lastNumber += 1
        let range = range.clamped(to: 0..<sectors.count)
        writes[lastNumber] = Write(sectors: range, submitted: moment)
        for sector in range {
            sectors[sector].append(Version(number: lastNumber, submitted: moment, isAnything: isAnything))
        }
        return lastNumber
    }

    /// Tells of the end of a write or discard. One that failed may have been carried out in part, so it replaces
    /// nothing.
    public mutating func acknowledgeWrite(_ number: WriteNumber, succeeded: Bool) {
        acknowledge(number, succeeded: succeeded, isBarrier: false)
    }

    private mutating func acknowledge(_ number: WriteNumber, succeeded: Bool, isBarrier: Bool) {
        guard let write = writes.removeValue(forKey: number) else { return }
        let moment = tick()
        let oldest = min(readings.min() ?? .max, durable)
        for sector in write.sectors {
            for index in sectors[sector].indices {
                let version = sectors[sector][index]
                if version.number == number {
                    sectors[sector][index].acknowledged = moment
                    continue
                }
                // A barrier takes effect after everything that was submitted before it, acknowledged or not.
                guard succeeded,
                    isBarrier ? version.submitted < write.submitted : !version.isUnderWay(from: write.submitted)
                else { continue }
                if isBarrier { sectors[sector][index].isBehindBarrier = true }
                if version.replaced == nil {
                    sectors[sector][index].replaced = moment
                    sectors[sector][index].replacedBy = number
                }
            }
            // No later read can see these.
            sectors[sector].removeAll { !$0.isVisible(from: oldest) }
        }
    }

    // MARK: Flushes

    /// Tells of a flush that will be submitted, or of a barrier, whose data is a write that is submitted next.
    public mutating func submitFlush() -> Moment { tick() }

    /// Tells of the success of a flush that was submitted at `moment`: what was acknowledged by then survives a power
    /// loss.
    public mutating func acknowledgeFlush(_ moment: Moment) {
        _ = tick()
        durable = max(durable, moment)
    }

    /// Tells of the end of a barrier: a flush that was submitted at `moment`, and then a write, which is durable too.
    public mutating func acknowledgeBarrier(_ number: WriteNumber, _ moment: Moment, succeeded: Bool) {
        acknowledge(number, succeeded: succeeded, isBarrier: true)
        if succeeded { acknowledgeFlush(moment) }
    }

    // MARK: Readings

    /// Tells of a read that will be submitted.
    public mutating func submitRead() -> Moment {
        let moment = tick()
        readings.insert(moment)
        return moment
    }

    /// Tells that a read that was submitted at `moment` is over and its sectors were compared.
    public mutating func endRead(_ moment: Moment) { readings.remove(moment) }

    /// Compares what a read found in a sector. Call it before ``endRead(_:)``.
    public mutating func check(_ sector: Int, _ found: SectorFinding, read moment: Moment) throws(HistoryFault) {
        guard sectors.indices.contains(sector) else { return }
        comparisons += 1
        let versions = sectors[sector]
        let visible = versions.filter { $0.isVisible(from: moment) }
        if visible.count > 1 { choices += 1 }
        if visible.contains(where: \.isAnything) { return }
        guard case .write(let number) = found else { throw fault(.mangled, sector, found, visible) }
        guard visible.contains(where: { $0.number == number }) else {
            guard let version = versions.first(where: { $0.number == number }) else {
                throw fault(number < lastNumber ? .replaced : .foreign, sector, found, visible)
            }
            throw fault(
                version.replaced.map { $0 <= moment } == true ? .replaced : .changed, sector, found, visible, version)
        }
        // The write that was found was there at some time between `from` and the end of the read. Writes that were over
        // by `from` are gone: now at the latest, or since the end of the found write, since nothing could bring them
        // back after that.
        guard let known = versions.first(where: { $0.number == number }) else { return }
        let from = max(moment, known.submitted)
        let since = known.acknowledged ?? now
        for (index, version) in versions.enumerated()
        where version.number != number && !version.isUnderWay(from: from) {
            sectors[sector][index].passed = min(version.passed ?? since, since)
        }
    }

    /// The writes whose parts may be mixed in a sector, for a read that began at `moment`; none if no write was in
    /// progress there. Call it before ``endRead(_:)``.
    public func mixture(_ sector: Int, read moment: Moment) -> [WriteNumber] {
        guard sectors.indices.contains(sector),
            sectors[sector].contains(where: { $0.isUnderWay(from: moment) })
        else { return [] }
        return sectors[sector].filter { $0.isVisible(from: moment) }.map(\.number)
    }

    /// Compares what is found in a sector when no write is in progress.
    public mutating func checkAtRest(_ sector: Int, _ found: SectorFinding) throws(HistoryFault) {
        let moment = submitRead()
        defer { endRead(moment) }
        try check(sector, found, read: moment)
    }

    /// Compares what is found in a sector after a power loss at this moment.
    public func checkAfterPowerLoss(_ sector: Int, _ found: SectorFinding) throws(HistoryFault) {
        guard sectors.indices.contains(sector) else { return }
        let allowed = sectors[sector].filter { $0.isVisible(from: durable) && !$0.isBehindBarrier }
        if allowed.contains(where: \.isAnything) { return }
        guard case .write(let number) = found else { throw fault(.mangled, sector, found, allowed) }
        if allowed.contains(where: { $0.number == number }) { return }
        throw fault(number > lastNumber ? .foreign : .lost, sector, found, allowed)
    }

    private func fault(
        _ kind: HistoryFault.Kind, _ sector: Int, _ found: SectorFinding, _ allowed: [Version],
        _ version: Version? = nil
    ) -> HistoryFault {
        var text = "sector \(sector) holds "
        switch found {
        case .mangled(let words): text += "no whole write: \(words)"
        case .write(let number): text += number == 0 ? "what it held in the beginning" : "write \(number)"
        }
        switch kind {
        case .mangled: break
        case .foreign: text += ", which was never submitted there"
        case .changed: text += ", and a reading before had found another one that is later"
        case .lost: text += ", which was replaced before the last flush or barrier that succeeded"
        case .replaced:
            text += ", which was replaced before it was read"
            if let version, version.replacedBy > 0 { text += ": by write \(version.replacedBy)" }
        }
        let words = allowed.map { version in
            version.acknowledged == nil ? "\(version.number) (under way)" : "\(version.number)"
        }
        return HistoryFault(
            kind: kind, sector: sector, description: "\(text); allowed: \(words.joined(separator: ", "))")
    }
}
