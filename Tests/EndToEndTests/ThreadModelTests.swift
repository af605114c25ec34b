// SPDX-License-Identifier: BSD-2-Clause
// What a plugin is promised that bears one call at a time.
import Foundation
import Testing

extension EndToEnd {
    @Suite struct ThreadModelTests {
        /// A timer's function is a call too: get_info() waits for its end, on whatever thread it is.
        @Test(arguments: [1, 4]) func aTimerExcludesControlCalls(rings: Int) throws {
            let lab = try Lab()
            try lab.compilePlugin(
                "overlap", from: "\(packageDirectory)/Tests/OverlapPlugin/overlap.c",
                options: ["-D_DEFAULT_SOURCE", "-Wpedantic", "-Wl,-z,defs"])
            let disk = try lab.attach(51712, .plugin("overlap"), arguments: ["--max-queues", "4"])
            let device = try disk.connect { $0.queues = rings }
            #expect(device.queues.count == rings)
            try eventually("the plugin's rounds to end", seconds: 30) { disk.log.contains("all rounds are over") }
            #expect(!disk.log.contains("two calls at a time"), "\(disk.log)")
            try device.close()
            try lab.finish()
        }

        /// The example in C has one queue. Whatever it bears, and whether it sleeps or not, four rings are served.
        @Test(arguments: ["QUEUE", "DEVICE", "PROCESS"], ["", " | XBB_PLUGIN_BLOCKING"])
        func fourRingsOfOneQueue(model: String, flag: String) throws {
            let lab = try Lab()
            let source = try String(contentsOfFile: "\(packageDirectory)/examples/c-memory/memory.c", encoding: .utf8)
                .replacingOccurrences(of: "XBB_THREADS_QUEUE", with: "XBB_THREADS_\(model)")
                .replacingOccurrences(of: ".flags = XBB_PLUGIN_NO_FD", with: ".flags = XBB_PLUGIN_NO_FD\(flag)")
            let file = "\(lab.directory)/memory.c"
            try source.write(toFile: file, atomically: false, encoding: .utf8)
            try lab.compilePlugin("memory", from: file, options: [])
            let disk = try lab.attach(51712, .plugin("memory", "size=16M"), arguments: ["--max-queues", "4"])
            for _ in 0..<2 {
                let device = try disk.connect { $0.queues = 4 }
                let report = try disk.load(device) { $0.count = 600 }
                #expect(report.isGood, "\(report.text)")
                #expect(disk.log.contains("share 1 of the plugin"))
                try device.close()
                try disk.awaitState(6)
            }
            try lab.finish()
        }
    }
}
