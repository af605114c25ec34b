// SPDX-License-Identifier: BSD-2-Clause
// What may stand in each other in an image that somebody made on purpose: a case for each pair, with refcounts and flags that say that all
// is well. Nothing of such an image is changed but its mark.
import Foundation
import ImageWriting
import QCOW2
import Synchronization
import TestSupport
import Testing

@testable import QCOWEngine

/// One overlap.
enum TableOverlap: String, CaseIterable, Sendable {
    case tableInData, tableInZeroData, tableInSnapshotData, tableInRefcounts, tableInSnapshotTable, tableTwiceFarAway
    case refcountsInData, refcountsInSnapshotData, refcountsInTable
    case dataInTable, dataInSnapshotTable, dataInRefcounts, dataTwice, dataOfSnapshot
    case deflatedInTable, deflatedInData, deflatedInSnapshotData
    case l1InData, l1InSnapshotData, snapshotL1InData, snapshotTableInData, snapshotDataInTable, snapshotDataInL1
    case dataBehindEnd
    /// No overlap: bits that mean nothing, and an L1 entry that claims a table and names none.
    case bitsOfTable, bitsOfL1, claimOfNothing, bitsOfSnapshotTable, bitsOfSnapshotL1
}

@Suite(.serialized) struct HostileTableTests {
    /// Two L2 tables with data and zeroes in clusters of their own; with a snapshot, whose data were written anew since.
    private func image(_ folder: TestFolder, _ options: String, clusterSize: Int, snapshot: Bool) throws -> ByteImage {
        let reach = clusterSize * clusterSize / (options.contains("extended") ? 16 : 8)
        let (one, far) = (clusterSize, reach * 2)
        let again =
            snapshot
            ? "qemu-img snapshot -c one image && "
                + "qemu-io -f qcow2 -c 'write -P 3 0 \(one * 4)' -c 'write -P 4 \(far) \(one)' image" : ":"
        try Shell.run(
            """
            cd \(folder.path) && rm -f image && qemu-img create -q -f qcow2 -o cluster_size=\(clusterSize)\(options) image \(reach * 3)
            qemu-io -f qcow2 -c 'write -P 1 0 \(one * 4)' -c 'write -P 0 \(one * 4) \(one)' -c 'write -P 2 \(far) \(one * 2)' image
            \(again)
            """)
        return try ByteImage(contentsOf: folder.file("image"))
    }

    /// Lets one part of the image stand in another; false where the image has no such parts.
    private func apply(_ overlap: TableOverlap, _ image: ByteImage) -> Bool {
        guard let layout = ImageLayout(image) else { return false }
        let copied = L2Entry.copied
        let l1 = layout.l1Offset
        let tables = (0..<layout.l1Count).map { layout.l2Offset(l1, $0) }.filter { $0 != 0 }
        let far = (0..<layout.l1Count).last { layout.l2Offset(l1, $0) != 0 } ?? 0
        guard let table = tables.first, let last = tables.last, let entry = layout.entryOffset(1),
            case .data(let data) = layout.describe(layout.entry(0)),
            case .data(let zeroes) = layout.describe(layout.entry(4)),
            let block = layout.refcountBlocks.first(where: { $0 != 0 })
        else { return false }
        let snapshot = layout.snapshots.first
        // A table of the snapshot, and data that only the snapshot has.
        let old = snapshot.map { layout.l2Offset($0.l1Offset, 0) } ?? 0
        let oldData = old == 0 ? 0 : Int(truncatingIfNeeded: image.u64(old)) & ImageLayout.offsetMask
        func point(_ place: Int) { image.put64(UInt64(place) | copied, at: entry) }
        func pointL1(_ place: Int) { image.put64(UInt64(place) | copied, at: l1 + far * 8) }
        func deflated(_ place: Int) {
            image.put64(UInt64(place) | 1 << 62, at: entry)
            if layout.isExtended { image.put64(0, at: entry + 8) }
        }
        switch overlap {
        case .tableInData: pointL1(data)
        case .tableInZeroData: pointL1(zeroes)
        case .tableInRefcounts: pointL1(block)
        case .tableTwiceFarAway: pointL1(table)
        case .refcountsInData: return move(block, to: data, layout)
        case .refcountsInTable: image.put64(UInt64(last), at: layout.refcountOffset)
        case .dataInTable: point(last)
        case .dataInRefcounts: point(block)
        case .dataTwice: point(data)
        case .deflatedInTable: deflated(last)
        case .deflatedInData: deflated(data)
        case .bitsOfTable: image.put64(image.u64(entry) | 2, at: entry)
        case .bitsOfL1: image.put64(image.u64(l1) | 1 << 62, at: l1)
        case .claimOfNothing: image.put64(copied, at: l1 + 8)
        case .dataBehindEnd: point(layout.fileClusters * layout.clusterSize + layout.clusterSize)
        case .l1InData:
            image.write([UInt8](image.part(l1, layout.clusterSize)), at: data)
            image.put64(UInt64(data), at: 40)
        default:
            guard let snapshot, old != 0, oldData != 0 else { return false }
            switch overlap {
            case .tableInSnapshotData: pointL1(oldData)
            case .tableInSnapshotTable: pointL1(old)
            case .refcountsInSnapshotData: return move(block, to: oldData, layout)
            case .dataInSnapshotTable: point(old)
            case .dataOfSnapshot: point(oldData)
            case .deflatedInSnapshotData: deflated(oldData)
            case .l1InSnapshotData:
                image.write([UInt8](image.part(l1, layout.clusterSize)), at: oldData)
                image.put64(UInt64(oldData), at: 40)
            case .snapshotL1InData:
                image.write([UInt8](image.part(snapshot.l1Offset, layout.clusterSize)), at: data)
                image.put64(UInt64(data), at: layout.snapshotOffset)
            case .snapshotTableInData:
                image.write([UInt8](image.part(layout.snapshotOffset, layout.clusterSize)), at: data)
                image.put64(UInt64(data), at: 64)
            case .bitsOfSnapshotTable: image.put64(image.u64(old) | 1 << 59, at: old)
            case .bitsOfSnapshotL1: image.put64(image.u64(snapshot.l1Offset) | 1, at: snapshot.l1Offset)
            case .snapshotDataInTable: image.put64(UInt64(last), at: old)
            case .snapshotDataInL1: image.put64(UInt64(l1), at: old)
            default: return false
            }
        }
        return true
    }

