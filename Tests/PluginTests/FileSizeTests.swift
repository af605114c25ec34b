// SPDX-License-Identifier: BSD-2-Clause
// Image files that change under the plugin, and file systems that are full or odd.
import CLinux
import CPluginHarness
import Glibc
import PluginAPI
import PluginCheck
import Testing

@Suite struct FileSizeTests {
    let folder = TemporaryFolder()
    let plugin: Plugin

    init() throws { plugin = try Plugin("file") }

    @Test(arguments: FilePluginTests.modes)
    func growingAndShrinkingIsNoticed(options: [String: String]) throws {
        let path = folder.file("disk", size: 1 << 20)
        let disk = try Disk(plugin, path, options)
        let queue = try Queue(disk)
        #expect(truncate(path, 2 << 20) == 0)
        waitFor("the larger size", queue) { disk.info.size == 2 << 20 }
        #expect(harness_notified(disk.handle, UInt32(XBB_NOTIFY_INFO)) == 1)
        #expect(queue.write((2 << 20) - 512, [UInt8](repeating: 9, count: 512)) == 0)

        #expect(truncate(path, 512 << 10) == 0)
        waitFor("the smaller size", queue) { disk.info.size == 512 << 10 }
        #expect(queue.write(1 << 20, [UInt8](repeating: 9, count: 512)) == -EIO)
        var status = stat()
        #expect(stat(path, &status) == 0 && status.st_size == 512 << 10, "a write made the file grow again")
    }

    /// Before the change is noticed, the kernel's short read must not become zeroes.
    @Test(arguments: FilePluginTests.modes)
    func aReadBehindAVanishedEndFails(options: [String: String]) throws {
        let path = folder.file("disk", size: 1 << 20)
        let disk = try Disk(plugin, path, options)
        let queue = try Queue(disk)
        #expect(truncate(path, 64 << 10) == 0)
        #expect(queue.read(512 << 10, 4096).status == -EIO, "all of it behind the end")
        #expect(queue.read(60 << 10, 8192).status == -EIO, "half of it behind the end")
        #expect(queue.read(0, 4096).status == 0)
        #expect(truncate(path, (64 << 10) + 700) == 0)
        #expect(queue.read(64 << 10, 4096).status == -EIO, "the end within a sector")
        #expect(disk.breaches == 0)
    }

    @Test func theHostCanResize() throws {
        let path = folder.file("disk", size: 1 << 20)
        let disk = try Disk(plugin, path)
        let queue = try Queue(disk)
        var error = xbb_error()
        #expect(harness_resize(disk.handle, 4 << 20, &error) == 0)
        #expect(disk.info.size == 4 << 20 && harness_notified(disk.handle, UInt32(XBB_NOTIFY_INFO)) == 1)
        #expect(queue.read((4 << 20) - 512, 512).status == 0)
        #expect(harness_resize(disk.handle, 1000, &error) == -EINVAL)
        #expect(harness_resize(disk.handle, .max, &error) == -EINVAL)
        #expect(harness_resize(disk.handle, 0, &error) == -EINVAL)
        #expect(disk.info.size == 4 << 20)
    }

    /// An image of no length is a lost disk, and a found one when it has a length again.
    @Test func anEmptiedImageIsLostAndFound() throws {
        let path = folder.file("disk", size: 1 << 20)
        let disk = try Disk(plugin, path)
        let queue = try Queue(disk)
        #expect(truncate(path, 0) == 0)
        waitFor("the loss", queue) { harness_notified(disk.handle, UInt32(XBB_NOTIFY_LOST)) == 1 }
        #expect(queue.read(0, 512).status == -EIO)
        #expect(truncate(path, 1 << 20) == 0)
        waitFor("the return", queue) { harness_notified(disk.handle, UInt32(XBB_NOTIFY_FOUND)) == 1 }
        #expect(queue.read(0, 512).status == 0)
    }

    // MARK: File systems

    /// A file system of its own in the folder, which goes away with it.
    private func mount(_ command: String) throws -> String {
        let place = "\(folder.path)/mount"
        let result = shell("mkdir -p \(place) && \(command) \(place)")
        try #require(result.status == 0, "this test needs root and mounts: \(result.output)")
        return place
    }

    @Test(arguments: FilePluginTests.modes)
    func aFullFileSystemIsNoSpace(options: [String: String]) throws {
        let place = try mount("mount -t tmpfs -o size=1m none")
        shell("truncate -s 8M \(place)/disk")
        let disk = try Disk(plugin, "\(place)/disk", options)
        let queue = try Queue(disk)
        let chunk = [UInt8](repeating: 7, count: 128 << 10)
        let statuses = (0..<16).map { queue.write(UInt64($0 * chunk.count), chunk) }
        #expect(statuses.prefix(6).allSatisfy { $0 == 0 }, "\(statuses)")
        #expect(statuses.suffix(4).allSatisfy { $0 == -ENOSPC }, "\(statuses)")
        #expect(queue.read(0, chunk.count).bytes == chunk)
        // Space that is given back can be used.
        #expect(queue.command(XBB_OP_DISCARD, 0, 512 << 10) == 0)
        #expect(queue.write(4 << 20, chunk) == 0)
        #expect(disk.breaches == 0)
    }

    @Test(arguments: [UInt64(11), 12])
    func tmpfsKeepsTheModel(seed: UInt64) throws {
        let place = try mount("mount -t tmpfs -o size=64m none")
        shell("truncate -s 4M \(place)/disk")
        var model = DataModel(size: 4 << 20, seed: seed)
        let disk = try Disk(plugin, "\(place)/disk")
        try model.run(on: Queue(disk), count: 800, depth: 16, seed: seed)
    }

    /// ext4 with 1 KiB blocks on a loop device: zeroing by ZERO_RANGE, real ENOSPC with direct I/O.
    @Test func ext4KeepsTheModelAndRunsFull() throws {
        shell("truncate -s 16M \(folder.path)/fs && mkfs.ext4 -q -b 1024 -O ^has_journal \(folder.path)/fs")
        let place = try mount("mount -o loop \(folder.path)/fs")
        shell("truncate -s 4M \(place)/disk; truncate -s 64M \(place)/large")
        do {
            let disk = try Disk(plugin, "\(place)/disk", ["direct": "on"])
            var model = DataModel(size: 4 << 20, seed: 21)
            try model.run(on: Queue(disk), count: 800, depth: 16, seed: 21)
            #expect(disk.breaches == 0)
        }
        let disk = try Disk(plugin, "\(place)/large", ["direct": "on"])
        let queue = try Queue(disk)
        let chunk = [UInt8](repeating: 7, count: 256 << 10)
        let statuses = (0..<64).map { queue.write(UInt64($0 * chunk.count), chunk) }
        #expect(statuses.first == 0 && statuses.last == -ENOSPC, "\(statuses)")
        #expect(disk.breaches == 0)
    }

    private func waitFor(_ what: String, _ queue: Queue, _ condition: () -> Bool) {
        for _ in 0..<100 where !condition() { queue.idle(milliseconds: 100) }
        #expect(condition(), "\(what) was not noticed")
    }
}
