// SPDX-License-Identifier: BSD-2-Clause
// What a plugin is promised that bears one call at a time.
import Foundation
import Testing

extension EndToEnd {
    @Suite struct ThreadModelTests {
        /// A timer's function is a call too: get_info() waits for its end, on whatever thread it is.
        @Test func aTimerExcludesControlCalls() throws {
            let lab = try Lab()
            try lab.compilePlugin(
                "overlap", from: "\(packageDirectory)/Tests/OverlapPlugin/overlap.c",
                options: ["-D_DEFAULT_SOURCE", "-Wpedantic", "-Wl,-z,defs"])
            let disk = try lab.attach(51712, .plugin("overlap"))
            let device = try disk.connect()
            try eventually("the plugin's rounds to end", seconds: 30) { disk.log.contains("all rounds are over") }
            #expect(!disk.log.contains("two calls at a time"), "\(disk.log)")
            try device.close()
            try lab.finish()
        }
    }
}