    /// The refcounts are where data are, and are right there.
    private func move(_ block: Int, to place: Int, _ layout: ImageLayout) -> Bool {
        layout.image.write([UInt8](layout.image.part(block, layout.clusterSize)), at: place)
        layout.image.put64(UInt64(place), at: layout.refcountOffset)
        return true
    }

    /// Whatever is written where.
    @Test(arguments: TableOverlap.allCases, [false, true])
    func nothingIsChangedBeforeDamageIsFound(_ overlap: TableOverlap, isExtended: Bool) throws {
        let folder = try TestFolder()
        var tried = 0
        for hasSnapshot in [false, true] {
            let (options, clusterSize) = isExtended ? (",extended_l2=on", 16384) : ("", 4096)
            let image = try image(folder, options, clusterSize: clusterSize, snapshot: hasSnapshot)
            guard apply(overlap, image) else { continue }
            let end = Int(image.u64(24)) / 512
            let step = clusterSize / 512
            let writes: [(EngineOperationKind, Range<Int>)] = [
                (.write, 0..<1), (.write, step..<step + 8), (.write, 100 * step..<100 * step + 1),
                (.write, end - 8..<end),
                (.discard, 0..<8 * step), (.zeroes(mayFree: true), end - step..<end), (.write, 8 * step..<9 * step),
                (.discard, 0..<end),
            ]
            // Each of them as the first one.
            for first in writes.indices {
                let storage = SimulatedStorage(image)
                guard let engine = try? ImageEngine(storage, below: nil, options: EngineOptions()) else {
                    #expect(storage.position == 0, "refused and changed")
                    continue
                }
                tried += 1
                for (kind, sectors) in writes[first...] + writes[..<first] {
                    #expect(perform(kind, sectors, engine).status != 0, "\(kind) \(sectors)")
                }
                #expect(engine.failure != 0)
                for _ in 0..<100 { _ = engine.commit() }
                engine.close()
                let after = storage.snapshot
                #expect(after.u64(72) & 2 != 0 && after.count == image.count)
                after.put64(image.u64(72), at: 72)
                #expect(after.differences(from: image) == [], "snapshot \(hasSnapshot), first \(writes[first])")
            }
        }
        print("\(overlap), extended \(isExtended): \(tried) engines opened it")
    }

