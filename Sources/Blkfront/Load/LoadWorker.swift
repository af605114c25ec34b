// SPDX-License-Identifier: BSD-2-Clause
// One queue's share of a load run. Nothing is allocated between the first request and the last.
import Blkif
import CLinux
import Memory
import Support

/// What the requests of an operation have in common.
struct LoadOperation: BitwiseCopyable, Sendable {
    var kind: LoadKind
    /// First block, counted from the start of the worker's region, and the number of blocks.
    var block: UInt64
    var blockCount: UInt64
    /// Bytes that are on the ring or answered.
    var submitted: UInt64
    /// Requests on the ring.
    var pending: UInt32
    var failed: Bool
    var start: UInt64
}

/// A worker's share: it is number `index` of `count`, and its blocks start at byte `base` of the disk.
struct LoadShare: Sendable {
    let index: Int
    let count: Int
    let base: UInt64
    let blocks: UInt64
}

/// Runs operations on one queue over one region of the disk that no other worker touches.
struct LoadWorker: ~Copyable, Sendable {
    private let plan: LoadPlan
    private let unit: UInt64
    private let blockSize: UInt64
    /// First byte of the region and its number of blocks.
    private let base: UInt64
    private let blocks: UInt64
    private let pattern: VerifyPattern
    private let flushes: Bool
    private let barriers: Bool
    private let discards: Bool
    /// The most bytes of a read or a write.
    private let bufferSize: Int
    private var random: SplitMix64
    private var operations: FixedArray<LoadOperation>
    private var freeOperations: FixedArray<UInt32>
    private var freeOperationCount: Int
    /// For each slot of the queue: its operation, and the start of its part.
    private var owners: FixedArray<UInt32>
    private var positions: FixedArray<UInt64>
    private var lengths: FixedArray<UInt32>
    private var blockMap: BlockMap
    /// The operation whose requests are not all on the ring yet.
    private var half: Int?
    /// The next operation of a sequence, if it overlaps with one in flight and must wait.
    private var chosen: LoadOperation?
    private var cursor: UInt64 = 0
    private var issuedBlocks: UInt64 = 0
    private var issuedCount: UInt64 = 0
    private var writes: UInt64 = 0
    private var mode = Mode.load
    private var limitCount: UInt64?
    private var limitBlocks: UInt64?
    private(set) var counters = LoadCounters()
    /// When the last response arrived, 0 before the first; then the pauses that were long enough, while there is room.
    private var lastResponse: UInt64 = 0
    private var pauses: FixedArray<UInt64>
    private var pauseCount = 0
    private(set) var verifiedBlocks: UInt64 = 0

    enum Mode: Sendable { case fill, load, readBack }

    /// A worker for a queue with `slotCount` slots.
    init(plan: LoadPlan, share: LoadShare, slotCount: Int, bufferSize: Int, info: BackendInfo) {
        let (index, count) = (share.index, share.count)
        self.plan = plan
        self.bufferSize = bufferSize
        base = share.base
        blocks = share.blocks
        unit = UInt64(info.sectorUnit)
        blockSize = UInt64(plan.blockSize)
        flushes = plan.flushEvery > 0 && info.flush
        barriers = plan.barrierEvery > 0 && info.barrier
        discards = plan.discardEvery > 0 && info.discard
        pattern = VerifyPattern(run: plan.seed &* 0x2545_f491_4f6c_dd1d ^ UInt64(index))
        random = SplitMix64(seed: plan.seed ^ UInt64(index) << 40)
        operations = FixedArray(zeroed: plan.depth)
        freeOperations = FixedArray(zeroed: plan.depth)
        for number in 0..<plan.depth { freeOperations[number] = UInt32(number) }
        freeOperationCount = plan.depth
        owners = FixedArray(zeroed: slotCount)
        positions = FixedArray(zeroed: slotCount)
        lengths = FixedArray(zeroed: slotCount)
        pauses = FixedArray(zeroed: plan.pauseThreshold == nil ? 0 : 65536)
        blockMap = BlockMap(blocks: plan.verify ? Int(clamping: blocks) : 0)
        limitCount = plan.count.map { $0 / UInt64(count) + (UInt64(index) < $0 % UInt64(count) ? 1 : 0) }
    }

