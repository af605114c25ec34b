// SPDX-License-Identifier: BSD-2-Clause
// The end of a worker while its guest lives: handing over, closing, dying.
import Blkfront
import Blkif
import Foundation
import Testing

extension EndToEnd {
    @Suite struct SuccessionTests {
        @Test(arguments: [1, 4])
        func aSuccessorGoesOnWithTheSameRing(pages: Int) throws {
            let lab = try Lab()
            let disk = try lab.attach()
            let device = try disk.connect { $0.ringPages = pages }
            for round in 0..<3 {
                let report = try disk.load(device) {
                    $0.count = 100
                    $0.seed = UInt64(round + 1)
                }
                #expect(report.isGood, "\(report.text)")
                try device.queues[0].withQueue { (queue) throws in
                    #expect(try queue.status(.write, sector: 8, byteCount: 4096, fill: UInt8(round)) == 0)
                }
                disk.worker.signal(SIGTERM)
                #expect(try disk.worker.awaitExit() == .exited(0))
                #expect(try disk.key("state") == "4", "the guest sees nothing of it")
                try disk.startWorker()
                try device.queues[0].withQueue { (queue) throws in
                    let (status, bytes) = try queue.read(sector: 8, byteCount: 4096)
                    #expect(status == 0 && bytes.allSatisfy { $0 == UInt8(round) })
                }
            }
            #expect(try disk.load(device).isGood)
            try device.close()
            try lab.finish()
        }

        @Test func aLoadDoesNotNoticeTheSuccession() throws {
            let lab = try Lab()
            let disk = try lab.attach()
            let device = try disk.connect { $0.ringPages = 4 }
            let reports = Reports()
            var plan = LoadPlan()
            plan.pattern = .randrw
            plan.maxBlockSize = 64 << 10
            plan.depth = 32
            plan.verify = true
            plan.duration = 3_000_000_000
            let run = try LoadRun(device, plan)
            let box = Box(run)
            Thread { reports.put(box.value.run()) }.start()
            for _ in 0..<3 {
                usleep(600_000)
                disk.worker.signal(SIGTERM)
                #expect(try disk.worker.awaitExit() == .exited(0))
                try disk.startWorker()
            }
            let report = reports.take()
            #expect(report.isGood, "\(report.text)")
            try device.close()
            try lab.finish()
        }

        @Test func anInterruptClosesTheDevice() throws {
            let lab = try Lab()
            let disk = try lab.attach()
            let device = try disk.connect()
            disk.worker.signal(SIGINT)
            try disk.awaitState(5)
            try device.close()
            #expect(try disk.worker.awaitExit() == .exited(0))
            #expect(try disk.key("state") == "6")
            try lab.finish()
        }

        @Test func aKilledWorkerLeavesNothingMappedAndTheGuestCanConnectAgain() throws {
            let lab = try Lab()
            let disk = try lab.attach(51712, .plugin("delay", "delay-us=200000,size=16M"))
            let device = try disk.connect()
            try device.queues[0].withQueue { (queue) throws in
                for _ in 0..<16 { try queue.submit(try queue.slot(), .read, sector: 0, byteCount: 4096) }
                try queue.publish()
            }
            usleep(20_000)
            disk.worker.kill()
            try eventually("the grants to be free") {
                let report = try #require(try lab.control.domain(lab.guest.id))
                return report.mappedGrants == 0 && report.grantHandles == 0
            }
            try disk.startWorker()
            try eventually("the successor") { try disk.worker.ask("ping")["pid"] != nil }
            try device.close()
            #expect(device.leakedGrants.isEmpty)
            let again = try disk.connect()
            #expect(try disk.load(again) { $0.count = 50 }.isGood)
            try again.close()
            try lab.finish()
        }

        @Test func theEndOfXenStoreIsNotTheEndOfADisk() throws {
            let lab = try Lab()
            let disk = try lab.attach()
            let device = try disk.connect()
            let idle = try lab.attach(51728)
            #expect(try disk.load(device) { $0.count = 50 }.isGood)
            lab.xen.stopStore()
            try eventually("it is noticed: \(disk.log)") { disk.log.has("cannot be detached any more") }
            #expect(try disk.worker.show("xenstore") == "lost")
            #expect(try disk.worker.show("stage") == "connected")
            // A load would end with XenStore, which its frontend watches; requests do not.
            try device.queues[0].withQueue { (queue) throws in
                #expect(try queue.status(.write, sector: 8, byteCount: 4096, fill: 7) == 0)
                let (status, bytes) = try queue.read(sector: 8, byteCount: 4096)
                #expect(status == 0 && bytes.allSatisfy { $0 == 7 })
            }
            // Who serves nobody ends, and xbbd starts it again when there is a XenStore.
            #expect(try idle.worker.awaitExit() == .exited(1))
            disk.worker.signal(SIGTERM)
            #expect(try disk.worker.awaitExit() == .exited(0), "\(disk.log)")
            lab.stop()
        }

        @Test func aSecondWorkerOnALockedImageIsRefused() throws {
            let lab = try Lab()
            let disk = try lab.attach()
            let device = try disk.connect()
            let second = try lab.attach(51728, Storage(path: disk.path))
            try second.awaitError(disk.path)
            #expect(try disk.load(device) { $0.count = 50 }.isGood)
            try device.close()
            try lab.finish()
        }
    }
}

/// A value that goes to another thread, which alone uses it from then on.
final class Box<Value>: @unchecked Sendable {
    let value: Value
    init(_ value: Value) { self.value = value }
}

/// One report from another thread.
final class Reports: @unchecked Sendable {
    private let condition = NSCondition()
    private var report: LoadReport?
    func put(_ report: LoadReport) {
        condition.withLock { self.report = report }
        condition.broadcast()
    }
    func take() -> LoadReport {
        condition.lock()
        defer { condition.unlock() }
        while true {
            if let report { return report }
            condition.wait()
        }
    }
}
