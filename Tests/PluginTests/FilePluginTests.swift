// SPDX-License-Identifier: BSD-2-Clause
// The plugin for regular image files, on this machine's file systems.
import CLinux
import Glibc
import PluginAPI
import Testing

@Suite struct FilePluginTests {
    let folder = TemporaryFolder()

    static let modes: [[String: String]] = [["direct": "on"], ["direct": "off"], ["direct": "off", "threads": "1"]]

    @Test(arguments: modes, [UInt64(1), 2, 3])
    func randomRequestsLeaveWhatTheModelSays(options: [String: String], seed: UInt64) throws {
        let size = 4 << 20
        let path = folder.file("disk", size: size)
        var model = DataModel(size: size, seed: seed)
        do {
            let disk = try Disk(Plugin("file"), path, options)
            let queue = try Queue(disk)
            try model.run(on: queue, count: 600, depth: 24, seed: seed)
            #expect(queue.command(XBB_OP_FLUSH) == 0)
            #expect(disk.breaches == 0)
        }
        let disk = try Disk(Plugin("file"), path, readOnly: true, ["direct": "off"])
        try model.check(Queue(disk), seed)
    }
}