    // MARK: The run

    /// The whole run: filling the region if reads are to be verified, the load, and the final verification.
    mutating func run(_ queue: inout FrontQueue, stop: LoadStop) throws(LoadFailure) {
        fillBuffers(&queue)
        let count = limitCount
        if plan.verify && !plan.pattern.writes {
            limitCount = nil
            try loop(.fill, onePass: true, &queue, stop: stop)
            counters = LoadCounters()
        }
        limitCount = count
        stop.begin()
        try loop(.load, onePass: plan.count == nil && plan.duration == nil, &queue, stop: stop)
        stop.loadEnds()
        if plan.verify {
            limitCount = nil
            try loop(.readBack, onePass: true, &queue, stop: stop)
        }
    }

    private mutating func loop(
        _ mode: Mode, onePass: Bool, _ queue: inout FrontQueue, stop: LoadStop
    ) throws(LoadFailure) {
        self.mode = mode
        chosen = nil
        cursor = 0
        issuedBlocks = 0
        issuedCount = 0
        limitBlocks = onePass ? blocks : nil
        while true {
            let now = clinux_monotonic_ns()
            if stop.isSet { return }
            let ended = mode == .load && stop.isOver(now)
            do throws(BlkfrontError) {
                if try issue(&queue, now: now, ended: ended) { try queue.publish() }
            } catch {
                throw .device(error)
            }
            if freeOperationCount == plan.depth { return }
            if try !reap(&queue) { try waitForEvent(&queue, stop: stop) }
        }
    }

    /// Sleeps until an event arrives. Responses without an event are ignored, as a guest would.
    private func waitForEvent(_ queue: inout FrontQueue, stop: LoadStop) throws(LoadFailure) {
        for _ in 0..<plan.spins where queue.hasResponses { return }
        if queue.finalCheck() { return }
        let begin = clinux_monotonic_ns()
        do throws(BlkfrontError) {
            while try !queue.waitForEvent(timeout: 100) {
                if stop.isSet { return }
                if clinux_monotonic_ns() - begin > UInt64(plan.stallTimeout) * 1_000_000 {
                    throw .timeout(
                        queue.hasResponses
                            ? "responses but no event in \(plan.stallTimeout) ms"
                            : "no answer to \(queue.inFlight) requests in \(plan.stallTimeout) ms")
                }
            }
        } catch {
            throw .device(error)
        }
    }

    // MARK: Issuing

    /// Puts operations on the ring while there is room; true if there was at least one.
    private mutating func issue(
        _ queue: inout FrontQueue, now: UInt64, ended: Bool
    ) throws(BlkfrontError) -> Bool {
        var any = false
        while true {
            if half == nil {
                guard freeOperationCount > 0, queue.freeCount > 0, !ended, let next = choose() else { return any }
                freeOperationCount -= 1
                let number = Int(freeOperations[freeOperationCount])
                operations[number] = next
                operations[number].start = now
                half = number
            }
            guard let number = half else { return any }
            while operations[number].submitted < byteCount(number) || operations[number].submitted == 0 {
                guard let id = queue.allocate() else { return any }
                try put(number, id, &queue)
                any = true
                if byteCount(number) == 0 { break }
            }
            half = nil
        }
    }

    private func byteCount(_ number: Int) -> UInt64 {
        switch operations[number].kind {
        case .read, .write, .barrier: operations[number].blockCount * blockSize
        case .flush, .discard: 0
        }
    }

