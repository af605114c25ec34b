// SPDX-License-Identifier: BSD-2-Clause
// What a guest may find in each sector: an independent model that knows nothing of images.

/// Which end of the engine is judged.
enum Ending: Sendable {
    /// The process was killed: all effects are in the file.
    case kill
    /// The power failed: what was flushed is there.
    case powerCut
}

/// A guest's write, or a range that it gave up, over the sectors of a disk.
struct DiskEvent: Sendable {
    let sectors: Range<Int>
    /// What the sectors have then; 0: zeroes.
    let generation: UInt32
    /// Once it is done, what was before is gone. Not so of a failed write, or of a hint.
    var replaces: Bool
    /// Moments of the history: what ended before another began came before it.
    let begin: Int
    var end = Int.max
    /// Effects in the log when it began.
    let beginPosition: Int
    /// Effects in the log when the guest got the answer.
    var endPosition = Int.max
}

/// A flush that the guest got an answer for.
struct FlushEvent: Sendable {
    let begin: Int
    let endPosition: Int
}

/// All events of a history, by sector.
struct SectorModel: Sendable {
    /// What the sectors had before.
    private(set) var before: [UInt32]
    private(set) var events: [DiskEvent] = []
    private(set) var flushes: [FlushEvent] = []
    private var bySector: [[Int32]]
    private(set) var now = 0

    /// A disk with this content.
    init(_ content: [UInt32]) {
        before = content
        bySector = [[Int32]](repeating: [], count: content.count)
    }

    var sectors: Int { before.count }

    /// Another moment.
    mutating func tick() -> Int {
        now += 1
        return now
    }

    /// An operation begins; its number.
    mutating func begin(_ sectors: Range<Int>, generation: UInt32, replaces: Bool, position: Int) -> Int {
        let event = DiskEvent(
            sectors: sectors, generation: generation, replaces: replaces, begin: tick(), beginPosition: position)
        for sector in sectors { bySector[sector].append(Int32(events.count)) }
        events.append(event)
        return events.count - 1
    }

    /// It has ended. A failed one may have done anything of what it was asked.
    mutating func end(_ number: Int, failed: Bool, position: Int) {
        events[number].end = tick()
        events[number].endPosition = position
        if failed { events[number].replaces = false }
    }

    /// A flush that began at a moment has ended.
    mutating func flushed(begin: Int, position: Int) {
        flushes.append(FlushEvent(begin: begin, endPosition: position))
    }

    /// The last moment whose ended operations survive: everything that ended before it does.
    func durableMoment(_ ending: Ending, position: Int) -> Int {
        switch ending {
        case .kill: .max
        case .powerCut:
            flushes.reduce(0) { $1.endPosition <= position ? max($0, $1.begin) : $0 }
        }
    }

    /// What a sector may have after an end at a position of the log.
    func allowed(_ sector: Int, _ ending: Ending, position: Int, durable: Int) -> Set<UInt32> {
        if bySector[sector].isEmpty { return [before[sector]] }
        // The latest beginning of an event that surely survived: what ended before it is gone.
        var horizon = 0
        for number in bySector[sector] {
            let event = events[Int(number)]
            if event.replaces, event.endPosition <= position, event.end < durable {
                horizon = max(horizon, event.begin)
            }
        }
        var values: Set<UInt32> = horizon == 0 ? [before[sector]] : []
        for number in bySector[sector] {
            let event = events[Int(number)]
            if event.beginPosition <= position, event.end >= horizon { values.insert(event.generation) }
        }
        return values
    }

    /// What a read may return that began and ended at these moments.
    func readable(_ sector: Int, begin: Int) -> Set<UInt32> {
        var horizon = 0
        for number in bySector[sector] {
            let event = events[Int(number)]
            if event.replaces, event.end < begin { horizon = max(horizon, event.begin) }
        }
        var values: Set<UInt32> = horizon == 0 ? [before[sector]] : []
        for number in bySector[sector] where events[Int(number)].end >= horizon {
            values.insert(events[Int(number)].generation)
        }
        return values
    }

    /// The first sectors that have what they must not have.
    func faults(of content: DiskContent, _ ending: Ending, position: Int) -> [String] {
        let durable = durableMoment(ending, position: position)
        var found: [String] = []
        for (sector, what) in content.foreign where sector < sectors {
            found.append("sector \(sector) has \(what)")
        }
        let foreign = Set(content.foreign.map(\.sector))
        for sector in 0..<sectors where found.count < 8 && !foreign.contains(sector) {
            // A disk that has not grown yet has nothing there.
            let generation = sector < content.generations.count ? content.generations[sector] : 0
            if bySector[sector].isEmpty && generation == before[sector] { continue }
            let values = allowed(sector, ending, position: position, durable: durable)
            if !values.contains(generation) {
                found.append(
                    "sector \(sector) has \(generation), allowed are \(values.sorted().map(String.init).joined(separator: " "))"
                )
            }
        }
        return found
    }
}
