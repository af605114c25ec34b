// SPDX-License-Identifier: BSD-2-Clause
// What the sectors of a disk may hold, from what the disk's user was told. A value: no clock, no thread, no disk.
//
// Each sector of 512 bytes is a register of its own. A write that was acknowledged before another one of the same sector
// was submitted is replaced by that one as soon as it is acknowledged; of writes that were under way together any may
// remain, but one only. So a reader may see
//
//   - what was not replaced before the reading was submitted,
//   - what was under way at any time of the reading,
//   - and, once a reading has found one of several candidates while nothing was under way, that one only.
//
// A loss of power may take back everything that was not acknowledged before the last acknowledged flush was submitted.
// What the kill of a worker may take back is nothing.

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
        /// Readings that begin later have to find another one, which was found.
        var passed: Moment?
        /// A discard: any content.
        var isAnything = false

        func isVisible(from moment: Moment) -> Bool {
            (replaced.map { $0 > moment } ?? true) && (passed.map { $0 >= moment } ?? true)
        }
        func isDurablyReplaced(at flush: Moment) -> Bool { replaced.map { $0 < flush } ?? false }
    }

    private struct Sector {
        var versions: [Version]
        /// The last moment at which a write was under way.
        var lastChange: Moment = 0
        var writers = 0
    }

    private struct Write {
        var sectors: Range<Int>
        var submitted: Moment
    }

    private var sectors: [Sector]
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
        sectors = [Sector](repeating: Sector(versions: [first]), count: count)
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
            sectors[sector].versions.append(
                Version(number: lastNumber, submitted: moment, isAnything: isAnything))
            sectors[sector].writers += 1
        }
        return lastNumber
    }

    /// The end of a write or discard was heard of. One that failed may have been done in part: it replaces nothing.
    public mutating func acknowledgeWrite(_ number: WriteNumber, succeeded: Bool) {
        guard let write = writes.removeValue(forKey: number) else { return }
        let moment = tick()
        let oldest = min(readings.min() ?? .max, durable)
        for sector in write.sectors {
            sectors[sector].writers -= 1
            sectors[sector].lastChange = moment
            for index in sectors[sector].versions.indices {
                if sectors[sector].versions[index].number == number {
                    sectors[sector].versions[index].acknowledged = moment
                } else if succeeded, sectors[sector].versions[index].replaced == nil,
                    let end = sectors[sector].versions[index].acknowledged, end < write.submitted
                {
                    sectors[sector].versions[index].replaced = moment
                    sectors[sector].versions[index].replacedBy = number
                }
            }
            // Nobody may see these again, whatever happens.
            sectors[sector].versions.removeAll { $0.isDurablyReplaced(at: oldest) }
        }
    }

    // MARK: Flushes

    /// A flush is about to be submitted, or a barrier, whose data is a write besides.
    public mutating func submitFlush() -> Moment { tick() }

    /// A flush succeeded that was submitted at `moment`: what had been acknowledged by then survives a loss of power.
    public mutating func acknowledgeFlush(_ moment: Moment) {
        _ = tick()
        durable = max(durable, moment)
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
        let versions = sectors[sector].versions
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
        // Nothing was under way during the reading: so it is that one, and stays it.
        guard visible.count > 1, sectors[sector].writers == 0, sectors[sector].lastChange < moment else { return }
        for index in versions.indices where versions[index].number != number && versions[index].passed == nil {
            sectors[sector].versions[index].passed = sectors[sector].lastChange
        }
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
        let allowed = sectors[sector].versions.filter { !$0.isDurablyReplaced(at: durable) }
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
        case .changed: text += ", and a reading before had found another one with nothing under way since"
        case .lost: text += ", which was replaced before the last flush that succeeded"
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
