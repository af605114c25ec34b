// SPDX-License-Identifier: BSD-2-Clause
// A guest's memory beside what its requests name stays as it is.
import Blkfront
import Foundation
import Testing
import XenLoopback

extension EndToEnd {
    @Suite struct GuestMemoryTests {
        /// Pages of a guest with a pattern that depends on their place.
        private final class Canary {
            private let guest: LoopbackDomain
            private var frames: [(first: UInt32, count: Int)] = []

            init(_ guest: LoopbackDomain) { self.guest = guest }

            func take(_ count: Int) throws { frames.append((try guest.allocateFrames(count), count)) }

            private func pattern(_ frame: UInt32) -> [UInt8] {
                (0..<4096).map { UInt8(truncatingIfNeeded: Int(frame) &* 31 &+ $0 &* 7 &+ $0 >> 8) }
            }

            private var all: [UInt32] { frames.flatMap { $0.first..<$0.first + UInt32($0.count) } }

            func write() { for frame in all { guest.write(pattern(frame), frame: frame) } }

            /// Frames that are not as they were written.
            var changed: [UInt32] { all.filter { guest.read(frame: $0, count: 4096) != pattern($0) } }
        }

        /// Requests of all sizes with verification, while workers are killed and hand over, on a ring whose buffers have
        /// neighbours.
        @Test(arguments: [GrantPolicy.perRequest, .pooled]) func whatNoRequestNamesIsNotWritten(_ grants: GrantPolicy)
            throws
        {
            let lab = try Lab(pages: 8192)
            let canary = Canary(lab.guest)
            // Buffers come to lie between the pages that are watched.
            var gaps: [UInt32] = []
            for _ in 0..<4 {
                try canary.take(128)
                gaps.append(try lab.guest.allocateFrames(1600))
            }
            for gap in gaps { lab.guest.freeFrames(gap, count: 1600) }
            canary.write()
            let succession = try Succession(lab)
            let device = try succession.disk.connect {
                $0.ringPages = 4
                $0.grants = grants
            }
            var plan = LoadPlan()
            plan.pattern = .randrw
            plan.blockSize = 4096
            plan.maxBlockSize = 256 << 10
            plan.depth = 32
            plan.verify = true
            plan.duration = 3_000_000_000
            let report = try inBackground({ try LoadRun(device, plan).run() }) {
                usleep(200_000)
                succession.disk.worker.kill()
                try succession.start(["--predecessor", "killed:signal 9"])
                usleep(200_000)
                try succession.handOver()
            }
            #expect(report.isGood && report.verifiedBlocks > 0, "\(report.text)")
            #expect(canary.changed == [])
            try device.close()
            // What was granted once is the guest's again.
            for _ in 0..<16 { try canary.take(256) }
            canary.write()
            try succession.disk.detach()
            #expect(canary.changed == [])
            try lab.finish()
        }
    }
}
