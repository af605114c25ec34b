// SPDX-License-Identifier: BSD-2-Clause
// What a well-behaved guest relies on.
import Blkfront
import Blkif
import Foundation
import Testing

extension EndToEnd {
    @Suite struct ServingTests {
        /// What differs between the connections of one disk.
        struct Shape: CustomStringConvertible {
            var pages = 1
            var abi = RingABI.native
            var scheme = RingScheme.automatic
            var start: UInt32 = 0
            var description: String { "\(pages) pages, \(abi), \(scheme), from \(start)" }
        }

        /// One disk lives through all connections, and each finds what the one before has written.
        @Test func everyShapeOfRingKeepsAllData() throws {
            let lab = try Lab()
            let disk = try lab.attach()
            let shapes = [
                Shape(), Shape(pages: 4, abi: .x86_32, start: 0xffff_fffa), Shape(pages: 32, abi: .x86_64),
                Shape(pages: 1, scheme: .pageOrderZero), Shape(pages: 4, scheme: .pageCount),
                Shape(pages: 32, abi: .x86_32, scheme: .both), Shape(pages: 1, abi: .x86_64, scheme: .pageOrder),
            ]
            var mark: [UInt8] = []
            for (index, shape) in shapes.enumerated() {
                let device = try disk.connect {
                    $0.ringPages = shape.pages
                    $0.abi = shape.abi
                    $0.ringScheme = shape.scheme
                    $0.startIndex = shape.start
                }
                #expect(try disk.worker.show("ring_pages") == String(shape.pages), "\(shape)")
                try device.queues[0].withQueue { (queue) throws in
                    if !mark.isEmpty { #expect(try queue.read(sector: 0, byteCount: 4096).bytes == mark, "\(shape)") }
                }
                let report = try disk.load(device) {
                    $0.flushEvery = 30
                    $0.barrierEvery = 40
                    $0.discardEvery = 50
                    $0.skew = index % 2 == 0 ? 0 : 3
                    $0.seed = UInt64(index + 1)
                }
                #expect(report.isGood && report.verifiedBlocks > 0, "\(shape): \(report.text)")
                mark = [UInt8](repeating: UInt8(index + 1), count: 4096)
                try device.queues[0].withQueue { (queue) throws in
                    #expect(try queue.status(.write, sector: 0, byteCount: 4096, fill: UInt8(index + 1)) == 0)
                    #expect(try queue.status(.flush, sector: 0, byteCount: 0) == 0)
                }
                try device.close()
            }
            let file = try #require(FileHandle(forReadingAtPath: disk.path))
            #expect([UInt8](file.readData(ofLength: 4096)) == mark, "a flushed write is in the image")
            try lab.finish()
        }

        @Test func fourQueuesServeOneDisk() throws {
            let lab = try Lab(pages: 32768)
            let disk = try lab.attach(arguments: ["--max-queues", "4"])
            let device = try disk.connect {
                $0.queues = 4
                $0.ringPages = 4
            }
            #expect(device.queues.count == 4)
            #expect(try disk.worker.show("queues") == "4")
            #expect(!device.info.barrier, "a barrier does not hold between queues after a death")
            let report = try disk.load(device) {
                $0.count = 1600
                $0.flushEvery = 50
                $0.discardEvery = 50
            }
            #expect(report.isGood, "\(report.text)")
            try device.close()
            try lab.finish()
        }

        @Test(arguments: [("error", "size=16M"), ("delay", "size=16M"), ("delay", "size=16M,reorder,delay-us=300")])
        func testPluginsKeepData(plugin: String, options: String) throws {
            let lab = try Lab()
            let disk = try lab.attach(51712, .plugin(plugin, options))
            let device = try disk.connect { $0.ringPages = 4 }
            #expect(device.info.byteCount == 16 << 20)
            let report = try disk.load(device) { $0.flushEvery = 20 }
            #expect(report.isGood, "\(report.text)")
            try device.close()
            try lab.finish()
        }

        @Test func theNullPluginReadsZeroes() throws {
            let lab = try Lab()
            let disk = try lab.attach(51712, .plugin("null", "size=1G"))
            let device = try disk.connect()
            #expect(device.info.byteCount == 1 << 30)
            try device.queues[0].withQueue { (queue) throws in
                #expect(try queue.status(.write, sector: 80, byteCount: 45056, fill: 1) == 0)
                let (status, bytes) = try queue.read(sector: 80, byteCount: 45056)
                #expect(status == 0 && bytes.allSatisfy { $0 == 0 })
            }
            try device.close()
            try lab.finish()
        }

        @Test func aReadOnlyDiskCannotBeChangedInAnyWay() throws {
            let lab = try Lab()
            let path = try lab.image("read-only.img", bytes: 1 << 20)
            let content = Data((0..<1 << 20).map { UInt8(truncatingIfNeeded: $0 / 512 + $0) })
            try content.write(to: URL(fileURLWithPath: path))
            let disk = try lab.attach(51712, Storage(path: path, mode: "r"))
            let device = try disk.connect()
            #expect(device.info.readOnly)
            try device.queues[0].withQueue { (queue) throws in
                #expect(try queue.read(sector: 16, byteCount: 8192).bytes == [UInt8](content[8192..<16384]))
                #expect(try queue.status(.write, sector: 0, byteCount: 4096, fill: 1) != 0)
                #expect(try queue.status(.writeBarrier, sector: 0, byteCount: 4096, fill: 1) != 0)
                #expect(try queue.status(.flush, sector: 0, byteCount: 4096, fill: 1) != 0)
                let encoder = RequestEncoder(layout: RingLayout(.native))
                #expect(try queue.raw { encoder.discard(id: $0, firstSector: 0, sectorCount: 8) } != 0)
                #expect(try queue.status(.flush, sector: 0, byteCount: 0) == 0)
            }
            try device.close()
            try lab.finish()
        }

        @Test func aReadOnlyDiskLeavesTheImageAlone() throws {
            let lab = try Lab()
            let path = try lab.image("read-only.img", bytes: 1 << 20)
            let content = Data((0..<1 << 20).map { UInt8(truncatingIfNeeded: $0 / 512 + $0) })
            try content.write(to: URL(fileURLWithPath: path))
            let disk = try lab.attach(51712, Storage(path: path, mode: "r"))
            let device = try disk.connect()
            let hostile = HostileFrontend(device, seed: 3)
            let reference = try hostile.grant()
            let references = Array(repeating: reference, count: 11)
            try device.queues[0].withQueue { (queue) throws in
                for _ in 0..<500 {
                    _ = try queue.raw {
                        hostile.nearlyRightSlot(
                            layout: RingLayout(.native), id: $0, sectors: 2048, references: references
                        ).with(id: $0)
                    }
                }
            }
            #expect(guest(lab, ends: reference))
            try device.close()
            #expect(try Data(contentsOf: URL(fileURLWithPath: path)) == content)
            try lab.finish()
        }

        @Test func aGrownImageIsSeenByTheGuest() throws {
            let lab = try Lab()
            let disk = try lab.attach()
            let device = try disk.connect()
            #expect(truncate(disk.path, 32 << 20) == 0)
            try eventually("the new size") { try disk.key("sectors") == "65536" }
            var events: [FrontEvent] = []
            try eventually("the frontend's event") {
                events += try device.handleStoreEvents()
                return events.contains(.resized(32 << 20))
            }
            try device.queues[0].withQueue { (queue) throws in
                #expect(try queue.status(.write, sector: 65528, byteCount: 4096, fill: 9) == 0)
                #expect(try queue.status(.write, sector: 65536, byteCount: 4096, fill: 9) != 0)
            }
            #expect(try disk.key("state") == "4")
            try device.close()
            try lab.finish()
        }

        @Test func aDiskBeginsWithTheTunablesOfItsCommandLine() throws {
            let lab = try Lab()
            let disk = try lab.attach(arguments: [
                "--tunable", "poll_us=5", "--tunable", "disable-flush=on", "--tunable", "flush_interval=3",
            ])
            let device = try disk.connect()
            let tunables = try #require(try disk.worker.ask("show")["tunables"] as? [String: Any])
            let numbers = tunables.compactMapValues { $0 as? Int }
            #expect(
                numbers.filter { !$0.key.contains("_sec") } == [
                    "disable_flush": 1, "flush_interval": 3, "no_coalesce_reqs": 0, "poll_percent": 20, "poll_us": 5,
                ])
            #expect(tunables["on_enospc"] as? String == "report" && tunables["detect_zeroes"] as? String == "off")
            try device.close()
            try lab.finish()
        }

