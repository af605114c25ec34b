// SPDX-License-Identifier: BSD-2-Clause
// What went wrong in other engines, a case for each.
import Foundation
import TestSupport
import Testing

@Suite(.serialized) struct PeerBugTests {
    private func recipe(_ clusterBits: Int, _ size: Int, refcountBits: Int = 16) -> ImageRecipe {
        var recipe = ImageRecipe()
        (recipe.clusterBits, recipe.size, recipe.refcountBits, recipe.isEmpty) = (clusterBits, size, refcountBits, true)
        return recipe
    }

    private func churn(_ clusterBits: Int, _ size: Int, seed: UInt64) throws -> EngineBench {
        var shape = HistoryShape()
        (shape.discards, shape.zeroes) = (35, 10)
        var setup = EngineSetup()
        setup.reserve = 1...4
        return try EngineBench(recipe(clusterBits, size), seed: seed, setup: setup, shape: shape)
    }

    /// cloud-hypervisor #8606: live L2 tables were handed out as free clusters.
    @Test(arguments: [9, 12, 16]) func liveTablesAreNotHandedOutAgain(_ clusterBits: Int) throws {
        let bench = try churn(clusterBits, 32 << clusterBits, seed: testSeed("live tables"))
        for _ in 0..<20 {
            bench.driver.run(50)
            let found = bench.faults()
            try #require(found.isEmpty, "\(found)\n\(bench.storage.log.tail(.max))")
        }
        #expect(bench.close() == [])
    }

