// SPDX-License-Identifier: BSD-2-Clause
// The plugin for block devices, on loop devices.
import CLinux
import CPluginHarness
import Glibc
import PluginAPI
import PluginCheck
import Testing

/// A loop device over a file, detached with its owner.
final class LoopDevice {
    let path: String
    let backing: String
    private let folder: TemporaryFolder

    init(size: Int, _ options: String = "") throws {
        folder = TemporaryFolder()
        backing = folder.file("backing", size: size)
        let result = shell("losetup \(options) --find --show \(backing)")
        path = String(result.output.prefix { $0 != "\n" })
        guard result.status == 0, path.hasPrefix("/dev/") else {
            throw Failure(description: "NO LOOP DEVICE, and RawDisk is tested on nothing else: \(result.output)")
        }
    }

    deinit { shell("losetup -d \(path)") }
}

@Suite(.serialized) struct RawDiskTests {
    let plugin: Plugin

    init() throws { plugin = try Plugin("rawdisk") }

    @Test(arguments: [UInt64(1), 2], ["", "--sector-size 4096", "--direct-io=on"])
    func randomRequestsLeaveWhatTheModelSays(seed: UInt64, options: String) throws {
        let loop = try LoopDevice(size: 4 << 20, options)
        var model = DataModel(size: 4 << 20, seed: seed)
        do {
            let disk = try Disk(plugin, loop.path, openFlags: clinux_O_DIRECT)
            let queue = try Queue(disk)
            try model.run(on: queue, count: 1000, depth: 24, seed: seed)
            #expect(queue.command(XBB_OP_FLUSH) == 0)
            #expect(disk.breaches == 0)
        }
        let disk = try Disk(plugin, loop.path, readOnly: true)
        try model.check(Queue(disk), seed)
    }

    @Test func tellsTheLimitsOfTheDevice() throws {
        let plain = try LoopDevice(size: 1 << 20)
        let large = try LoopDevice(size: 1 << 20, "--sector-size 4096")
        let info = try Disk(plugin, plain.path).info
        #expect(info.size == 1 << 20 && info.logical_block == 512)
        let name = plain.path.dropFirst("/dev/".count)
        func sysfs(_ file: String) -> String {
            String(shell("cat /sys/block/\(name)/queue/\(file)").output.prefix { $0 != "\n" })
        }
        #expect(String(info.physical_block) == sysfs("physical_block_size"))
        #expect((info.caps & XBB_CAP_DISCARD != 0) == (sysfs("discard_max_bytes") != "0"))
        #expect(String(info.discard_granularity) == sysfs("discard_granularity"))
        #expect((info.caps & XBB_CAP_ROTATIONAL != 0) == (sysfs("rotational") == "1"))
        #expect((info.caps & XBB_CAP_FLUSH != 0) == (sysfs("write_cache") == "write back"))
        #expect(info.caps & XBB_CAP_DISCARD_SECURE == 0, "no loop device erases securely")
        #expect(info.mem_align >= 4 && info.mem_align <= 512)
        #expect(try Disk(plugin, large.path).info.logical_block == 4096)
        #expect(!(try Disk(plugin, plain.path, ["discard": "off"]).can(XBB_CAP_DISCARD)))
        #expect(try Disk(plugin, plain.path, readOnly: true).info.caps & ~XBB_CAP_ROTATIONAL == 0)
    }

    @Test func dataIsInTheBackingFile() throws {
        let loop = try LoopDevice(size: 1 << 20)
        let disk = try Disk(plugin, loop.path)
        let queue = try Queue(disk)
        let data = (0..<8192).map { UInt8(truncatingIfNeeded: $0 / 512 + 1) }
        #expect(queue.write(64 << 10, data, flags: XBB_REQ_FUA) == 0)
        #expect(fileBytes(loop.backing, 64 << 10, 8192) == data)
        #expect(queue.command(XBB_OP_DISCARD, 64 << 10, 4096) == 0)
        #expect(queue.command(XBB_OP_WRITE_ZEROES, 68 << 10, 2048) == 0)
        #expect(queue.command(XBB_OP_WRITE_ZEROES, 70 << 10, 1024, flags: XBB_REQ_MAY_UNMAP) == 0)
        #expect(queue.command(XBB_OP_FLUSH) == 0)
        // A loop device passes discards on to the file, where they make zeroes.
        #expect(fileBytes(loop.backing, 64 << 10, 7168).allSatisfy { $0 == 0 })
        #expect(fileBytes(loop.backing, 71 << 10, 1024) == Array(data.suffix(1024)))
        #expect(queue.command(XBB_OP_DISCARD, 0, 4096, flags: XBB_REQ_SECURE) == -EOPNOTSUPP)
        #expect(disk.breaches == 0)
    }

