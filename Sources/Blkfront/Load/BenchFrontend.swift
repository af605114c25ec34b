// SPDX-License-Identifier: BSD-2-Clause
// The frontend for benchmarks: a fixed number of 4 KiB reads in flight, with as little overhead as possible.
public import Blkif
import Memory

/// Keeps `depth` reads of one page each in flight on a ring, as fast as the backend answers.
///
/// The caller grants the pages once, so that the same loop measures any backend on the same ring: ours, or a bare echo.
/// The id and the status of each response are checked; a wrong one ends the run. Use from one thread.
public struct BenchFrontend: ~Copyable {
    /// The counters of a run.
    public struct Result: Sendable, Equatable {
        /// Responses taken.
        public var responses: UInt64 = 0
        /// Responses whose status was not okay.
        public var errors: UInt64 = 0
        /// Events sent, each a call of `notify`.
        public var notifications: UInt64 = 0
        /// Times that no response was there, each a call of `wait`.
        public var waits: UInt64 = 0
        /// Publications of the ring.
        public var publications: UInt64 = 0

        /// Nothing counted.
        public init() {}
    }

    private var ring: FrontRing
    private let depth: Int
    private let pageCount: UInt64
    private var slots: FixedArray<SlotBytes>
    private var pending: FixedArray<Bool>
    private var position: UInt64 = 0
    private let stride: UInt64
    private let sectorOffset: Int

    /// A frontend on an empty ring. `references` are grants of `depth` pages that the backend may write; `depth` is
    /// at most the ring's number of slots. The disk has `pages` pages of 4 KiB, which are read one after the other,
    /// or, if `scattered`, far from each other. Of each page the first `sectors` (1 to 8) are read.
    public init(
        ring: consuming FrontRing, references: [UInt32], depth: Int, pages: UInt64, scattered: Bool = false,
        sectors: UInt8 = 8
    ) {
        precondition(depth > 0 && depth <= ring.entryCount && references.count >= depth && pages > 0)
        precondition((1...8).contains(sectors))
        let encoder = RequestEncoder(layout: ring.layout)
        sectorOffset = ring.layout.sectorOffset
        self.ring = ring
        self.depth = depth
        pageCount = pages
        stride = scattered ? 7919 : 1
        slots = FixedArray(zeroed: depth)
        pending = FixedArray(zeroed: depth)
        for id in 0..<depth {
            slots[id] = encoder.slot(
                operation: BlockOperation.read.rawValue, id: UInt64(id), firstSector: 0,
                segments: [BlockSegment(reference: references[id], firstSector: 0, lastSector: sectors - 1)])
        }
    }

    /// Reads until `responses` answers have arrived, and leaves nothing in flight.
    ///
    /// `notify` sends the event. `wait` returns when an event has arrived, or earlier. Throws the fault of a backend
    /// that violates the ring's rules.
    public mutating func run(
        responses wanted: UInt64, spins: Int = 0, notify: () -> Void, wait: () -> Void
    ) throws(FrontFault) -> Result {
        var result = Result()
        var issued: UInt64 = 0
        for id in 0..<min(depth, Int(clamping: wanted)) {
            put(id)
            issued += 1
        }
        publish(&result, notify)
        while result.responses < wanted {
            var count = try available()
            if count == 0 {
                var spin = 0
                while count == 0 && spin < spins {
                    count = try available()
                    spin += 1
                }
                if count == 0 {
                    if !ring.finalCheck() {
                        result.waits += 1
                        wait()
                    }
                    continue
                }
            }
            for _ in 0..<count {
                let id = try takeOne(&result)
                if issued < wanted {
                    put(id)
                    issued += 1
                }
            }
            publish(&result, notify)
        }
        return result
    }

    @inline(__always)
    private mutating func put(_ id: Int) {
        slots[id].store(position &* 8, at: sectorOffset)
        position += stride
        if position >= pageCount { position %= pageCount }
        pending[id] = true
        ring.put(slots[id])
    }

    @inline(__always)
    private mutating func publish(_ result: inout Result, _ notify: () -> Void) {
        result.publications += 1
        if ring.publish() {
            result.notifications += 1
            notify()
        }
    }

    @inline(__always)
    private func available() throws(FrontFault) -> Int {
        do {
            return try ring.available()
        } catch {
            throw .responseOverflow(
                producer: error.requestProducer, consumer: ring.responseConsumer, requests: ring.requestProducer)
        }
    }

    @inline(__always)
    private mutating func takeOne(_ result: inout Result) throws(FrontFault) -> Int {
        let response = ring.take()
        guard response.id < UInt64(depth), pending[Int(truncatingIfNeeded: response.id)] else {
            throw .noPendingRequest(id: response.id)
        }
        let id = Int(truncatingIfNeeded: response.id)
        pending[id] = false
        result.responses += 1
        if response.status != BlockStatus.okay.rawValue { result.errors += 1 }
        return id
    }
}