    @inline(__always)
    private mutating func put(_ number: Int, _ id: Int, _ queue: inout FrontQueue) throws(BlkfrontError) {
        let kind = operations[number].kind
        let begin = base + operations[number].block * blockSize
        owners[id] = UInt32(number)
        operations[number].pending += 1
        switch kind {
        case .flush:
            try queue.submit(id, .flush, sector: 0, byteCount: 0)
        case .discard:
            try queue.submitDiscard(
                id, sector: begin / unit, sectorCount: operations[number].blockCount * blockSize / unit)
        case .read, .write, .barrier:
            let position = operations[number].submitted
            let length = min(partSize(kind), byteCount(number) - position)
            positions[id] = position
            lengths[id] = UInt32(truncatingIfNeeded: length)
            if plan.verify && kind != .read {
                fill(id, begin + position, length, &queue)
            }
            try queue.submit(
                id, kind.operation, sector: (begin + position) / unit, byteCount: Int(length), skew: plan.skew)
            operations[number].submitted += length
        }
    }

    /// The largest request in bytes: whole blocks if at least one fits, so that a part can be verified separately.
    private func partSize(_ kind: LoadKind) -> UInt64 {
        let most = kind == .barrier ? FrontQueue.directSize : bufferSize
        let room = UInt64(most - (plan.skew == 0 ? 0 : 4096))
        return blockSize <= room ? room / blockSize * blockSize : room
    }

    // MARK: Choosing

    /// The next operation; nil if there is none now, at the end of the run or because all candidates overlap with one
    /// in flight.
    private mutating func choose() -> LoadOperation? {
        if let waiting = chosen {
            guard reserve(waiting) else { return nil }
            chosen = nil
            return waiting
        }
        if let limitCount, issuedCount >= limitCount { return nil }
        if let limitBlocks, issuedBlocks >= limitBlocks { return nil }
        if mode == .load, let extra = chooseExtra() { return extra }
        let random = mode == .load && plan.pattern.isRandom
        for _ in 0..<16 {
            let next = candidate(random: random)
            if reserve(next) {
                accept(next)
                return next
            }
            if !random {
                accept(next)
                chosen = next
                return nil
            }
        }
        return nil
    }

    /// A flush or a discard that is due.
    private mutating func chooseExtra() -> LoadOperation? {
        if flushes && writes >= UInt64(plan.flushEvery) {
            writes = 0
            return LoadOperation(
                kind: .flush, block: 0, blockCount: 0, submitted: 0, pending: 0, failed: false, start: 0)
        }
        if discards && issuedCount % UInt64(plan.discardEvery + 1) == 0 && issuedCount > 0 {
            var discard = candidate(random: true)
            discard.kind = .discard
            if reserve(discard) {
                issuedCount += 1
                return discard
            }
        }
        return nil
    }

    private mutating func candidate(random isRandom: Bool) -> LoadOperation {
        let most = UInt64(plan.maxBlockSize) / blockSize
        var count = most == 1 || mode != .load ? most : 1 + random.below(most)
        count = min(count, blocks)
        var block = cursor
        if isRandom {
            block = random.below(blocks - count + 1)
        } else {
            count = min(count, blocks - cursor)
        }
        var kind = LoadKind.read
        switch mode {
        case .fill: kind = .write
        case .readBack: kind = .read
        case .load:
            switch plan.pattern {
            case .read, .randread: kind = .read
            case .write, .randwrite: kind = .write
            case .randrw: kind = random.below(100) < UInt64(plan.readPercent) ? .read : .write
            }
        }
        if barriers && mode == .load && kind == .write && random.below(UInt64(plan.barrierEvery)) == 0 {
            kind = .barrier
        }
        return LoadOperation(
            kind: kind, block: block, blockCount: count, submitted: 0, pending: 0, failed: false, start: 0)
    }

    private mutating func accept(_ operation: LoadOperation) {
        issuedBlocks += operation.blockCount
        issuedCount += 1
        cursor += operation.blockCount
        if cursor >= blocks { cursor = 0 }
        if operation.kind != .read { writes += 1 }
    }

    /// Marks the blocks as in flight; false if the outcome would then depend on the order of two requests.
    private mutating func reserve(_ operation: LoadOperation) -> Bool {
        plan.verify
            ? blockMap.reserve(
                Int(operation.block), Int(operation.blockCount), writing: operation.kind != .read) : true
    }

    // MARK: Responses

