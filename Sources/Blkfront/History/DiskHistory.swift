// SPDX-License-Identifier: BSD-2-Clause
// What the sectors of a disk may hold, from what the disk's user was told. A value: no clock, no thread, no disk.
//
// Each sector of 512 bytes is a register of its own. A write that was acknowledged before another one of the same sector
// was submitted is replaced by that one as soon as it is acknowledged; of writes that were under way together any may
// remain, but one only. Until it is acknowledged a write may be done more than once: that is what a successor's replay
// does. So a reader may see
//
//   - what was not replaced before the reading was submitted,
//   - what was under way at any time of the reading, and a mixture of both kinds while anything is (a page cache copies
//     without a lock),
//   - but nothing that was acknowledged before another reading that had found something else.
//
// A loss of power leaves what a reading could find that began with the last acknowledged flush and lasts until the loss;
// of the sectors of an acknowledged barrier also nothing that is older than it. What the kill of a worker may take back is
// nothing.

/// A write, and discards too, by the number that ``DiskHistory`` gave it; 0 is what the sectors held in the beginning.
public typealias WriteNumber = UInt64

/// What a sector was found to hold.
public enum SectorFinding: Equatable, Sendable {
    /// The whole content of a write.
    case write(WriteNumber)
    /// Anything else, in words.
    case mangled(String)
}

/// Why a sector cannot hold what was found there.
public struct HistoryFault: Error, Equatable, Sendable, CustomStringConvertible {
    /// What kind of rule is broken.
    public enum Kind: String, Sendable {
        /// No whole write.
        case mangled
        /// A write that was never submitted to this sector.
        case foreign
        /// A write that another one had replaced before the reading began.
        case replaced
        /// Another one of several candidates than a reading before had found.
        case changed
        /// After a loss of power: older than what a flush made durable.
        case lost
    }

    /// What kind of rule is broken.
    public let kind: Kind
    /// The sector, counted from the beginning of the history's part of the disk.
    public let sector: Int
    /// Sector, what was found, what was allowed and why, on one line.
    public let description: String
}

/// The history of a part of a disk, told in the order in which its user did things and heard of them.
public struct DiskHistory: Sendable {
    /// A moment: the number of calls before it.
    public typealias Moment = UInt64

    /// What was or may be in a sector.
    private struct Version {
        var number: WriteNumber
        var submitted: Moment
        /// nil: under way, or its end was never heard of.
        var acknowledged: Moment?
        /// When the first write was acknowledged that was submitted after this one's end; and its number.
        var replaced: Moment?
        var replacedBy: WriteNumber = 0
        /// Readings that begin later have to find another one, which was found. Before ``submitted``: it was never there.
        var passed: Moment?
        /// A barrier made another one durable that is later than this one.
        var isBehindBarrier = false
        /// A discard: any content.
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
    /// Readings under way.
    private var readings: Set<Moment> = []
    /// Sectors that were compared, and how many of these comparisons had more than one candidate.
    public private(set) var comparisons = 0
    /// See ``comparisons``.
    public private(set) var choices = 0

    /// A history of so many sectors that all hold write 0; with `unknown` they may hold anything.
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

    /// A write is about to be submitted; its content must say the number that is returned.
    public mutating func submitWrite(_ range: Range<Int>) -> WriteNumber { submit(range, isAnything: false) }

    /// A discard is about to be submitted.
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

    /// The end of a write or discard was heard of. One that failed may have been done in part: it replaces nothing.
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
                // A barrier is done after all that was submitted before it, acknowledged or not.
                guard succeeded,
                    isBarrier ? version.submitted < write.submitted : !version.isUnderWay(from: write.submitted)
                else { continue }
                if isBarrier { sectors[sector][index].isBehindBarrier = true }
                if version.replaced == nil {
                    sectors[sector][index].replaced = moment
                    sectors[sector][index].replacedBy = number
                }
            }
            // Nobody may see these again, whatever happens.
            sectors[sector].removeAll { !$0.isVisible(from: oldest) }
        }
    }

    // MARK: Flushes

    /// A flush is about to be submitted, or a barrier, whose data is a write that is submitted next.
    public mutating func submitFlush() -> Moment { tick() }

    /// A flush succeeded that was submitted at `moment`: what had been acknowledged by then survives a loss of power.
    public mutating func acknowledgeFlush(_ moment: Moment) {
        _ = tick()
        durable = max(durable, moment)
    }

    /// The end of a barrier was heard of: a flush that was submitted at `moment`, and then a write, which is durable too.
    public mutating func acknowledgeBarrier(_ number: WriteNumber, _ moment: Moment, succeeded: Bool) {
        acknowledge(number, succeeded: succeeded, isBarrier: true)
        if succeeded { acknowledgeFlush(moment) }
    }

    // MARK: Readings

    /// A reading is about to be submitted.
    public mutating func submitRead() -> Moment {
        let moment = tick()
        readings.insert(moment)
        return moment
    }

    /// A reading that was submitted at `moment` is over and its sectors are compared.
    public mutating func endRead(_ moment: Moment) { readings.remove(moment) }

    /// Compares what a reading found in a sector, before ``endRead(_:)``.
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
        // The one that was found was there between `from` and the end of the reading. What was over before that is gone: at
        // the latest now, and earlier if the one that was found ended, which nobody could bring back after its end.
        guard let known = versions.first(where: { $0.number == number }) else { return }
        let from = max(moment, known.submitted)
        let since = known.acknowledged ?? now
        for (index, version) in versions.enumerated()
        where version.number != number && !version.isUnderWay(from: from) {
            sectors[sector][index].passed = min(version.passed ?? since, since)
        }
    }

    /// The writes of which parts may stand side by side in a sector for a reading that began at `moment`; none if nothing
    /// was under way there. Call before ``endRead(_:)``.
    public func mixture(_ sector: Int, read moment: Moment) -> [WriteNumber] {
        guard sectors.indices.contains(sector),
            sectors[sector].contains(where: { $0.isUnderWay(from: moment) })
        else { return [] }
        return sectors[sector].filter { $0.isVisible(from: moment) }.map(\.number)
    }

    /// Compares what is found in a sector when nothing is under way any more.
    public mutating func checkAtRest(_ sector: Int, _ found: SectorFinding) throws(HistoryFault) {
        let moment = submitRead()
        defer { endRead(moment) }
        try check(sector, found, read: moment)
    }

    /// Compares what is found in a sector after a loss of power at this moment.
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
