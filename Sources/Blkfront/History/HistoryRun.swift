// SPDX-License-Identifier: BSD-2-Clause
// A load with arbitrarily overlapping requests. A DiskHistory decides whether what is read is possible.
import Blkif
import CLinux
import Support

/// The plan of a ``HistoryRun``. A sector has 512 bytes.
public struct HistoryPlan: Sendable {
    /// Number of sectors used, from the start of the disk; few, so that many requests overlap.
    public var sectors = 1024
    /// The most sectors of a request, or as many as the device takes. By default about a fourth of the requests are
    /// indirect where the backend takes such.
    public var mostSectors = 120
    /// Requests in flight, of all queues together.
    public var depth = 32
    /// Ends the run after this many requests, not counting the final verification.
    public var count = 1000
    /// Ends the run after this many nanoseconds, if that is earlier; nil for no time limit.
    public var duration: UInt64?
    /// True if the initial content is unknown; otherwise the sectors must hold zeroes.
    public var startsUnknown = false
    /// Percentage of requests that are reads.
    public var readPercent = 40
    /// A flush after this many writes; 0 for none.
    public var flushEvery = 12
    /// Every this many writes, the write is a barrier; 0 for none.
    public var barrierEvery = 40
    /// Every this many writes, a discard replaces the write; 0 for none.
    public var discardEvery = 30
    /// Reads all sectors back at the end.
    public var readsBack = true
    /// Counts intervals of at least this many nanoseconds without any answer; nil to count none.
    public var pauseThreshold: UInt64?
    /// The run fails after this many milliseconds without any answer.
    public var stallTimeout = 60_000
    /// Seed of the random numbers.
    public var seed: UInt64 = 1

    /// The defaults.
    public init() {}
}

/// Runs a ``HistoryPlan`` on all queues of a connected device, from the calling thread.
///
/// Nobody else may use the device during the run.
public struct HistoryRun {
    private enum Kind {
        case read(DiskHistory.Moment)
        case write(WriteNumber)
        case barrier(WriteNumber, DiskHistory.Moment)
        case flush(DiskHistory.Moment)
    }

    private struct Flying {
        var kind: Kind
        var sectors: Range<Int>
        var start = clinux_monotonic_ns()
    }

    /// What a run measures besides its history.
    private struct Measures: ~Copyable {
        var counters = LoadCounters()
        var pauses: [UInt64] = []
        var lastAnswer: UInt64 = 0
        var begin = clinux_monotonic_ns()
        /// When the load ended and the final verification began.
        var end: UInt64 = 0
    }

    private let device: FrontDevice
    private let plan: HistoryPlan
    private let mostSectors: Int
    private let unit: Int
    private var random: SplitMix64
    private var flying: [[Int: Flying]]
    private var inFlight = 0
    private var issued = 0
    private var writes = 0
    private var unread: Range<Int>
    /// The content of the sectors.
    public let content: SectorContent
    /// What is known of the sectors.
    public private(set) var history: DiskHistory
    /// Requests that the backend failed.
    public private(set) var errors = 0
    /// Sectors that were read as mixtures of overlapping writes.
    public private(set) var mixtures = 0

    /// A run of `plan`. Throws if it is impossible on this device.
    public init(_ device: FrontDevice, _ plan: HistoryPlan) throws(BlkfrontError) {
        guard device.state == .connected, !device.queues.isEmpty else {
            throw .invalid("the device is not connected")
        }
        guard device.info.byteCount / 512 >= UInt64(plan.sectors), !device.info.readOnly,
            plan.mostSectors >= 1, plan.sectors >= plan.mostSectors,
            device.info.sectorUnit == 512
        else {
            throw .invalid("a history needs a writable disk of \(plan.sectors) sectors of 512 bytes")
        }
        self.device = device
        self.plan = plan
        mostSectors = min(plan.mostSectors, device.bufferSize / 512)
        unit = device.info.sectorUnit
        random = SplitMix64(seed: plan.seed)
        content = SectorContent(run: plan.seed &* 0x2545_f491_4f6c_dd1d | 1)
        history = DiskHistory(sectors: plan.sectors, unknown: plan.startsUnknown)
        flying = Array(repeating: [:], count: device.queues.count)
        unread = 0..<0
    }

    /// Requests that were answered.
    public var answered: Int { issued - inFlight }

    /// Runs to the end. Throws a ``HistoryFault``, or the ``BlkfrontError`` that ended the device.
    public mutating func run() throws {
        var measures = Measures()
        try run(&measures)
    }

