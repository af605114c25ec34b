// SPDX-License-Identifier: BSD-2-Clause
// A request that kills whoever serves it, under the real xbbd: it fails alone, and the disk goes on.
import Blkfront
import Blkif
import Foundation
import Testing

extension EndToEnd {
    @Suite struct PoisonTests {
        /// So far apart are the writes.
        private static let stride = 64 << 10
        private static let places = 200
        /// This one's place is at 5 MiB.
        private static let poisonous = 80

        /// Each place has bytes of its own, none of them those of an image that was never written.
        private static func fill(_ place: Int) -> UInt8 { UInt8(truncatingIfNeeded: place % 255 + 1) }

        /// One request for each place, as many at once as the ring takes; their statuses.
        private func all(
            _ operation: BlockOperation, _ queue: inout FrontQueue, _ check: (Int, [UInt8]) -> Void = { _, _ in }
        ) throws -> [Int16] {
            var waiting: [Int: Int] = [:]
            var statuses = [Int16](repeating: 99, count: Self.places)
            var next = 0
            while next < Self.places || !waiting.isEmpty {
                while next < Self.places, let id = queue.allocate() {
                    let byte = operation == .write ? Self.fill(next) : 0xa5
                    queue.buffer(of: id)[0..<4096].initializeMemory(as: UInt8.self, repeating: byte)
                    try queue.submit(id, operation, sector: UInt64(next * Self.stride / 512), byteCount: 4096)
                    waiting[id] = next
                    next += 1
                }
                try queue.publish()
                let completion = try queue.next()
                let found = waiting.removeValue(forKey: completion.id)
                let place = try #require(found)
                statuses[place] = completion.status
                check(place, Array(queue.buffer(of: completion.id)[0..<4096]))
                queue.release(completion.id)
            }
            return statuses
        }

        @Test func xbbdServesOnAfterARequestThatKills() throws {
            // Four crashes are what it may cost (docs/recovery.md); with a fifth xbbd would give the disk up.
            let lab = try LibxlLab(options: ["--restart-limit", "5"])
            let guest = try lab.guest()
            let image = try lab.image()
            let plugin = "error,size=16M,keep=on,misbehave=crash,op=write,start=5M,length=4k"
            let disk = LibxlDisk(guest: guest.id, params: "\(plugin):\(image)")
            #expect(try lab.add(disk).status == 0, "\(lab.log)")
            let device = try lab.connect(disk, guest)
            try device.queues[0].withQueue { (queue) throws in
                let written = try all(.write, &queue)
                #expect(written == (0..<Self.places).map { $0 == Self.poisonous ? -1 : 0 }, "\(lab.log)")
                #expect(try queue.status(.flush, sector: 0, byteCount: 0) == 0)
                let read = try all(.read, &queue) { place, bytes in
                    let byte = place == Self.poisonous ? 0 : Self.fill(place)
                    #expect(bytes.allSatisfy { $0 == byte }, "place \(place)")
                }
                #expect(read.allSatisfy { $0 == 0 })
            }
            #expect(try verifiedLoadBeside(device).isGood)

            // What an administrator is told.
            #expect(
                lab.log.has(
                    "write of 4096 bytes at 5242880: plugin 'error' crashed with this request alone 2 times; "
                        + "it is answered with an error and not tried again"), "\(lab.log)")
            let control = "--loopback '\(lab.xen.directory)' --socket '\(lab.directory)/run/xbbd.sock'"
            let log = try LibxlLab.shell("'\(buildDirectory)/xbbctl' log \(guest.id) xvda \(control)")
            #expect(log.components(separatedBy: "ended with signal 6").count == 5, "\(log)")
            #expect(!log.has("given up"))
            let row = try #require(try lab.rows().first)
            #expect(row.worker == "running" && row.state == "connected" && row.starts == 5, "\(row)")
            #expect(row.last_failure == "signal 6 (SIGABRT)")

            try device.close()
            #expect(device.leakedGrants.isEmpty)
            try lab.remove(disk)
            lab.stop()
        }

        /// A verified load behind the place that kills.
        private func verifiedLoadBeside(_ device: FrontDevice) throws -> LoadReport {
            var plan = LoadPlan()
            plan.pattern = .randrw
            plan.offset = 6 << 20
            plan.maxBlockSize = 64 << 10
            plan.depth = 16
            plan.count = 200
            plan.verify = true
            return try LoadRun(device, plan).run()
        }
    }
}