    /// Takes all responses; true if there was one.
    private mutating func reap(_ queue: inout FrontQueue) throws(LoadFailure) -> Bool {
        var any = false
        var now: UInt64 = 0
        do {
            while let completion = try queue.nextCompletion() {
                if !any {
                    now = clinux_monotonic_ns()
                    notePause(until: now)
                }
                any = true
                try take(completion, &queue, now: now)
            }
        } catch let error as BlkfrontError {
            throw .device(error)
        } catch let error as VerifyFault {
            throw .verify(error)
        } catch {
            throw .device(.invalid("\(error)"))
        }
        return any
    }

    private mutating func notePause(until now: UInt64) {
        guard let threshold = plan.pauseThreshold else { return }
        if lastResponse > 0, now &- lastResponse >= threshold, pauseCount < pauses.count {
            pauses[pauseCount] = now &- lastResponse
            pauseCount += 1
        }
        lastResponse = now
    }

    /// The pauses of the run, in ns.
    var longPauses: [UInt64] { (0..<pauseCount).map { pauses[$0] } }

    @inline(__always)
    private mutating func take(
        _ completion: FrontCompletion, _ queue: inout FrontQueue, now: UInt64
    ) throws {
        let id = completion.id
        let number = Int(owners[id])
        if completion.status != BlockStatus.okay.rawValue {
            operations[number].failed = true
        } else if plan.verify && completion.operation == .read {
            try check(id, number, &queue)
        }
        queue.release(id)
        operations[number].pending -= 1
        if operations[number].pending > 0 || half == number { return }
        let kind = operations[number].kind
        if plan.verify && kind != .flush {
            blockMap.release(
                Int(operations[number].block), Int(operations[number].blockCount), writing: kind != .read,
                known: !operations[number].failed && kind != .discard)
        }
        if mode != .readBack || operations[number].failed { count(number, kind, now) }
        freeOperations[freeOperationCount] = UInt32(number)
        freeOperationCount += 1
    }

    @inline(__always)
    private mutating func count(_ number: Int, _ kind: LoadKind, _ now: UInt64) {
        counters.count(
            kind, failed: operations[number].failed, nanoseconds: now &- operations[number].start,
            bytes: operations[number].blockCount * blockSize)
    }

    // MARK: Contents

    /// Fills every slot with random bytes, once, so that a disk that compresses or drops zeroes has no advantage.
    private mutating func fillBuffers(_ queue: inout FrontQueue) {
        guard plan.pattern.writes else { return }
        for id in 0..<queue.slotCount {
            let buffer = unsafe queue.buffer(of: id)
            for position in stride(from: 0, to: buffer.count, by: 8) {
                unsafe buffer.storeBytes(of: random.next(), toByteOffset: position, as: UInt64.self)
            }
        }
    }

    /// Writes the blocks of a part into the slot. A block is never larger than a part.
    private func fill(_ id: Int, _ offset: UInt64, _ length: UInt64, _ queue: inout FrontQueue) {
        let buffer = unsafe queue.buffer(of: id)
        for position in stride(from: 0, to: length, by: UInt64.Stride(blockSize)) {
            let place = Int(position) + plan.skew * 512
            let block = (offset + position - base) / blockSize
            unsafe pattern.fill(
                UnsafeMutableRawBufferPointer(rebasing: buffer[place..<place + Int(blockSize)]),
                offset: offset + position, generation: UInt64(blockMap.generation(Int(block))))
        }
    }

    private mutating func check(_ id: Int, _ number: Int, _ queue: inout FrontQueue) throws(VerifyFault) {
        let buffer = unsafe queue.buffer(of: id)
        let begin = operations[number].block * blockSize + positions[id]
        for position in stride(from: 0, to: UInt64(lengths[id]), by: UInt64.Stride(blockSize)) {
            let block = Int((begin + position) / blockSize)
            guard blockMap.isKnown(block) else { continue }
            let place = Int(position) + plan.skew * 512
            unsafe try pattern.check(
                UnsafeMutableRawBufferPointer(rebasing: buffer[place..<place + Int(blockSize)]),
                offset: base + begin + position, generation: UInt64(blockMap.generation(block)))
            verifiedBlocks += 1
        }
    }
}
