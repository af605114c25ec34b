// SPDX-License-Identifier: BSD-2-Clause
// Buffers of several runs, where no run of free pages is long enough: the pool, the plane, and the way through the engine.
import Blkif
import Glibc
import Memory
import PluginAPI
import Testing
import Xen

@testable import BlockQueue

@Suite("Scattered buffers")
struct ScatteredBufferTests {
    /// A pool of which only the runs `free`, first page and pages, are free.
    private func pool(pageCount: Int, free: [(Int, Int)]) -> BufferPool {
        var pool = BufferPool(pageCount: pageCount)
        for page in 0..<pageCount { #expect(pool.allocate(1) == page) }
        for (page, pages) in free { pool.release(page, pages) }
        return pool
    }

    @Test("Few long runs are taken before many short ones, none twice, and all are given back")
    func longestFirst() {
        var pool = pool(pageCount: 200, free: [(3, 1), (10, 2), (60, 9), (130, 4)])
        #expect(pool.pagesInUse == 184)
        var runs: [BufferRun] = []
        #expect(pool.allocateRuns(14, most: 8) { runs.append($0) })
        #expect(runs.reduce(0) { $0 + Int($1.pages) } == 14)
        #expect(pool.pagesInUse == 198)
        #expect(runs.count < 8)
        var pages: Set<Int> = []
        for run in runs { pages.formUnion(Int(run.page)..<Int(run.page + run.pages)) }
        #expect(pages.count == 14)
        #expect(pages.isSubset(of: Set([3, 10, 11] + Array(60..<69) + Array(130..<134))))
        for run in runs { pool.release(Int(run.page), Int(run.pages)) }
        #expect(pool.pagesInUse == 184)
        #expect(pool.allocate(9) == 60)
    }

    @Test("What would take too many runs, or is not there, takes nothing")
    func tooManyRuns() {
        let holes = stride(from: 1, to: 40, by: 2).map { ($0, 1) }
        for (count, most) in [(9, 8), (4, 3), (2, 1), (21, 8)] {
            var pool = pool(pageCount: 40, free: holes)
            #expect(!pool.allocateRuns(count, most: most) { _ in Issue.record("a run of nothing") })
            #expect(pool.pagesInUse == 20)
            var taken: [Int32] = []
            #expect(pool.allocateRuns(most, most: most) { taken.append($0.page) })
            #expect(taken == (0..<most).map { Int32(2 * $0 + 1) })
        }
    }

    // MARK: Inside a buffer

    /// A plane where list 0 has six pages in runs that are not adjacent.
    private func plane() throws -> DataPlane {
        let memory = try #require(HostMemory(byteCount: 32 * 4096))
        var plane = DataPlane(domain: 0, memory: memory, listCount: 33, copyCount: 16)
        for list in Int32(1)...32 { #expect(plane.allocate(1, head: 0, for: list)) }
        for list: Int32 in [2, 5, 6, 9, 14, 15] { plane.release(list) }
        #expect(plane.allocate(6, head: 0, for: 0))
        #expect(plane.runs(of: 0).count == 4)
        #expect(plane.start(of: 0) == nil)
        return plane
    }

    /// Where a sector of list 0's buffer is, reckoned from its runs alone.
    private func place(_ sector: Int, _ plane: borrowing DataPlane) -> Int {
        var left = sector * 512
        for run in plane.runs(of: 0) {
            if left < Int(run.pages) * 4096 { return Int(run.page) * 4096 + left }
            left -= Int(run.pages) * 4096
        }
        return -1
    }

    @Test("Data moves over the ends of runs in both directions, also onto itself")
    func move() throws {
        var plane = try plane()
        let sectors = 6 * 8
        for (source, target, count) in [
            (8, 0, 40), (0, 8, 40), (5, 4, 43), (4, 5, 43), (0, 40, 8), (40, 0, 8), (7, 9, 2), (13, 3, 20), (9, 9, 9),
            (3, 20, 0), (16, 1, 32), (1, 16, 32),
        ] {
            var expected = (0..<sectors).map { UInt8($0 + 1) }
            for sector in 0..<sectors {
                plane.memory.store([UInt8](repeating: UInt8(sector + 1), count: 512), at: place(sector, plane))
            }
            let others = plane.memory.bytes(at: 20 * 4096, count: 4096)
            plane.move(from: source * 512, to: target * 512, count: count * 512, in: 0)
            let moved = Array(expected[source..<(source + count)])
            expected.replaceSubrange(target..<(target + count), with: moved)
            for sector in 0..<sectors {
                let bytes = plane.memory.bytes(at: place(sector, plane), count: 512)
                #expect(
                    bytes == [UInt8](repeating: expected[sector], count: 512),
                    "\(source) to \(target), \(count): sector \(sector)")
            }
            #expect(plane.memory.bytes(at: 20 * 4096, count: 4096) == others)
        }
    }

    @Test("As much as the vectors hold, from any place", arguments: [1, 2, 3, 8])
    func reach(_ vectors: Int) throws {
        var plane = try plane()
        let runs = plane.runs(of: 0).map { Int($0.pages) * 4096 }
        for offset in stride(from: 0, to: 6 * 4096, by: 512) {
            // Bytes to the end of the run, then whole runs.
            var rooms: [Int] = []
            var start = 0
            for run in runs {
                if start + run > offset { rooms.append(start + run - max(start, offset)) }
                start += run
            }
            let most = UInt64(rooms.prefix(vectors).reduce(0, +))
            let all = UInt64(6 * 4096 - offset)
            #expect(plane.reach(all, from: offset, in: 0, mostVectors: vectors) == most)
            #expect(plane.reach(512, from: offset, in: 0, mostVectors: vectors) == 512)
        }
    }

    // MARK: Through the engine

    /// A rig with 32 pages of memory where every second page is in use by a read that the plugin keeps.
    private func fragmented(_ vectors: Int, block: UInt32 = 512) throws -> EngineRig {
        let rig = try EngineRig {
            $0.memoryBytes = QueueEngine.smallestMemory
            $0.info.max_iov = UInt32(vectors)
            $0.info.logical_block = block
        }
        for number in 0..<32 { rig.read(number * 96, 8) }
        rig.settle()
        #expect(rig.plugin.held.count == 32)
        for position in 0..<16 { rig.plugin.complete(position) }
        rig.settle()
        #expect(rig.plugin.held.count == 16)
        #expect(rig.use.pages == 16)
        return rig
    }

    /// The plugin's requests behind the reads that make the holes.
    private func submitted(_ rig: EngineRig) -> [HeldRequest] { Array(rig.plugin.log.dropFirst(32)) }

    @Test("Every plugin request has at most max_iov vectors, and the data are right", arguments: [1, 2, 8])
    func engine(_ vectors: Int) throws {
        for operation in [BlockOperation.write, .writeBarrier, .read] {
            let rig = try fragmented(vectors)
            // 64 sectors, unaligned to pages of the guest: eight pages, none beside another.
            let sent = rig.send(operation, 3300, rig.segments(64, skip: 3))
            if operation == .writeBarrier {
                // It waits for the reads, and has all of the memory then.
                rig.run()
            } else {
                rig.settle()
                #expect(rig.use.pages == 24)
                rig.run()
                let requests = submitted(rig)
                #expect(requests.map(\.vectors.count).max() == vectors)
                #expect(requests.count == 8 / vectors)
                #expect(requests.reduce(0) { $0 + Int($1.length) } == 64 * 512)
                for request in requests {
                    #expect(request.vectors.reduce(0) { $0 + $1.count } == Int(request.length))
                }
            }
            for request in rig.plugin.log { #expect(request.vectors.count <= vectors) }
            #expect(rig.status(sent) == 0)
            if operation == .read { #expect(rig.hasDiskData(sent)) } else { #expect(rig.isOnDisk(sent)) }
            rig.expectIdle()
        }
    }

    @Test("Of a scattered list that fails, the right request fails", arguments: [1, 2, 8])
    func split(_ vectors: Int) throws {
        for bad in [3300, 3330, 3363] {
            for operation in [BlockOperation.write, .read] {
                let rig = try fragmented(vectors)
                // Two requests that become one list, and do not end where runs end.
                let first = rig.send(operation, 3300, rig.segments(27))
                let second = rig.send(operation, 3327, rig.segments(37))
                rig.disk.badSectors = [bad]
                rig.settle()
                #expect(rig.counter(.requests_merged) == 1)
                rig.run()
                #expect(rig.counter(.reqlists_split) == 1)
                for request in rig.plugin.log { #expect(request.vectors.count <= vectors) }
                let (good, failed) = bad < 3327 ? (second, first) : (first, second)
                #expect(rig.status(good) == 0)
                #expect(rig.status(failed) == BlockStatus.error.rawValue)
                if operation == .read { #expect(rig.hasDiskData(good)) } else { #expect(rig.isOnDisk(good)) }
                rig.expectIdle()
            }
        }
    }

    @Test("A scattered copy that the grant table refuses fails its request alone")
    func refusedCopy() throws {
        let rig = try fragmented(8)
        let good = rig.send(.write, 3300, rig.segments(27))
        let bad = rig.send(.write, 3327, rig.segments(37))
        rig.guest.revoked.insert(bad.segments[1].reference)
        rig.run()
        #expect(rig.status(good) == 0)
        #expect(rig.status(bad) == BlockStatus.error.rawValue)
        #expect(rig.isOnDisk(good))
        #expect(rig.isUntouched(3327..<3364))
        rig.expectIdle()
    }

    @Test("More runs than a buffer can have wait for memory")
    func shortage() throws {
        let rig = try fragmented(8)
        let large = rig.write(3300, 72)
        rig.settle()
        #expect(rig.counter(.kva_shortages) >= 1)
        #expect(rig.use.pages == 16)
        rig.run()
        #expect(rig.status(large) == 0)
        #expect(rig.isOnDisk(large))
        rig.expectIdle()
    }
}