    /// Runs to the end and reports like ``LoadRun``. A verified block is a sector.
    public mutating func report() -> LoadReport {
        var measures = Measures()
        var report = LoadReport()
        do {
            try run(&measures)
        } catch let fault as HistoryFault {
            report.failure = .history(fault)
        } catch let error as BlkfrontError {
            report.failure = .device(error)
        } catch {
            report.failure = .device(.invalid("\(error)"))
        }
        report.verifiedBlocks = UInt64(history.comparisons)
        report.pauses = measures.pauses
        for box in device.queues {
            let (notifications, publications, indirect) = box.withQueue {
                ($0.notifications, $0.publications, $0.indirectRequests)
            }
            report.notifications += notifications
            report.publications += publications
            report.indirectRequests += indirect
        }
        report.connection = ConnectionReport(device)
        let end = measures.end > 0 ? measures.end : clinux_monotonic_ns()
        report.finish(measures.counters, nanoseconds: end &- measures.begin)
        return report
    }

    private mutating func run(_ measures: inout Measures) throws {
        try run(to: plan.count, &measures)
        measures.end = clinux_monotonic_ns()
        guard plan.readsBack else { return }
        unread = 0..<plan.sectors
        try run(to: .max, &measures)
    }

    private mutating func run(to count: Int, _ measures: inout Measures) throws {
        var last = clinux_monotonic_ns()
        let end = plan.duration.map { measures.begin.addingReportingOverflow($0) }
        var count = count
        while true {
            if let end, count != .max, !end.overflow, clinux_monotonic_ns() >= end.partialValue { count = issued }
            var any = false
            for (index, box) in device.queues.enumerated() {
                any =
                    try box.withQueue { queue in
                        let issues = try issue(&queue, index, to: count)
                        if issues { try queue.publish() }
                        return try reap(&queue, index, &measures) || issues
                    } || any
            }
            if any { last = clinux_monotonic_ns() }
            if inFlight == 0, isOver(count) { return }
            if any { continue }
            if clinux_monotonic_ns() - last > UInt64(plan.stallTimeout) * 1_000_000 {
                throw BlkfrontError.timeout("no answer to \(inFlight) requests in \(plan.stallTimeout) ms")
            }
            for event in try device.handleStoreEvents() {
                if case .backendCloses(let state) = event {
                    throw device.health.end(.closed("the backend went to state \(state)"))
                }
            }
            // With several queues, an event of another queue would not end the wait.
            let patience: Int32 = device.queues.count == 1 ? 50 : 1
            _ = try device.queues[0].withQueue { queue in try queue.wait(timeout: patience) }
        }
    }

    private func isOver(_ count: Int) -> Bool { count == .max ? unread.isEmpty : issued >= count }

    // MARK: Requests

    private mutating func issue(_ queue: inout FrontQueue, _ index: Int, to count: Int) throws -> Bool {
        var any = false
        // A few at a time, so that every queue gets some.
        for _ in 0..<8 {
            guard inFlight < plan.depth, !isOver(count), queue.freeCount > 0, let id = queue.allocate() else {
                return any
            }
            try submit(id, &queue, index, readingBack: count == .max)
            issued += 1
            inFlight += 1
            any = true
        }
        return any
    }

    private mutating func submit(
        _ id: Int, _ queue: inout FrontQueue, _ index: Int, readingBack: Bool
    ) throws(BlkfrontError) {
        if readingBack {
            let end = min(unread.lowerBound + mostSectors, unread.upperBound)
            let range = unread.lowerBound..<end
            unread = end..<unread.upperBound
            return try read(id, range, &queue, index)
        }
        if plan.flushEvery > 0, device.info.flush, writes >= plan.flushEvery {
            writes = 0
            flying[index][id] = Flying(kind: .flush(history.submitFlush()), sectors: 0..<0)
            return try queue.submit(id, .flush, sector: 0, byteCount: 0)
        }
        let length = 1 + Int(random.below(UInt64(mostSectors)))
        let first = Int(random.below(UInt64(plan.sectors - length + 1)))
        let range = first..<first + length
        if random.below(100) < UInt64(max(plan.readPercent, 0)) { return try read(id, range, &queue, index) }
        writes += 1
        if device.info.discard, isDue(plan.discardEvery) {
            flying[index][id] = Flying(kind: .write(history.submitDiscard(range)), sectors: range)
            return try queue.submitDiscard(id, sector: UInt64(first), sectorCount: UInt64(length))
        }
        // A barrier's own data are a write; it flushes everything that was acknowledged before.
        let isBarrier = length * 512 <= FrontQueue.directSize && device.info.barrier && isDue(plan.barrierEvery)
        let moment = isBarrier ? history.submitFlush() : 0
        let number = history.submitWrite(range)
        let bytes = unsafe queue.buffer(of: id)
        unsafe content.fill(
            UnsafeMutableRawBufferPointer(rebasing: bytes[0..<length * 512]), sector: first, number: number)
        flying[index][id] = Flying(kind: isBarrier ? .barrier(number, moment) : .write(number), sectors: range)
        try queue.submit(id, isBarrier ? .writeBarrier : .write, sector: UInt64(first), byteCount: length * 512)
    }

