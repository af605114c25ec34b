// SPDX-License-Identifier: BSD-2-Clause
// What plugins count by themselves is shown, whatever else their stats() does.
import Blkfront
import Foundation
import Testing

extension EndToEnd {
    @Suite struct PluginCounterTests {
        private func plugin(_ disk: Disk) throws -> [String: Any] {
            try #require(try disk.worker.ask("stats")["plugin"] as? [String: Any])
        }

        private func counters(_ disk: Disk) throws -> [String: Any] {
            try #require(try plugin(disk)["counters"] as? [String: Any])
        }

        @Test func countersOfAPluginAreShownUnderItsName() throws {
            let lab = try Lab()
            let disk = try lab.attach()
            let device = try disk.connect()
            #expect(try disk.load(device) { $0.count = 50 }.isGood)
            let shown = try plugin(disk)
            #expect(shown["name"] as? String == "file" && shown["error"] is NSNull, "\(shown)")
            let values = try counters(disk).values.compactMap { $0 as? Int }
            #expect(values.reduce(0, +) > 0, "\(shown)")
            // A plugin that counts nothing.
            let other = try lab.attach(51728, .plugin("error", "size=1M"))
            try eventually("the storage") { try other.worker.show("stage") == "ready" }
            #expect(try other.worker.ask("stats")["plugin"] is NSNull)
            try device.close()
            try lab.finish()
        }

        @Test func whatAPluginReportsIsBounded() throws {
            let lab = try Lab()
            let many = try lab.attach(51712, .plugin("evil", "attempt=stats_many"))
            try eventually("the storage") { try many.worker.show("stage") == "ready" }
            #expect(try counters(many).count == 64)
            let names = try lab.attach(51728, .plugin("evil", "attempt=stats_names"))
            try eventually("the storage") { try names.worker.show("stage") == "ready" }
            #expect(
                Set(try counters(names).keys) == [String(repeating: "x", count: 64), "?[31m?\"?"])
            let late = try lab.attach(51744, .plugin("evil", "attempt=stats_late"))
            try eventually("the storage") { try late.worker.show("stage") == "ready" }
            for _ in 0..<3 { #expect(Set(try counters(late).keys) == ["in-time"]) }
            let failing = try lab.attach(51760, .plugin("evil", "attempt=stats_error"))
            try eventually("the storage") { try failing.worker.show("stage") == "ready" }
            #expect(try plugin(failing)["error"] as? String == "its stats() failed")
            try lab.finish()
        }

        @Test func aPluginThatDoesNotReturnHoldsNobodyUp() throws {
            let lab = try Lab()
            let disk = try lab.attach(51712, .plugin("evil", "attempt=stats_hang"))
            let device = try disk.connect()
            for _ in 0..<3 {
                #expect(try (plugin(disk)["error"] as? String)?.has("has not returned") == true)
                #expect(try disk.worker.total("rejected_requests") == 0, "the host's own counters are there")
                try device.queues[0].withQueue { (queue) throws in
                    #expect(try queue.status(.read, sector: 0, byteCount: 4096) == 0)
                }
            }
            try device.close()
            try disk.detach()
            #expect(disk.log.has("plugin 'evil' does not return from stats()"))
            try lab.finish()
        }
    }
}
