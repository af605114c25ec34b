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
            let disk = try lab.attach(51712, .plugin("delay", "size=16M,delay-us=1500000,hurries=off"))
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
            let pause = try disk.worker.ask("pause 600 brief")
            #expect(isHandedOver ? pause["error"] != nil : pause["paused"] as? Bool == true, "\(pause)")
            #expect(try disk.worker.awaitExit() == .exited(0), "\(disk.log)")
            let left = try #require(try lab.control.domain(lab.guest.id))
            #expect(left.mappedGrants == 0, "\(left)")
            device.dismantle()
            #expect(device.leakedGrants.isEmpty)
            try lab.finish()
        }

        // MARK: What the frontend still asks for

        /// How a frontend leaves with requests on its ring.
        enum Leaving: String, CaseIterable {
            case closing, closed, removed
        }

        /// Linux waits in del_gendisk() for each of its requests, so one that is never answered stops all of its devices.
        @Test(arguments: Leaving.allCases)
        func whatTheRingHoldsIsAnswered(_ leaving: Leaving) throws {
            let lab = try Lab()
            let disk = try lab.attach(51712, .plugin("null", "size=16M"))
            let device = try disk.connect()
            // The worker cannot take a request before it learns that the frontend leaves.
            disk.worker.signal(SIGSTOP)
            try device.queues[0].withQueue { (queue) throws in
                for _ in 0..<32 { try queue.submit(try queue.slot(), .read, sector: 8, byteCount: 4096) }
                try queue.publish()
            }
            switch leaving {
            case .closing: try device.setState(.closing)
            case .closed: try device.setState(.closed)
            case .removed: try lab.toolstack.remove(disk.front, in: .none)
            }
            disk.worker.signal(SIGCONT)
            try device.queues[0].withQueue { (queue) throws in
                for _ in 0..<32 { #expect(try queue.next().status == 0) }
            }
            try disk.requestDetach()
            if leaving == .closing { try device.setState(.closed) }
            #expect(try disk.worker.awaitExit() == .exited(0), "\(disk.log)")
            device.dismantle()
            #expect(device.leakedGrants.isEmpty)
            try lab.finish()
        }

        /// After a forced detach the guest goes on until it has noticed.
        @Test func aFrontendThatWasRemovedIsServedUntilItRests() throws {
            let lab = try Lab()
            let disk = try lab.attach(51712, .plugin("null", "size=16M"))
            let device = try disk.connect()
            try disk.requestDetach()
            try lab.toolstack.remove(disk.front, in: .none)
            try eventually("it drains") { try disk.worker.show("stage") == "draining" }
            try device.queues[0].withQueue { (queue) throws in
                for _ in 0..<64 {
                    let id = try queue.slot()
                    try queue.submit(id, .read, sector: 8, byteCount: 4096)
                    try queue.publish()
                    #expect(try queue.finish(id) == 0)
                }
            }
            #expect(try disk.worker.awaitExit() == .exited(0), "\(disk.log)")
            device.dismantle()
            #expect(device.leakedGrants.isEmpty)
            try lab.finish()
        }

        /// Whoever never rests cannot keep a disk that was taken from it.
        @Test func aFrontendThatGoesOnIsCutOff() throws {
            let lab = try Lab()
            let disk = try lab.attach(51712, .plugin("null", "size=16M"))
            let device = try disk.connect()
            try disk.requestDetach()
            try lab.toolstack.remove(disk.front, in: .none)
            try device.queues[0].withQueue { (queue) throws in
                while try disk.key("state") == "5" && queue.inFlight == 0 {
                    try queue.submit(try queue.slot(), .read, sector: 8, byteCount: 4096)
                    try queue.publish()
                    for _ in 0..<50 where queue.inFlight > 0 {
                        if let done = try queue.nextCompletion() { queue.release(done.id) }
                        if queue.inFlight > 0 { _ = try queue.wait(timeout: 20) }
                    }
                }
            }
            #expect(try disk.worker.awaitExit() == .exited(0), "\(disk.log)")
            device.dismantle()
            #expect(device.leakedGrants.isEmpty)
            try lab.finish()
        }
    }
}
