// SPDX-License-Identifier: BSD-2-Clause
// Plugins that are missing, that fail, and that break their contract.
import Blkfront
import Blkif
import Foundation
import Testing

extension EndToEnd {
    @Suite struct PluginTests {
        @Test func aMissingPluginIsNamed() throws {
            let lab = try Lab()
            let disk = try lab.attach(51712, .plugin("qcow2"))
            try disk.awaitError("qcow2")
            #expect(try disk.key("hotplug-error")?.contains("no plugin serves format 'qcow2'") == true)
            #expect(try disk.key("hotplug-status") == "error")
            #expect(try disk.worker.ask("ping")["pid"] != nil)
            try lab.finish()
        }

        @Test(arguments: ["../../etc", "Error", "", "-", "a b", String(repeating: "x", count: 300)])
        func aSenselessFormatIsRefused(format: String) throws {
            let lab = try Lab()
            let disk = try lab.attach(51712, .plugin(format))
            try disk.awaitError("and '-'")
            try lab.finish()
        }

        @Test func pluginsThatOthersCanChangeAreNotLoaded() throws {
            let lab = try Lab()
            chmod(lab.plugins, 0o775)
            let folder = try lab.attach(51712, .plugin("error"))
            try folder.awaitError("can be written by others")
            #expect(try folder.key("hotplug-error")?.contains("chmod go-w") == true)
            chmod(lab.plugins, 0o755)
            chmod("\(lab.plugins)/xbb-error.so", 0o757)
            let file = try lab.attach(51728, .plugin("error"))
            try file.awaitError("can be written by others")
            try lab.finish()
        }

        @Test(arguments: ["unknown=1", "size=banana", "size=511", "size", "op=explode", "=,=,==", ",,,"])
        func badOptionsAreNamed(options: String) throws {
            let lab = try Lab()
            let disk = try lab.attach(51712, .plugin("error", options))
            if options == ",,," {
                try disk.connect().close()
            } else {
                try eventually("an error for \(options)") { try disk.error() != nil }
                #expect(try disk.key("hotplug-status") == "error")
            }
            try lab.finish()
        }

        /// Adjacent requests are joined, one sector of the disk fails: only the request that touches it does.
        @Test func aBadSectorFailsItsRequestAlone() throws {
            let lab = try Lab()
            let disk = try lab.attach(51712, .plugin("error", "size=16M,op=any,start=32K,length=512"))
            let device = try disk.connect()
            for operation in [BlockOperation.write, .read] {
                try device.queues[0].withQueue { (queue) throws in
                    var ids: [Int: Int] = [:]
                    for index in 0..<16 {
                        let id = try queue.slot()
                        ids[id] = index
                        try queue.submit(id, operation, sector: UInt64(index * 8), byteCount: 4096)
                    }
                    try queue.publish()
                    for _ in 0..<16 {
                        let completion = try queue.next()
                        #expect((completion.status != 0) == (ids[completion.id] == 8), "\(operation)")
                        queue.release(completion.id)
                    }
                }
            }
            #expect(try disk.worker.total("reqs_completed_with_error") == 2)
            try device.close()
            try lab.finish()
        }

        @Test(arguments: ["eio", "enospc", "einval", "etimedout", "enomem", "erofs", "enodev", "eagain", "short"])
        func everyErrorOfAPluginIsAnErrorForTheGuest(code: String) throws {
            let lab = try Lab()
            let disk = try lab.attach(51712, .plugin("error", "op=any,error=\(code),every=2"))
            let device = try disk.connect()
            try device.queues[0].withQueue { (queue) throws in
                var failures = 0
                for sector in 0..<20 {
                    if try queue.status(.write, sector: UInt64(sector * 8), byteCount: 4096, fill: 1) != 0 {
                        failures += 1
                    }
                }
                #expect(failures == 10)
            }
            try device.close()
            try lab.finish()
        }

        @Test(
            arguments: [
                "complete-twice", "accept-nothing", "short-accept", "accept-too-many", "wrong-size", "complete-refused",
                "positive-status",
            ])
        func aPluginThatBreaksTheRulesDoesNotBreakTheWorker(misbehaviour: String) throws {
            let lab = try Lab()
            let disk = try lab.attach(51712, .plugin("error", "misbehave=\(misbehaviour)"))
            if misbehaviour == "wrong-size" {
                try eventually("an answer") { try disk.error() != nil || disk.key("hotplug-status") != nil }
                try lab.finish()
                return
            }
            let device = try disk.connect()
            try device.queues[0].withQueue { (queue) throws in
                var waiting = 0
                for index in 0..<16 {
                    try queue.submit(try queue.slot(), .read, sector: UInt64(index * 16), byteCount: 4096)
                    waiting += 1
                }
                try queue.publish()
                // A plugin that takes nothing may leave its requests open until the device closes.
                if misbehaviour == "accept-nothing" { return }
                for _ in 0..<waiting { queue.release(try queue.next().id) }
            }
            #expect(try disk.worker.ask("ping")["pid"] != nil)
            try device.close()
            #expect(try disk.worker.ask("ping")["pid"] != nil)
            try lab.finish()
        }

        @Test func requestsInFlightAreFinishedBeforeTheRingIsGivenUp() throws {
            let lab = try Lab()
            let disk = try lab.attach(51712, .plugin("delay", "delay-us=500000,size=16M"))
            let device = try disk.connect()
            try device.queues[0].withQueue { (queue) throws in
                for index in 0..<24 {
                    try queue.submit(try queue.slot(), index % 2 == 0 ? .write : .read, sector: 0, byteCount: 45056)
                }
                try queue.publish()
            }
            try device.close()
            #expect(device.leakedGrants.isEmpty)
            let again = try disk.connect()
            try again.queues[0].withQueue { (queue) throws in
                #expect(try queue.status(.read, sector: 0, byteCount: 4096) == 0)
            }
            try again.close()
            try lab.finish()
        }

        @Test func aStorageThatIsLongInOpeningIsToldSo() throws {
            let lab = try Lab()
            let disk = try lab.attach(51712, .plugin("evil", "attempt=slow_open"))
            try eventually("it is said") { try disk.worker.show("stage").has("opening for ") }
            #expect(try disk.worker.show("path") == "/")
            // The control thread does not wait for it.
            #expect(try disk.worker.ask("stats")["totals"] != nil)
            let device = try disk.connect()
            #expect(try disk.worker.show("stage") == "connected")
            try device.close()
            try lab.finish()
        }

        @Test func aVerySlowPluginBlocksNoOtherDiskAndNoQuestion() throws {
            let lab = try Lab()
            let slow = try lab.attach(51712, .plugin("delay", "delay-us=3000000"))
            let quick = try lab.attach(51728)
            let device = try slow.connect()
            let neighbour = try quick.connect()
            try device.queues[0].withQueue { (queue) throws in
                for _ in 0..<32 { try queue.submit(try queue.slot(), .read, sector: 0, byteCount: 4096) }
                try queue.publish()
            }
            #expect(try quick.load(neighbour) { $0.count = 100 }.isGood)
            #expect(try slow.worker.ask("stats")["totals"] != nil)
            try device.queues[0].withQueue { (queue) throws in
                for _ in 0..<32 { #expect(try queue.next().status == 0) }
            }
            try neighbour.close()
            try device.close()
            try lab.finish()
        }
    }
}
