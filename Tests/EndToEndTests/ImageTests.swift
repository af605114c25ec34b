// SPDX-License-Identifier: BSD-2-Clause
// Images that are no images, that vanish, and that meet a full filesystem.
import Blkfront
import Blkif
import Foundation
import Testing

extension EndToEnd {
    @Suite struct ImageTests {
        @Test(
            arguments: [
                ("missing", "No such file"), ("empty", "empty"), ("tiny", "sector"), ("folder", "directory"),
                ("fifo", "neither"), ("loop", "cannot open"), ("device", "neither"),
            ])
        func whatIsNoImageIsRefusedWithAReason(kind: String, reason: String) throws {
            let lab = try Lab()
            let path = "\(lab.directory)/\(kind)"
            switch kind {
            case "empty": _ = try lab.image(kind, bytes: 0)
            case "tiny": _ = try lab.image(kind, bytes: 100)
            case "folder": mkdir(path, 0o755)
            case "fifo": mkfifo(path, 0o644)
            case "loop": symlink(path, path)
            case "device": symlink("/dev/zero", path)
            default: break
            }
            let disk = try lab.attach(51712, Storage(path: path))
            try disk.awaitError("")
            let error = try #require(try disk.key("hotplug-error"))
            #expect(error.contains(reason), "\(kind): \(error)")
            #expect(try disk.key("hotplug-status") == "error")
            #expect(try disk.worker.ask("ping")["pid"] != nil)
            try lab.finish()
        }

        @Test func anImageThatShrinksGivesErrorsAndNoInventedData() throws {
            let lab = try Lab()
            let disk = try lab.attach()
            let device = try disk.connect()
            try device.queues[0].withQueue { (queue) throws in
                #expect(try queue.status(.write, sector: 0, byteCount: 4096, fill: 1) == 0)
                #expect(try queue.status(.write, sector: 20_000, byteCount: 4096, fill: 2) == 0)
                #expect(truncate(disk.path, 1 << 20) == 0)
                #expect(try queue.read(sector: 20_000, byteCount: 4096).status != 0)
                #expect(try queue.read(sector: 0, byteCount: 4096) == (0, [UInt8](repeating: 1, count: 4096)))
                #expect(truncate(disk.path, 0) == 0)
                #expect(try queue.read(sector: 0, byteCount: 4096).status != 0)
            }
            #expect(try disk.worker.ask("ping")["pid"] != nil)
            try device.close()
            try lab.finish()
        }

        @Test func anImageThatIsDeletedServesOnUntilItIsClosed() throws {
            let lab = try Lab()
            let disk = try lab.attach()
            let device = try disk.connect()
            #expect(unlink(disk.path) == 0)
            #expect(try disk.load(device).isGood)
            try device.close()
            try lab.finish()
        }

        @Test func aFullFilesystemFailsWritesAndNothingElse() throws {
            let lab = try Lab()
            let mount = "\(lab.directory)/small"
            #expect(mkdir(mount, 0o755) == 0)
            try #require(run("/bin/mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", mount) == 0)
            defer { _ = run("/bin/umount", "-l", mount) }
            let path = "\(mount)/sparse.img"
            #expect(FileManager.default.createFile(atPath: path, contents: nil) && truncate(path, 16 << 20) == 0)
            let disk = try lab.attach(51712, Storage(path: path))
            let other = try lab.attach(51728)
            let device = try disk.connect()
            let neighbour = try other.connect()
            try device.queues[0].withQueue { (queue) throws in
                #expect(try queue.status(.write, sector: 0, byteCount: 4096, fill: 1) == 0)
                var failures = 0
                for index in 0..<256 {
                    if try queue.status(.write, sector: UInt64(index * 88), byteCount: 45056, fill: 3) != 0 {
                        failures += 1
                    }
                }
                #expect(failures > 150, "\(failures)")
                let (status, bytes) = try queue.read(sector: 0, byteCount: 4096)
                #expect(status == 0 && bytes.allSatisfy { $0 == 3 })
                #expect(try queue.read(sector: 30_000, byteCount: 4096) == (0, [UInt8](repeating: 0, count: 4096)))
            }
            #expect(try other.load(neighbour) { $0.count = 100 }.isGood)
            #expect(try disk.key("state") == "4")
            try neighbour.close()
            try device.close()
            try lab.finish()
        }

        private func run(_ words: String...) -> Int32 {
            let process = Process()
            process.executableURL = URL(fileURLWithPath: words[0])
            process.arguments = Array(words.dropFirst())
            guard (try? process.run()) != nil else { return -1 }
            process.waitUntilExit()
            return process.terminationStatus
        }
    }
}
