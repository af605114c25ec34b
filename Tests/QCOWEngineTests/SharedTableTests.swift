// SPDX-License-Identifier: BSD-2-Clause
// L1 tables that are stranger than a header's check can see: entries behind the end of the disk, tables with two names.
import Foundation
import ImageCore
import ImageWriting
import QCOW2
import Synchronization
import Testing

@testable import QCOWEngine

@Suite(.serialized) struct SharedTableTests {
    /// What an engine said.
    private final class Said: Sendable {
        private let list = Mutex<[EngineEvent]>([])
        var events: [EngineEvent] { list.withLock { $0 } }
        func add(_ event: EngineEvent) { list.withLock { $0.append(event) } }
    }

    /// A disk of 4 MiB with data in both of its tables.
    private func image(_ folder: TestFolder) throws -> ByteImage {
        try Shell.run(
            """
            cd \(folder.path) && qemu-img create -q -f qcow2 -o cluster_size=4096 image 4M
            qemu-io -f qcow2 -c 'write -P 1 0 64k' -c 'write -P 2 3M 64k' image
            """)
        return try ByteImage(contentsOf: folder.file("image"))
    }

    private func open(_ storage: SimulatedStorage, _ said: Said) throws -> ImageEngine {
        var options = EngineOptions()
        options.followsUncleanEnd = true
        let engine = try ImageEngine(storage, below: nil, options: options)
        engine.observe { said.add($0) }
        return engine
    }

    /// An entry of the L1 table behind the end of the disk names the table of another one: damage, which stops writes and not reads.
    @Test func aTableWithTwoNamesIsDamage() throws {
        let folder = try TestFolder()
        let image = try image(folder)
        let l1 = Int(image.u64(40))
        image.put64(2 << 20, at: 24)
        image.put64(image.u64(l1), at: l1 + 8)
        let said = Said()
        let storage = SimulatedStorage(image)
        let engine = try open(storage, said)
        for _ in 0..<1000 where engine.failure == 0 && engine.needsCommit { engine.commit() }
        guard case .damaged(let words)? = said.events.first else {
            Issue.record("nothing was told: \(said.events)")
            return
        }
        #expect(words.contains("two L1 entries point to the L2 table at offset"), "\(words)")
        #expect(storage.snapshot.u64(72) & QCOWHeader.Incompatible.corrupt != 0)
        #expect(perform(.write, 0..<8, engine).status == -EIO && perform(.read, 0..<8, engine).status == 0)
        engine.close()
    }

    /// What was read of a table before it was known to be the disk's alone lacks flags, and nobody gets it once that is known: who found
    /// it in the cache would write entries without them.
    @Test func flagsOfATableThatIsClaimedAreReadAgain() throws {
        let folder = try TestFolder()
        let storage = SimulatedStorage(try image(folder))
        let engine = try open(storage, Said())
        defer { engine.close() }
        let map = engine.map
        func flags() throws -> (table: UInt64, entry: UInt64) {
            let piece = try #require(try map.lockPiece(of: 0))
            defer { map.unlock(piece) }
            return (piece.table & L2Entry.copied, piece[0].raw & L2Entry.copied)
        }
        #expect(try flags() == (0, 0), "nothing is believed yet")
        map.setL1(0, map.l1Entry(0) | L2Entry.copied)
        #expect(map.tryPiece(of: 0) == nil)
        #expect(try flags() == (L2Entry.copied, L2Entry.copied))
    }

    /// What stands behind the end of the disk is the image's: its clusters are no leaks, and it is no damage.
    @Test func aTableBehindTheEndIsKept() throws {
        let folder = try TestFolder()
        let image = try image(folder)
        image.put64(2 << 20, at: 24)
        let said = Said()
        let storage = SimulatedStorage(image)
        let engine = try open(storage, said)
        for sector in stride(from: 1024, to: 4096, by: 8) {
            #expect(perform(.write, sector..<sector + 8, engine).status == 0)
        }
        engine.close()
        #expect(said.events == [])
        try storage.snapshot.save(folder.file("image"))
        try Shell.run(
            """
            cd \(folder.path) && qemu-img check -q -f qcow2 image
            qemu-img resize -q -f qcow2 image 4M && qemu-io -f qcow2 -c 'read -P 2 3M 64k' image | grep -v failed
            """)
    }

    /// A disk that grows does not show what is behind its end: not by tables, which QEMU would show, nor in its last cluster.
    @Test func whatIsBehindTheEndDoesNotComeIntoSight() throws {
        let folder = try TestFolder()
        let image = try image(folder)
        // The table of what is behind the end is one of its own, or that of the last cluster.
        for size in [UInt64(2 << 20), 3 << 20] {
            image.put64(size, at: 24)
            let engine = try open(SimulatedStorage(image), Said())
            #expect { try engine.grow(to: 4 << 20) } throws: { "\($0)".contains("data behind the end of the disk") }
            #expect(engine.size == size)
            engine.close()
        }
        try Shell.run(
            """
            cd \(folder.path) && qemu-img create -q -f qcow2 cut 4M && qemu-io -f qcow2 -c 'write -P 3 0 128k' cut
            qemu-img resize -q -f qcow2 --shrink cut 33280
            """)
        let storage = SimulatedStorage(try ByteImage(contentsOf: folder.file("cut")))
        let grown = try open(storage, Said())
        try grown.grow(to: 1 << 20)
        grown.close()
        try storage.snapshot.save(folder.file("cut"))
        try Shell.run(
            """
            cd \(folder.path) && qemu-img check -q -f qcow2 cut
            qemu-io -f qcow2 -c 'read -P 3 0 33280' -c 'read -P 0 33280 1015296' cut | grep -v failed
            ! qemu-io -f qcow2 -c 'read -P 3 0 33280' -c 'read -P 0 33280 1015296' cut | grep failed
            """)
    }

    /// The operator is told where on the disk, and not only where in the file.
    @Test func whatCannotBeReadHasItsPlaceOnTheDisk() throws {
        let folder = try TestFolder()
        let said = Said()
        let storage = SimulatedStorage(try image(folder))
        let engine = try open(storage, said)
        let sector = 3 << 11
        #expect(perform(.read, sector..<sector + 8, engine).status == 0)
        storage.failRead(at: storage.readCount)
        #expect(perform(.read, sector + 8..<sector + 16, engine).status == -EIO)
        guard case .unreadable(let fault, let offset)? = said.events.first else {
            Issue.record("nothing was told: \(said.events)")
            return
        }
        #expect(offset == UInt64(sector + 8) * 512 && fault.place != offset && fault.code == EIO)
        engine.close()
    }

    /// Queues do not write the same cache lines, and what any of them has begun is waited for.
    @Test func eachQueueCountsAtAPlaceOfItsOwn() {
        let grace = Grace()
        var lines: Set<UInt> = []
        for place in 0..<Grace.places {
            let token = grace.begin(place)
            #expect(lines.insert(grace.address(of: token) / 64).inserted, "place \(place)")
            grace.end(token)
        }
        for place in 0..<Grace.places {
            let token = grace.begin(place)
            grace.turn()
            // What begins later is not waited for.
            let later = grace.begin(place)
            #expect(!grace.isQuiet && token != later)
            grace.end(token)
            #expect(grace.isQuiet)
            grace.end(later)
        }
    }
}
