// SPDX-License-Identifier: BSD-2-Clause
// The disk of the test backend.
import Blkif
import Memory
import Synchronization

/// A disk in memory that several queues share, and what a test may ask of it.
final class MemoryDisk: Sendable {
    struct Counts: Sendable, Equatable {
        var reads = 0
        var writes = 0
        var barriers = 0
        var flushes = 0
        var discards = 0
        var refused = 0
        var maxSegments = 0
        var firstSectors: Set<UInt8> = []
    }

    private struct State: Sendable {
        var bytes: [UInt8]
        var counts = Counts()
    }

    private let state: Mutex<State>
    let sectorCount: UInt64

    init(sectors: UInt64) {
        sectorCount = sectors
        state = Mutex(State(bytes: [UInt8](repeating: 0, count: Int(sectors) * 512)))
    }

    var counts: Counts { state.withLock { $0.counts } }

    func bytes(at offset: Int, count: Int) -> [UInt8] {
        state.withLock { Array($0.bytes[offset..<offset + count]) }
    }

    func store(_ bytes: [UInt8], at offset: Int) {
        state.withLock { $0.bytes.replaceSubrange(offset..<offset + bytes.count, with: bytes) }
    }

    func count(_ body: (inout Counts) -> Void) {
        state.withLock { body(&$0.counts) }
    }

    /// Moves the bytes of a request between the disk and the bounce memory.
    func transfer(_ request: BlockRequest, _ memory: HostMemory) {
        let count = Int(request.sectorCount) * 512
        let offset = Int(request.firstSector) * 512
        if request.operation == .read {
            memory.store(bytes(at: offset, count: count), at: 0)
        } else {
            store(memory.bytes(at: 0, count: count), at: offset)
        }
    }
}