    /// cloud-hypervisor #8624: a hole was punched when the cluster was in use again.
    @Test(arguments: [9, 12, 16]) func noHoleIsPunchedInALiveCluster(_ clusterBits: Int) throws {
        let bench = try churn(clusterBits, 24 << clusterBits, seed: testSeed("late holes"))
        bench.driver.run(800)
        bench.driver.drain()
        #expect(bench.driver.faults == [])
        let log = bench.storage.log
        var replay = LogReplay(log)
        var holes = 0
        for (position, effect) in log.effects.enumerated() {
            replay.advance(to: position)
            guard case .zero(let offset, let length) = effect, let layout = ImageLayout(replay.image) else { continue }
            holes += 1
            let range = offset..<offset + length
            for cluster in 0..<layout.guestClusters {
                guard case .data(let place) = layout.describe(layout.entry(cluster)) else { continue }
                try #require(
                    !range.overlaps(place..<place + layout.clusterSize),
                    "a hole at \(offset) in a live cluster\n\(log.tail(position))")
            }
        }
        #expect(holes > 10, "there were holes to look at")
    }

    /// cloud-hypervisor #8637 #8721 #8748: after ENOSPC, tables referred to clusters that were nobody's.
    @Test(arguments: [9, 12, 16]) func nothingIsPublishedThatIsNotOwnedAfterNoSpace(_ clusterBits: Int) throws {
        let seed = testSeed("no space")
        var refused = 0
        for round in 0..<UInt64(6) {
            let bench = try churn(clusterBits, 64 << clusterBits, seed: seed + round)
            let room = bench.made.image.count + Int(round) * (7 << clusterBits)
            bench.storage.setLimit(room)
            for _ in 0..<10 {
                bench.driver.run(40)
                let found = bench.faults()
                try #require(found.isEmpty, "\(found)\n\(bench.storage.log.tail(.max))")
            }
            bench.driver.drain()
            #expect(!bench.engine.hasFailed, "no space is not the end of the disk")
            refused += bench.driver.errors
            var random = SplitMix64(seed: seed + round)
            var cut = PowerCut(bench.storage.log)
            let judge = Judge(reader: bench.made.reader, model: bench.driver.model)
            for position in (0..<20).map({ _ in random.below(bench.storage.position + 1) }).sorted() {
                let found = judge.faults(cut.state(at: position, &random), .powerCut, position: position)
                try #require(found.isEmpty, "\(found)\n\(bench.storage.log.tail(position))")
            }
            // There is room again, and the disk goes on.
            let errors = bench.driver.errors
            bench.storage.setLimit(nil)
            Reopening.fill(bench.driver)
            bench.driver.drain()
            #expect(bench.driver.errors == errors, "writes work again when there is room")
            #expect(bench.close() == [])
        }
        #expect(refused > 0, "there was too little space at some time")
    }

    /// cloud-hypervisor #8358: the first clusters were overwritten with data. Only fields of the header may change.
    @Test func theHeaderIsOnlyChangedInItsFields() throws {
        let fields = [48..<60, 72..<80, 88..<96]
        let bench = try churn(9, 128 << 9, seed: testSeed("header"))
        bench.driver.run(600)
        #expect(bench.close() == [])
        for effect in bench.storage.log.effects {
            guard let range = effect.range, range.lowerBound < 512 else { continue }
            #expect(
                fields.contains { $0.contains(range.lowerBound) && range.upperBound <= $0.upperBound },
                "\(effect.description)")
        }
    }

    /// cloud-hypervisor #8597: each fsync leaked clusters.
    @Test func flushesLeakNothing() throws {
        var setup = EngineSetup()
        setup.reserve = 4...8
        let bench = try EngineBench(recipe(12, 1 << 20), setup: setup)
        bench.driver.submit(.write, 0..<64)
        bench.driver.drain()
        bench.driver.flush()
        let size = bench.storage.size
        for number in 0..<300 {
            bench.driver.submit(.write, number % 64..<number % 64 + 1)
            bench.driver.flush()
            _ = bench.engine.commit()
        }
        bench.driver.drain()
        #expect(bench.storage.size <= size + 16 * 4096, "the file does not grow with flushes")
        #expect(StructureCheck.report(bench.storage.snapshot).leaks <= 16, "no more than the reserve")
        #expect(bench.close() == [])
    }

    /// cloud-hypervisor #7526: the COPIED flags did not tell whether a cluster is shared.
    @Test(arguments: [2, 4, 16, 64]) func copiedFlagsAreRight(_ refcountBits: Int) throws {
        var recipe = recipe(12, 512 << 10, refcountBits: refcountBits)
        (recipe.isEmpty, recipe.hasSnapshot) = (false, true)
        let bench = try EngineBench(recipe, seed: testSeed("copied flags"))
        bench.driver.run(300)
        #expect(bench.close() == [])
        #expect(try bench.qemuFaults() == [])
    }

    /// The snapshot has what it had, whatever was written since.
    @Test func aSnapshotKeepsItsData() throws {
        var recipe = recipe(12, 512 << 10)
        (recipe.isEmpty, recipe.hasSnapshot) = (false, true)
        let bench = try EngineBench(recipe, seed: testSeed("snapshot"))
        let folder = bench.made.folder
        func snapshot(_ name: String) throws -> String {
            try bench.storage.snapshot.save(folder.file(name))
            return try Shell.run(
                "cd \(folder.path) && qemu-img convert -l snapshot.name=first -O raw \(name) \(name).raw && md5sum < \(name).raw"
            )
        }
        let before = try snapshot("before")
        bench.driver.run(200)
        Reopening.fill(bench.driver)
        #expect(bench.close() == [])
        #expect(try snapshot("after") == before)
    }

    /// The refcount table grows: clusters of 512 bytes, refcounts of 64 bits.
    @Test(arguments: [16, 64]) func theRefcountTableGrows(_ refcountBits: Int) throws {
        // A block of 64 bits counts 32 KiB, and a cluster of the table 64 of them.
        let size = refcountBits == 64 ? 2560 << 10 : 9 << 20
        var shape = HistoryShape()
        shape.largest = 512
        let bench = try EngineBench(recipe(9, size, refcountBits: refcountBits), shape: shape)
        let before = ImageLayout(bench.made.image)?.refcountClusters
        for first in stride(from: 0, to: size / 512, by: 512) {
            bench.driver.submit(.write, first..<first + 512)
            bench.driver.run(3)
        }
        bench.driver.drain()
        #expect(bench.driver.errors == 0)
        #expect(bench.close() == [])
        let after = ImageLayout(bench.storage.snapshot)?.refcountClusters
        #expect(after ?? 0 > before ?? 0, "the table has \(before ?? 0) and \(after ?? 0) clusters")
        #expect(try bench.qemuFaults() == [])
        var (random, cut) = (SplitMix64(seed: 1), PowerCut(bench.storage.log))
        // The moments around a change of the header are looked at closely.
        let roles = EffectRole.roles(of: bench.storage.log)
        let moments = roles.indices.filter { roles[$0] == .header }.flatMap {
            max(0, $0 - 3)...min(roles.count, $0 + 6)
        }
        let judge = Judge(reader: bench.made.reader, model: bench.driver.model)
        for position in Set(moments).sorted().prefix(TestLength.isLong ? 2000 : 40) {
            let found = judge.faults(cut.state(at: position, &random), .powerCut, position: position)
            try #require(found.isEmpty, "\(found)\n\(bench.storage.log.tail(position))")
        }
    }

    /// A loss of power may leave the counts of reserved clusters and take the length of the file: the file grows over them later, and
    /// nothing may be left of them then.
    @Test(arguments: [false, true]) func countsBehindTheEndAreTakenBack(_ isVouched: Bool) throws {
        var setup = EngineSetup()
        (setup.followsUncleanEnd, setup.isVouched, setup.reserve) = (true, isVouched, 8...64)
        let bench = try EngineBench(recipe(12, 4 << 20), setup: setup) { image in
            let layout = try #require(ImageLayout(image))
            let block = try #require(layout.refcountBlocks.first)
            // A block of 4096 bytes counts 2048 clusters in 16 bits each.
            let clusters = image.count / 4096
            for cluster in clusters + 3..<clusters + 40 { image.put8(1, at: block + cluster * 2 + 1) }
        }
        #expect(StructureCheck.report(bench.storage.snapshot).behindEnd == 37)
        for first in stride(from: 0, to: 8192, by: 256) {
            bench.driver.submit(.write, first..<first + 256)
            bench.driver.run(3)
        }
        #expect(bench.close() == [])
        #expect(try bench.qemuFaults() == [])
    }

    /// A device is full: writes that need a cluster fail, all others go on, and discards make room.
    @Test func aFullDeviceGoesOn() throws {
        var setup = EngineSetup()
        setup.reserve = 1...8
        var shape = HistoryShape()
        (shape.discards, shape.zeroes, shape.reads) = (30, 5, 20)
        let seed = testSeed("full device")
        for round in 0..<UInt64(4) {
            let bench = try EngineBench(
                recipe(12, 512 << 10), seed: seed + round, setup: setup, shape: shape, isGrowable: false,
                size: (300 << 10) + Int(round) * 512)
            for _ in 0..<20 {
                bench.driver.run(60)
                let found = bench.faults()
                try #require(found.isEmpty, "\(found)\n\(bench.storage.log.tail(.max))")
            }
            bench.driver.drain()
            #expect(!bench.engine.hasFailed && bench.driver.errors > 0, "the device was full, and goes on")
            #expect(bench.close() == [])
            #expect(try bench.qemuFaults() == [])
        }
    }

    /// Numbers in tables never straddle sectors, so they are never torn: qcow2's entries are aligned, and so are all writes.
    @Test func entriesAreWrittenWhole() throws {
        let bench = try churn(12, 128 << 12, seed: testSeed("entries"))
        bench.driver.run(400)
        bench.driver.drain()
        let roles = EffectRole.roles(of: bench.storage.log)
        for (role, effect) in zip(roles, bench.storage.log.effects) {
            guard role == .l1 || role == .l2, let range = effect.range else { continue }
            #expect(range.lowerBound % 8 == 0 && range.count % 8 == 0, "\(effect.description)")
        }
    }
}