    @Test func switchesToDirectIOAndBack() throws {
        let loop = try LoopDevice(size: 1 << 20)
        let fd = clinux_open(loop.path, O_RDWR | O_CLOEXEC, 0)
        defer { close(fd) }
        let disk = try Disk(plugin, loop.path)
        #expect(clinux_fcntl_int(disk.fd, F_GETFL, 0) & clinux_O_DIRECT != 0)
        let queue = try Queue(disk, depth: 32)
        let requests = (0..<32).map { _ in Request() }
        for (index, request) in requests.enumerated() { request.set(XBB_OP_READ, UInt64(index * 512), 512) }
        #expect(queue.submit(requests) == 32 && disk.statistic("io-submit-calls") == 1)
        queue.run()
        #expect(disk.statistic("helper-requests") == 0 && disk.statistic("io-completed") == 32)
    }

    @Test func aNewSizeIsNoticed() throws {
        let loop = try LoopDevice(size: 1 << 20)
        let disk = try Disk(plugin, loop.path)
        let queue = try Queue(disk)
        #expect(truncate(loop.backing, 2 << 20) == 0)
        #expect(shell("losetup -c \(loop.path)").status == 0)
        for _ in 0..<100 where disk.info.size != 2 << 20 { queue.idle(milliseconds: 100) }
        #expect(disk.info.size == 2 << 20)
        #expect(harness_notified(disk.handle, UInt32(XBB_NOTIFY_INFO)) == 1)
        #expect(queue.read((2 << 20) - 512, 512).status == 0)
    }

    @Test func aDeviceWithoutSizeIsLostAndFound() throws {
        let loop = try LoopDevice(size: 1 << 20)
        let disk = try Disk(plugin, loop.path)
        let queue = try Queue(disk)
        for (size, what) in [(0, XBB_NOTIFY_LOST), (1 << 20, XBB_NOTIFY_FOUND)] {
            #expect(truncate(loop.backing, size) == 0)
            #expect(shell("losetup -c \(loop.path)").status == 0)
            for _ in 0..<100 where harness_notified(disk.handle, UInt32(what)) == 0 { queue.idle(milliseconds: 100) }
            #expect(harness_notified(disk.handle, UInt32(what)) == 1)
            #expect(queue.read(0, 512).status == (size == 0 ? -EIO : 0))
        }
    }

    @Test func refusesWhatIsNoBlockDevice() throws {
        let folder = TemporaryFolder()
        let file = folder.file("disk", size: 1 << 20)
        for (path, readOnly, words) in [
            (file, false, "plugin file"), (folder.path, true, "directory"), ("/dev/null", false, "character device"),
        ] {
            let error = #expect(throws: Failure.self, "\(path)") { try Disk(plugin, path, readOnly: readOnly) }
            #expect(error?.description.contains(words) == true, "\(error?.description ?? "")")
        }
        let readOnly = try LoopDevice(size: 1 << 20, "--read-only")
        let error = #expect(throws: Failure.self) { try Disk(plugin, readOnly.path) }
        #expect(error?.description.contains("read-only") == true || error?.code == -EROFS || error?.code == -EACCES)
        #expect(throws: Never.self) { try Disk(plugin, readOnly.path, readOnly: true) }
    }

    /// The device's own errors come through: a loop device over a full file system cannot write.
    @Test func errorsOfTheDeviceArePassedOn() throws {
        let folder = TemporaryFolder()
        let place = "\(folder.path)/mount"
        let mounted = shell("mkdir \(place) && mount -t tmpfs -o size=1m none \(place) && truncate -s 8M \(place)/disk")
        try #require(mounted.status == 0, "this test needs root and mounts: \(mounted.output)")
        let attached = shell("losetup --find --show \(place)/disk")
        try #require(attached.status == 0, "NO LOOP DEVICE: \(attached.output)")
        let path = String(attached.output.prefix { $0 != "\n" })
        defer { shell("losetup -d \(path)") }
        let disk = try Disk(plugin, path)
        let queue = try Queue(disk)
        let chunk = [UInt8](repeating: 7, count: 256 << 10)
        // Direct writes, so the error is that of the request itself and not of a later flush.
        let statuses = (0..<8).map { queue.write(UInt64($0 * chunk.count), chunk, flags: XBB_REQ_FUA) }
        #expect(statuses.first == 0)
        #expect(statuses.suffix(3).allSatisfy { $0 == -ENOSPC || $0 == -EIO }, "\(statuses)")
        #expect(disk.breaches == 0)
    }
}

/// Bytes of a file as the system sees them.
func fileBytes(_ path: String, _ offset: Int, _ count: Int) -> [UInt8] {
    let fd = clinux_open(path, O_RDONLY | O_CLOEXEC, 0)
    defer { close(fd) }
    var bytes = [UInt8](repeating: 0xee, count: count)
    let got = pread(fd, &bytes, count, offset)
    return Array(bytes.prefix(max(got, 0)))
}