    private mutating func isDue(_ every: Int) -> Bool { every > 0 && random.below(UInt64(every)) == 0 }

    private mutating func read(
        _ id: Int, _ range: Range<Int>, _ queue: inout FrontQueue, _ index: Int
    ) throws(BlkfrontError) {
        flying[index][id] = Flying(kind: .read(history.submitRead()), sectors: range)
        try queue.submit(id, .read, sector: UInt64(range.lowerBound), byteCount: range.count * 512)
    }

    // MARK: Answers

    private mutating func reap(
        _ queue: inout FrontQueue, _ index: Int, _ measures: inout Measures
    ) throws -> Bool {
        var any = false
        var now: UInt64 = 0
        while let completion = try queue.nextCompletion() {
            if !any {
                now = clinux_monotonic_ns()
                notePause(until: now, &measures)
            }
            any = true
            inFlight -= 1
            let succeeded = completion.status == BlockStatus.okay.rawValue
            if !succeeded { errors += 1 }
            guard let request = flying[index].removeValue(forKey: completion.id) else { continue }
            if measures.end == 0 || !succeeded {
                measures.counters.count(
                    LoadKind(completion.operation), failed: !succeeded, nanoseconds: now &- request.start,
                    bytes: UInt64(request.sectors.count) * 512)
            }
            switch request.kind {
            case .write(let number): history.acknowledgeWrite(number, succeeded: succeeded)
            case .flush(let moment): if succeeded { history.acknowledgeFlush(moment) }
            case .barrier(let number, let moment):
                history.acknowledgeBarrier(number, moment, succeeded: succeeded)
            case .read(let moment):
                if succeeded {
                    let bytes = unsafe UnsafeRawBufferPointer(queue.buffer(of: completion.id))
                    for (place, sector) in request.sectors.enumerated() {
                        unsafe try check(bytes, at: place, sector, read: moment)
                    }
                }
                history.endRead(moment)
            }
            queue.release(completion.id)
        }
        return any
    }

    private mutating func check(
        _ bytes: UnsafeRawBufferPointer, at place: Int, _ sector: Int, read moment: DiskHistory.Moment
    ) throws(HistoryFault) {
        let found = unsafe content.find(in: bytes, at: place, sector: sector)
        if case .mangled = found {
            let numbers = history.mixture(sector, read: moment)
            if unsafe content.isMixture(of: numbers, in: bytes, at: place, sector: sector) {
                mixtures += 1
                return
            }
        }
        try history.check(sector, found, read: moment)
    }

    private func notePause(until now: UInt64, _ measures: inout Measures) {
        guard let threshold = plan.pauseThreshold else { return }
        if measures.lastAnswer > 0, now &- measures.lastAnswer >= threshold {
            measures.pauses.append(now &- measures.lastAnswer)
        }
        measures.lastAnswer = now
    }

    // MARK: From outside

    /// Compares the image itself, given from its first byte, after the device was closed.
    public mutating func checkImage(_ image: [UInt8]) throws(HistoryFault) {
        for (sector, found) in findings(image).enumerated() { try history.checkAtRest(sector, found) }
    }

    /// Compares what is left of the image after everything that was not made durable is lost.
    public func checkImageAfterPowerLoss(_ image: [UInt8]) throws(HistoryFault) {
        for (sector, found) in findings(image).enumerated() { try history.checkAfterPowerLoss(sector, found) }
    }

    private func findings(_ image: [UInt8]) -> [SectorFinding] {
        unsafe image.withUnsafeBytes { bytes in
            (0..<plan.sectors).map { sector in
                sector * 512 + 512 <= bytes.count
                    ? unsafe content.find(in: bytes, at: sector, sector: sector)
                    : .mangled("the image ends before it")
            }
        }
    }
}
