// SPDX-License-Identifier: BSD-2-Clause
// Requests that take their time to the end do not keep a worker from anything else.
import Blkfront
import Blkif
import Foundation
import Testing

extension EndToEnd {
    @Suite struct DrainTests {
        /// What ends the connection.
        enum Cause: String, CaseIterable {
            case handOver, detach, frontendRemoved, backendRemoved
        }

        /// A frontend with requests of which each takes 1.5 s.
        private func begin(_ lab: Lab) throws -> (Disk, FrontDevice) {
            let disk = try lab.attach(51712, .plugin("delay", "size=16M,delay-us=1500000"))
            let device = try disk.connect()
            try device.queues[0].withQueue { (queue) throws in
                for _ in 0..<4 { try queue.submit(try queue.slot(), .write, sector: 8, byteCount: 4096) }
                try queue.publish()
            }
            try eventually("the requests are taken") { try disk.worker.total("reqs_received") == 4 }
            return (disk, device)
        }

        private func end(_ cause: Cause, _ disk: Disk, _ lab: Lab) throws {
            switch cause {
            case .handOver: disk.worker.signal(SIGTERM)
            case .detach:
                try disk.requestDetach()
                try lab.toolstack.remove(disk.front, in: .none)
            case .frontendRemoved: try lab.toolstack.remove(disk.front, in: .none)
            case .backendRemoved: try lab.toolstack.remove(disk.back, in: .none)
            }
        }

        @Test(arguments: Cause.allCases)
        func theControlThreadLivesWhileRequestsEnd(_ cause: Cause) throws {
            let lab = try Lab()
            let (disk, device) = try begin(lab)
            try end(cause, disk, lab)
            try eventually("it drains") { try disk.worker.show("stage") == "draining" }
            let shown = try disk.worker.ask("show")
            #expect(shown["in_flight"] as? Int == 4, "\(shown)")
            #expect(shown["draining_seconds"] as? Int ?? 99 < 2, "\(shown)")
            try disk.worker.set("poll_us", 0)
            // Watches are taken meanwhile, however many there are.
            for value in 0..<200 where cause != .backendRemoved { try disk.write("unknown", String(value)) }
            #expect(try disk.worker.show("stage") == "draining")
            if cause == .frontendRemoved {
                try eventually("it is closed") { try disk.key("state") == "6" }
                #expect(try disk.worker.show("in_flight") == "0")
                #expect(try disk.worker.ask("show")["draining_seconds"] as? Int == nil)
            } else {
                #expect(try disk.worker.awaitExit() == .exited(0), "\(disk.log)")
            }
            if cause == .handOver {
                // Answered before the connection was let go.
                try device.queues[0].withQueue { (queue) throws in
                    for _ in 0..<4 { #expect(try queue.next().status == 0) }
                }
            }
            device.dismantle()
            #expect(device.leakedGrants.isEmpty)
            try lab.finish()
        }

        @Test(arguments: Cause.allCases, [Cause.handOver, .backendRemoved])
        func oneEndOnTopOfAnother(_ first: Cause, _ second: Cause) throws {
            let lab = try Lab()
            let (disk, device) = try begin(lab)
            try end(first, disk, lab)
            try eventually("it drains") { try disk.worker.show("stage") == "draining" }
            if first != second { try end(second, disk, lab) }
            // A drain brings the disk to rest, too; but one that goes to another process is not paused there.
            let isHandedOver = first == .handOver || second == .handOver
            #expect(try disk.worker.ask("pause")["paused"] as? Bool == !isHandedOver)
            #expect(try disk.worker.awaitExit() == .exited(0), "\(disk.log)")
            let left = try #require(try lab.control.domain(lab.guest.id))
            #expect(left.mappedGrants == 0, "\(left)")
            device.dismantle()
            #expect(device.leakedGrants.isEmpty)
            try lab.finish()
        }
    }
}
