// SPDX-License-Identifier: BSD-2-Clause
// The plugin for regular image files, on this machine's file systems.
import CLinux
import CPluginHarness
import Glibc
import PluginAPI
import PluginCheck
import Testing

@Suite struct FilePluginTests {
    let folder = TemporaryFolder()
    let plugin: Plugin

    init() throws { plugin = try Plugin("file") }

    static let modes: [[String: String]] = [["direct": "on"], ["direct": "off"], ["direct": "off", "threads": "1"]]

    @Test(arguments: modes, [UInt64(1), 2, 3])
    func randomRequestsLeaveWhatTheModelSays(options: [String: String], seed: UInt64) throws {
        let size = 4 << 20
        let path = folder.file("disk", size: size)
        var model = DataModel(size: size, seed: seed)
        do {
            let disk = try Disk(plugin, path, options)
            let queue = try Queue(disk)
            try model.run(on: queue, count: 1500, depth: 24, seed: seed)
            #expect(queue.command(XBB_OP_FLUSH) == 0)
            #expect(disk.breaches == 0)
            #expect(
                [XBB_OP_READ, XBB_OP_WRITE, XBB_OP_FLUSH, XBB_OP_DISCARD, XBB_OP_WRITE_ZEROES]
                    .allSatisfy { model.counts[$0, default: 0] > 0 })
        }
        let disk = try Disk(plugin, path, readOnly: true, ["direct": "off"])
        try model.check(Queue(disk), seed)
    }

    @Test func aBatchIsOneSystemCall() throws {
        let disk = try Disk(plugin, folder.file("disk", size: 8 << 20), ["direct": "on"])
        let queue = try Queue(disk, depth: 64)
        let requests = (0..<64).map { _ in Request() }
        for round in 0..<10 {
            for (index, request) in requests.enumerated() {
                request.set(index % 2 == 0 ? XBB_OP_READ : XBB_OP_WRITE, UInt64(index * 4096), 4096)
            }
            #expect(queue.submit(requests) == 64)
            #expect(disk.statistic("io-submit-calls") == UInt64(round + 1))
            #expect(queue.run() == 0)
            #expect(requests.allSatisfy { $0.status == 0 && !$0.handle.pointee.foreign })
        }
        #expect(disk.statistic("io-submitted") == 640)
        #expect(disk.statistic("helper-requests") == 0)
        // A discard among reads and writes takes no second call.
        for (index, request) in requests.enumerated() {
            request.set(index % 5 == 0 ? XBB_OP_DISCARD : XBB_OP_WRITE, UInt64(index * 4096), 4096)
        }
        #expect(queue.submit(requests) == 64)
        #expect(disk.statistic("io-submit-calls") == 11)
        #expect(queue.run() == 0)
        #expect(disk.statistic("helper-requests") == 13)
    }

    @Test func pollReapsWithoutTheEventLoop() throws {
        let disk = try Disk(plugin, folder.file("disk", size: 1 << 20), ["direct": "on"])
        let queue = try Queue(disk)
        let request = Request()
        request.set(XBB_OP_READ, 0, 4096)
        #expect(queue.submit([request]) == 1)
        let poll = try #require(plugin.table.poll)
        var reaped: UInt32 = 0
        // Only poll() runs here, no watch.
        while reaped == 0 { reaped += poll(harness_queue_pointer(queue.handle)) }
        #expect(reaped == 1 && request.handle.pointee.completions == 1)
        queue.run()
    }

    // MARK: Refusals

    @Test func refusesWhatIsNoImage() throws {
        let empty = folder.file("empty", size: 0)
        let tiny = folder.file("tiny", size: 100)
        shell("mkfifo \(folder.path)/fifo")
        let cases: [(path: String, readOnly: Bool, words: String)] = [
            (folder.path, true, "directory"), (empty, false, "empty"), (tiny, false, "smaller than one sector"),
            ("/dev/null", false, "not a regular file"), ("/dev/loop0", true, "rawdisk"),
        ]
        for (path, readOnly, words) in cases {
            let error = #expect(throws: Failure.self, "\(path)") { try Disk(plugin, path, readOnly: readOnly) }
            #expect(error?.description.contains(words) == true, "\(error?.description ?? "")")
            #expect((error?.code ?? 0) < 0)
        }
        let none = #expect(throws: Failure.self) { try Disk(plugin, nil) }
        #expect(none?.description.contains("no file") == true)
    }

    @Test func refusesADescriptorThatCannotDoIt() throws {
        let path = folder.file("disk", size: 1 << 20)
        let append = #expect(throws: Failure.self) { try Disk(plugin, path, openFlags: O_APPEND) }
        #expect(append?.description.contains("append") == true)
        let fd = clinux_open(path, O_RDONLY | O_CLOEXEC, 0)
        defer { close(fd) }
        // A disk that may be written over a descriptor that may not.
        let writable = #expect(throws: Failure.self) { try Disk(plugin, "/proc/self/fd/\(fd)", pretendWritable: true) }
        #expect(writable?.description.contains("read-only") == true)
    }

    @Test func dropsAPartialSectorAloud() throws {
        let disk = try Disk(plugin, folder.file("odd", size: 3 * 512 + 100))
        #expect(disk.info.size == 3 * 512)
        #expect(disk.log.contains("100 bytes"), "\(disk.log)")
        let queue = try Queue(disk)
        #expect(queue.read(1024, 512).status == 0)
        #expect(queue.read(1536, 512).status == -EIO)
    }

    // MARK: Locks

    @Test func oneWriterOrManyReaders() throws {
        let path = folder.file("disk", size: 1 << 20)
        do {
            let writer = try Disk(plugin, path)
            let second = #expect(throws: Failure.self) { try Disk(plugin, path) }
            #expect(second?.code == -EBUSY)
            #expect(throws: Failure.self) { try Disk(plugin, path, readOnly: true) }
            #expect(throws: Never.self) { try Disk(plugin, path, ["lock": "off"]) }
            _ = writer
        }
        let readers = try (0..<3).map { _ in try Disk(plugin, path, readOnly: true) }
        #expect(throws: Failure.self) { try Disk(plugin, path) }
        #expect(readers.count == 3)
    }

    @Test func locksAreThoseOfQemu() throws {
        let path = folder.file("disk", size: 1 << 20)
        do {
            let writer = try Disk(plugin, path)
            let write = shell("qemu-io -f raw -c 'write 0 512' \(path)")
            #expect(write.status != 0 && write.output.contains("lock"), "\(write.output)")
            let read = shell("qemu-img convert -f raw -O raw \(path) \(path).copy")
            #expect(read.status != 0 && read.output.contains("lock"), "\(read.output)")
            _ = writer
        }
        do {
            let reader = try Disk(plugin, path, readOnly: true)
            let write = shell("qemu-io -f raw -c 'write 0 512' \(path)")
            #expect(write.status != 0 && write.output.contains("lock"), "\(write.output)")
            let read = shell("qemu-img convert -f raw -O raw \(path) \(path).copy")
            #expect(read.status == 0, "\(read.output)")
            _ = reader
        }
        #expect(shell("qemu-io -f raw -c 'write 0 512' \(path)").status == 0)
    }

    @Test func respectsTheLockOfARunningQemu() throws {
        let path = folder.file("disk", size: 1 << 20)
        // qemu-io holds the image while it sleeps.
        let words = "\(folder.path)/words"
        let command = "stdbuf -o0 qemu-io -f raw -c 'write 0 512' -c 'sleep 600000' \(path) >\(words) 2>&1 & echo $!"
        let holder = try #require(Int32(shell(command).output.filter(\.isNumber)))
        defer { kill(holder, SIGKILL) }
        #expect(wait { shell("cat \(words)").output.contains("wrote") }, "qemu-io did not start")
        let error = #expect(throws: Failure.self) { try Disk(plugin, path) }
        #expect(error?.code == -EBUSY)
        kill(holder, SIGKILL)
        #expect(wait { (try? Disk(plugin, path)) != nil }, "the lock outlived its holder")
    }

    private func wait(_ condition: () -> Bool) -> Bool {
        for _ in 0..<1000 {
            if condition() { return true }
            usleep(20_000)
        }
        return false
    }

    // MARK: Holes

    @Test(arguments: modes)
    func discardsGiveSpaceBackAndReadAsZeroes(options: [String: String]) throws {
        let path = folder.file("disk", size: 1 << 20)
        let disk = try Disk(plugin, path, options)
        let queue = try Queue(disk)
        let data = [UInt8](repeating: 0x5a, count: 128 << 10)
        #expect(queue.write(0, data) == 0 && queue.write(512 << 10, data) == 0)
        #expect(queue.command(XBB_OP_FLUSH) == 0)
        let before = blocks(path)
        #expect(disk.can(XBB_CAP_DISCARD) && disk.can(XBB_CAP_DISCARD_ZEROES))
        #expect(queue.command(XBB_OP_DISCARD, 0, 128 << 10) == 0)
        #expect(blocks(path) <= before - 256)
        #expect(queue.read(0, 128 << 10).bytes.allSatisfy { $0 == 0 })
        #expect(queue.command(XBB_OP_DISCARD, 512 << 10, 512) == 0, "a part of a file system block")
        #expect(queue.read(512 << 10, 1024).bytes == [UInt8](repeating: 0, count: 512) + data.prefix(512))
        #expect(queue.command(XBB_OP_WRITE_ZEROES, 512 << 10, 64 << 10, flags: XBB_REQ_FUA) == 0)
        #expect(queue.read(512 << 10, 64 << 10).bytes.allSatisfy { $0 == 0 })
        #expect(queue.command(XBB_OP_WRITE_ZEROES, 512 << 10, 128 << 10, flags: XBB_REQ_MAY_UNMAP) == 0)
        #expect(queue.command(XBB_OP_DISCARD, 0, 4096, flags: XBB_REQ_SECURE) == -EOPNOTSUPP)
        #expect(disk.breaches == 0)
    }

    @Test func discardCanBeSwitchedOff() throws {
        let path = folder.file("disk", size: 1 << 20)
        let disk = try Disk(plugin, path, ["discard": "off"])
        let queue = try Queue(disk)
        #expect(!disk.can(XBB_CAP_DISCARD))
        #expect(queue.write(0, [UInt8](repeating: 1, count: 65536), flags: XBB_REQ_FUA) == 0)
        let before = blocks(path)
        #expect(queue.command(XBB_OP_WRITE_ZEROES, 0, 65536, flags: XBB_REQ_MAY_UNMAP) == 0)
        #expect(blocks(path) >= before, "a thick image must not lose its blocks")
    }

    @Test func extentsShowTheHoles() throws {
        let disk = try Disk(plugin, folder.file("disk", size: 1 << 20))
        let queue = try Queue(disk)
        let hole = UInt64(XBB_EXTENT_HOLE | XBB_EXTENT_ZERO)
        #expect(disk.extents() == [[0, 1 << 20, hole]])
        #expect(queue.write(256 << 10, [UInt8](repeating: 1, count: 65536)) == 0)
        #expect(queue.command(XBB_OP_FLUSH) == 0)
        let expected: [[UInt64]] = [
            [0, 256 << 10, hole], [256 << 10, 64 << 10, 0], [320 << 10, 704 << 10, hole],
        ]
        #expect(disk.extents() == expected)
        #expect(disk.extents(260 << 10, 4096) == [[260 << 10, 4096, 0]])
        #expect(disk.extents(300 << 10, 40 << 10) == [[300 << 10, 20 << 10, 0], [320 << 10, 20 << 10, hole]])
        #expect(disk.extents(1 << 20, 1) == [])
        #expect(disk.extents(.max, .max) == [])
    }

    // MARK: Rules of requests

    @Test(arguments: modes)
    func unknownRequestsFail(options: [String: String]) throws {
        let disk = try Disk(plugin, folder.file("disk", size: 1 << 20), options)
        let queue = try Queue(disk)
        #expect(queue.command(99, 0, 512) == -EOPNOTSUPP)
        #expect(queue.command(0, 0, 512) == -EOPNOTSUPP)
        let request = Request()
        request.set(XBB_OP_READ, 0, 512, flags: XBB_REQ_FUA)
        #expect(queue.perform(request) == -EINVAL)
        request.set(XBB_OP_WRITE, 0, 512, flags: 1 << 9)
        #expect(queue.perform(request) == -EINVAL)
        request.set(XBB_OP_READ, 1 << 20, 512)
        #expect(queue.perform(request) == -EIO)
        request.set(XBB_OP_READ, UInt64.max - 511, 512)
        #expect(queue.perform(request) == -EIO)
        // Neighbours of a bad request are not harmed.
        let good = (0..<8).map { _ in Request() }
        for (index, request) in good.enumerated() {
            request.set(index == 3 ? 77 : XBB_OP_READ, UInt64(index * 512), 512)
        }
        #expect(queue.submit(good) == 8)
        queue.run()
        #expect(good.map(\.status) == [0, 0, 0, -EOPNOTSUPP, 0, 0, 0, 0])
        #expect(disk.breaches == 0)
    }

    /// An iocb that the kernel refuses in the middle of a batch fails alone.
    @Test func anErrorOfIoSubmitIsThatRequestsAlone() throws {
        let disk = try Disk(plugin, folder.file("disk", size: 1 << 20), ["direct": "on"])
        let queue = try Queue(disk)
        let requests = (0..<8).map { _ in Request() }
        for (index, request) in requests.enumerated() { request.set(XBB_OP_WRITE, UInt64(index * 4096), 4096) }
        // Two iovecs at an address that nobody mapped: EFAULT from io_submit itself.
        requests[4].handle.pointee.req.pointee.iov = UnsafePointer(bitPattern: 4096)
        requests[4].handle.pointee.req.pointee.iovcnt = 2
        #expect(queue.submit(requests) == 8)
        #expect(queue.run() == 0)
        #expect(requests.map(\.status) == [0, 0, 0, 0, -EFAULT, 0, 0, 0])
        #expect(disk.breaches == 0)
    }

    @Test func moreThanTheDepthIsNotTaken() throws {
        let disk = try Disk(plugin, folder.file("disk", size: 1 << 20), ["direct": "on"])
        let queue = try Queue(disk, depth: 4)
        let requests = (0..<16).map { _ in Request() }
        for (index, request) in requests.enumerated() { request.set(XBB_OP_READ, UInt64(index * 4096), 4096) }
        #expect(queue.submit(requests) == 4)
        #expect(queue.run() == 0)
        #expect(requests.prefix(4).allSatisfy { $0.status == 0 })
        #expect(disk.breaches == 0)
    }

    /// Far more than fs.aio-max-nr has by default, if a queue took what its host could use.
    @Test func manyDeepQueuesLeaveRoomForOthers() throws {
        let disk = try Disk(plugin, folder.file("disk", size: 1 << 20), ["direct": "on"])
        let queues = try (0..<64).map { try Queue(disk, index: UInt32($0), depth: 65536) }
        for queue in queues { #expect(queue.read(0, 512).status == 0) }
    }

    @Test func sixteenQueuesWorkOnOneDisk() throws {
        let disk = try Disk(plugin, folder.file("disk", size: 1 << 20))
        let queues = try (0..<16).map { try Queue(disk, index: UInt32($0), depth: 16) }
        for (index, queue) in queues.enumerated() {
            #expect(queue.write(UInt64(index * 512), [UInt8](repeating: UInt8(index + 1), count: 512)) == 0)
        }
        for (index, queue) in queues.reversed().enumerated() {
            #expect(queue.read(UInt64((15 - index) * 512), 512).bytes.allSatisfy { $0 == UInt8(16 - index) })
        }
        #expect(disk.info.max_queues == 64)
    }
}

/// 512-byte blocks that a file has.
func blocks(_ path: String) -> Int {
    var status = stat()
    return stat(path, &status) == 0 ? Int(status.st_blocks) : -1
}