    /// What its predecessor has looked through a successor changes at once.
    @Test func aSuccessorDoesNotWait() throws {
        let folder = try TestFolder()
        let image = try image(folder, "", clusterSize: 4096, snapshot: true)
        let vouches = Counted()
        var options = EngineOptions()
        options.whenVouched = { vouches.add() }
        let storage = SimulatedStorage(image)
        let first = try ImageEngine(storage, below: nil, options: options)
        let begin = storage.readCount
        #expect(perform(.write, 0..<8, first).status == 0 && vouches.count == 1)
        #expect(storage.readCount > begin + 4, "all tables were read")
        // It is killed.
        let left = SimulatedStorage(storage.snapshot)
        (options.isVouched, options.followsUncleanEnd) = (true, true)
        let second = try ImageEngine(left, below: nil, options: options)
        let operation = SimulatedOperation(
            .write, sectors: 0..<8, generation: 2, number: 0, onFinish: { _ in }, onResume: { _ in })
        let token = second.begin()
        #expect(second.perform(operation) == .finished && operation.status == 0, "without a scan")
        second.end(token)
        second.close()
        #expect(StructureCheck.report(left.snapshot).leaks == 0)
    }

    /// The tables are read from the start on, a little each time, and nothing is changed or synced for it: the first change finds
    /// most of that done.
    @Test func tablesAreReadBeforeTheFirstChange() throws {
        let folder = try TestFolder()
        let image = try image(folder, "", clusterSize: 4096, snapshot: true)
        func readsOfTheFirstChange(ahead: Bool) throws -> Int {
            let storage = SimulatedStorage(image)
            let engine = try ImageEngine(storage, below: nil, options: EngineOptions())
            if ahead { engine.readTablesAhead() }
            #expect(engine.pending == (ahead ? .later : .nothing), "nobody waits")
            for _ in 0..<1000 where engine.needsCommit { _ = engine.commit() }
            #expect(!engine.needsCommit && storage.position == 0, "nothing is changed")
            let begin = storage.readCount
            #expect(perform(.write, 0..<8, engine).status == 0)
            engine.close()
            #expect(StructureCheck.report(storage.snapshot).corruptions == [])
            return storage.readCount - begin
        }
        let (late, ahead) = (try readsOfTheFirstChange(ahead: false), try readsOfTheFirstChange(ahead: true))
        print("reads of the first change: \(late), after those ahead \(ahead)")
        #expect(ahead * 2 < late)
    }

    /// Damage that is found so is told at once, marked, and stops what comes.
    @Test func damageIsFoundAhead() throws {
        let folder = try TestFolder()
        let image = try image(folder, "", clusterSize: 4096, snapshot: false)
        #expect(apply(.tableInZeroData, image))
        let storage = SimulatedStorage(image)
        let engine = try ImageEngine(storage, below: nil, options: EngineOptions())
        engine.readTablesAhead()
        for _ in 0..<1000 where engine.needsCommit { _ = engine.commit() }
        #expect(engine.failure == -EIO && storage.snapshot.u64(72) & 2 != 0)
        #expect(perform(.read, 0..<8, engine).status == 0 && perform(.write, 0..<8, engine).status == -EIO)
        let after = storage.snapshot
        after.put64(image.u64(72), at: 72)
        #expect(after.differences(from: image) == [])
    }

    /// An error of the storage is no damage: changes end with it, are told, and are tried again.
    @Test func aTableThatCannotBeReadStopsChangesAndNotReads() throws {
        let folder = try TestFolder()
        let said = Mutex<[EngineEvent]>([])
        let storage = SimulatedStorage(try image(folder, "", clusterSize: 4096, snapshot: false))
        let engine = try ImageEngine(storage, below: nil, options: EngineOptions())
        engine.observe { event in said.withLock { $0.append(event) } }
        storage.failRead(at: storage.readCount + 1)
        #expect(perform(.write, 0..<8, engine).status == -EIO && storage.position == 0 && engine.failure == 0)
        guard case .notLookedThrough? = said.withLock({ $0.first }) else {
            Issue.record("nothing was told: \(said.withLock { $0 })")
            return
        }
        #expect(perform(.read, 0..<8, engine).status == 0 && perform(.write, 0..<8, engine).status == 0)
        engine.close()
        #expect(StructureCheck.report(storage.snapshot).corruptions == [])
    }
}

/// A number that any thread may raise.
private final class Counted: Sendable {
    private let value = Atomic<Int>(0)
    var count: Int { value.load(ordering: .relaxed) }
    func add() { value.wrappingAdd(1, ordering: .relaxed) }
}