        @Test func tunablesChangeARunningDisk() throws {
            let lab = try Lab()
            let disk = try lab.attach()
            let device = try disk.connect()
            func sequential() throws {
                let report = try disk.load(device) {
                    $0.pattern = .read
                    $0.verify = false
                    $0.maxBlockSize = 4096
                    $0.depth = 32
                    $0.count = 2000
                }
                #expect(report.isGood, "\(report.text)")
            }
            try sequential()
            let merged = try disk.worker.total("requests_merged")
            #expect(merged > 0, "adjacent requests are joined")
            try disk.worker.set("no_coalesce_reqs", 1)
            try sequential()
            let after = try disk.worker.total("requests_merged")
            try sequential()
            #expect(try disk.worker.total("requests_merged") == after)

            let before = try disk.worker.total("plugin_requests")
            try disk.worker.set("disable_flush", 1)
            try device.queues[0].withQueue { (queue) throws in
                for _ in 0..<10 { #expect(try queue.status(.flush, sector: 0, byteCount: 0) == 0) }
            }
            #expect(try disk.worker.total("plugin_requests") == before, "flushes no longer reach the plugin")
            try disk.worker.set("disable_flush", 0)
            try device.queues[0].withQueue { (queue) throws in
                #expect(try queue.status(.flush, sector: 0, byteCount: 0) == 0)
            }
            #expect(try disk.worker.total("plugin_requests") == before + 1)

            for bad in [
                "set", "set x", "set none 1", "set poll_us -1", "set poll_us 99999999999", "stats 1", "", "\u{7f}",
                "set poll_us 1000001", "set poll-us 1000001", "set disable_flush 2", "set max-queues 2",
            ] {
                #expect(try disk.worker.ask(bad)["error"] != nil, "'\(bad)'")
            }
            for (line, shown) in [
                ("set poll-us 5", 5), ("set poll_us 1000000", 1_000_000), ("set poll-us 0", 0),
            ] {
                let tunables = try #require(try disk.worker.ask(line)["tunables"] as? [String: Any])
                #expect(tunables["poll_us"] as? Int == shown, "\(line)")
            }
            for (word, shown) in [("yes", 1), ("off", 0), ("true", 1), ("no", 0)] {
                let tunables = try #require(
                    try disk.worker.ask("set disable-flush \(word)")["tunables"] as? [String: Any])
                #expect(tunables["disable_flush"] as? Int == shown, "\(word)")
            }
            try device.close()
            try lab.finish()
        }
    }
}
