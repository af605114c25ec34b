// SPDX-License-Identifier: BSD-2-Clause
// The faces of the host's event loop, of images and of what only some disks can do, called as a host calls them.
import Glibc
import PluginAPI
import Synchronization
import Testing

@testable import PluginKit

/// A host with an event loop that the test turns by hand, and one file that images may name.
private enum LoopHost {
    typealias Call = (function: xbb_fn, argument: UnsafeMutableRawPointer?)
    nonisolated(unsafe) static var watches: [Int: (function: xbb_fd_fn, argument: UnsafeMutableRawPointer?)] = [:]
    nonisolated(unsafe) static var timers: [Int: Call] = [:]
    nonisolated(unsafe) static var posted: [Call] = []
    nonisolated(unsafe) static var said: [String] = []
    nonisolated(unsafe) static var refuses = false
    /// The plugin's own disk for the file.
    nonisolated(unsafe) static var childDevice: UnsafeMutableRawPointer?

    nonisolated(unsafe) static let table: UnsafeMutablePointer<xbb_host> = {
        let place = UnsafeMutablePointer<xbb_host>.allocate(capacity: 1)
        place.initialize(to: FakeHost.table.pointee)
        place.pointee.watch_add = { _, fd, events, function, argument, out in
            guard !LoopHost.refuses, let function else { return -EOPNOTSUPP }
            LoopHost.watches[Int(fd)] = (function, argument)
            LoopHost.said.append("watch \(fd) \(events)")
            out?.pointee = OpaquePointer(bitPattern: Int(fd))
            return 0
        }
        place.pointee.watch_set = { watch, events in LoopHost.said.append("set \(Int(bitPattern: watch)) \(events)") }
        place.pointee.watch_del = { watch in
            LoopHost.watches[Int(bitPattern: watch)] = nil
            LoopHost.said.append("unwatch \(Int(bitPattern: watch))")
        }
        place.pointee.timer_add = { _, function, argument, out in
            guard !LoopHost.refuses, let function else { return -EOPNOTSUPP }
            let number = LoopHost.timers.count + 1
            LoopHost.timers[number] = (function, argument)
            out?.pointee = OpaquePointer(bitPattern: number)
            return 0
        }
        place.pointee.timer_set = { timer, delay in LoopHost.said.append("timer \(Int(bitPattern: timer)) \(delay)") }
        place.pointee.timer_del = { timer in
            LoopHost.timers[Int(bitPattern: timer)] = nil
            LoopHost.said.append("no timer \(Int(bitPattern: timer))")
        }
        place.pointee.post = { _, function, argument in
            if let function { LoopHost.posted.append((function, argument)) }
        }
        place.pointee.child_open = { _, reference, out, failure in
            guard let reference, reference.pointee.name.0 == CChar(UInt8(ascii: "b")) else {
                return xbb_set_error(failure, -EPERM, "not this one")
            }
            out?.pointee = OpaquePointer(bitPattern: 0x77)
            return 0
        }
        place.pointee.child_fd = { _ in -1 }
        place.pointee.child_info = { _, info in
            info?.pointee.size = 4096
            return 0
        }
        place.pointee.child_submit = { _, _, request, done, argument in
            guard let request else { return -EINVAL }
            let part = request.pointee.iov[0]
            memset(part.iov_base, Int32(request.pointee.offset / 512), part.iov_len)
            done?(argument, request, 0)
            return 0
        }
        place.pointee.child_device = { _ in LoopHost.childDevice }
        return place
    }()

    static func reset() {
        (watches, timers, posted, said, refuses, childDevice) = ([:], [:], [], [], false, nil)
        FakeHost.reset()
    }
}

/// What the closures of a queue saw.
private final class Seen: @unchecked Sendable {
    var lines: [String] = []
}

/// A disk with all that a disk can have.
private final class FullDisk: ResizableDisk, MappedDisk, CountingDisk {
    let host: HostDisk
    let child: ChildDisk?
    let size = Atomic<UInt64>(4096)
    let seen = Seen()
    let fails: Bool

    init(_ opening: Opening) throws(PluginError) {
        host = opening.hostDisk
        fails = opening.label == "fails"
        child =
            opening.isBacking ? nil : try opening.child(ImageFileName(.backing, name: Array("base".utf8), format: []))
    }

    var info: DiskInfo {
        var info = DiskInfo(size: size.load(ordering: .relaxed), capabilities: [.write, .rotational])
        (info.memoryAlignment, info.maxBuffers, info.discardGranularity, info.discardOffset) = (512, 7, 4096, 1024)
        return info
    }

    func openQueue(_ parameters: QueueParameters) throws(PluginError) -> FullQueue {
        let queue = try FullQueue(self, parameters.queue)
        if fails { throw .invalid("as it was told") }
        return queue
    }

    func resize(to size: UInt64) throws(PluginError) {
        guard size > 0 else { throw .invalid("nothing") }
        self.size.store(size, ordering: .relaxed)
        host.notify(.info)
    }

    func map(from offset: UInt64, length: UInt64, _ report: (MappedRange) -> Bool) throws(PluginError) {
        guard report(MappedRange(offset, 512)) else { return }
        _ = report(MappedRange(offset + 512, length - 512, [.hole, .zeroes]))
    }

    var statistics: [(StaticString, UInt64)] { [("one", 1), ("many", 7)] }
}

/// Some other class of disks.
private final class OtherDisk: StorageDisk, StorageQueue {
    typealias Queue = OtherDisk
    var info: DiskInfo { DiskInfo(size: 512) }
    func submit(_ batch: inout RequestBatch) { while let request = batch.next() { request.complete() } }
}

private final class FullQueue: CancellingQueue, @unchecked Sendable {
    let disk: FullDisk
    let host: HostQueue
    var watch: Watch?
    var timer: QueueTimer?
    private var held = RequestList()

    init(_ disk: FullDisk, _ host: HostQueue) throws(PluginError) {
        (self.disk, self.host) = (disk, host)
        Living.queues.wrappingAdd(1, ordering: .relaxed)
        watch = try host.watch(9, for: [.read, .write]) { [self] events in
            disk.seen.lines.append("events \(events.rawValue)")
            if events == .write { watch?.remove() }
        }
        timer = try host.timer { [self] in
            disk.seen.lines.append("time")
            timer?.remove()
        }
        timer?.fire(after: 5)
    }

    deinit { Living.queues.wrappingSubtract(1, ordering: .relaxed) }

    static var isPolled: Bool { true }

    func submit(_ batch: inout RequestBatch) {
        while let request = batch.next() { held.append(request) }
    }

    func poll() -> Int {
        guard let request = held.removeFirst() else { return 0 }
        request.complete()
        return 1
    }

    func cancel(_ request: RequestID?) {
        var kept = RequestList()
        while let one = held.removeFirst() {
            if request == nil || one.id == request { one.complete(.failed(ECANCELED)) } else { kept.append(one) }
        }
        held = kept
    }
}

private enum FullInspector: ImageInspector {
    static func score(_ head: ImageHead) -> Int {
        head.first(2) == [1, 2] && head.last(1) == [4] && head.fileSize == 4 && head.format == "full" ? 90 : 0
    }

    static func inspect(_ opening: Opening) throws(PluginError) -> ImageDescription {
        if opening.label == "nul" {
            return ImageDescription(diskSize: 0, memory: 0, files: [ImageFileName(.data, name: [0], format: [])])
        }
        return ImageDescription(
            diskSize: 4096, memory: 77, traits: [.dirty, .encrypted],
            files: [ImageFileName(.backing, name: Array("base".utf8), format: Array("raw".utf8))])
    }
}

/// A library has one plugin, and this one of tests has two: each is the library's while it is tested.
private enum FullPlugin {
    static let made: (plugin: Plugin, loaded: LoadedPlugin?) = {
        let before = LoadedPlugin.current
        defer { LoadedPlugin.current = before }
        let plugin = Plugin(
            name: "full", version: "1", description: "All faces", hasFile: false, isBlocking: true, isReadOnly: true,
            inspector: FullInspector.self, scratch: 100
        ) { opening throws(PluginError) in try FullDisk(opening) }
        return (plugin, LoadedPlugin.current)
    }()
}

extension PluginKitSuite {
    @Suite final class FacesTests {
        private let before: LoadedPlugin?
        private let table: xbb_plugin

        init() {
            _ = testPlugin
            let made = FullPlugin.made
            before = LoadedPlugin.current
            LoadedPlugin.current = made.loaded
            table = made.plugin.entry.pointee
            LoopHost.reset()
            _ = table.load(LoopHost.table)
        }

        deinit { LoadedPlugin.current = before }

        private func message(_ error: xbb_error) -> String {
            withUnsafeBytes(of: error.message) { String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self) }
        }

        private func withOpening<Result>(
            label: String = "image", flags: UInt32 = 0, _ body: (UnsafePointer<xbb_open>) throws -> Result
        ) rethrows -> Result {
            try label.withCString { label in
                try "full".withCString { format in
                    var open = xbb_open()
                    open.struct_size = UInt32(MemoryLayout<xbb_open>.size)
                    (open.fd, open.flags, open.format, open.label) = (-1, flags, format, label)
                    return try body(&open)
                }
            }
        }

        private func open(label: String = "image") throws -> UnsafeMutableRawPointer {
            var (device, error) = (UnsafeMutableRawPointer?.none, xbb_error())
            let code = withOpening(label: label) { table.open($0, &device, &error) }
            try #require(code == 0, "\(message(error))")
            return try #require(device)
        }

        private func openQueue(_ device: UnsafeMutableRawPointer) -> (code: Int32, queue: UnsafeMutableRawPointer?) {
            var parameters = xbb_queue_params()
            parameters.depth = 8
            var (queue, error) = (UnsafeMutableRawPointer?.none, xbb_error())
            let code = table.queue_open(device, OpaquePointer(bitPattern: 0x1000), &parameters, &queue, &error)
            return (code, queue)
        }

        private func submit(_ queue: UnsafeMutableRawPointer?, _ requests: [TestRequest]) -> UInt32 {
            let list: [UnsafeMutablePointer<xbb_req>?] = requests.map(\.pointer)
            return list.withUnsafeBufferPointer { table.submit(queue, $0.baseAddress, UInt32(requests.count)) }
        }

        private func disk(_ device: UnsafeMutableRawPointer) throws -> DiskBox {
            try #require(unboxed(device, as: DiskBox.self))
        }

        @Test func aLocationIsToldByHostsThatKnowOne() throws {
            var told: [String] = []
            try "pool/image".withCString { location in
                try withOpening { request in
                    var open = request.pointee
                    told.append(try #require(Opening(&open, options: [])).location)
                    open.location = location
                    told.append(try #require(Opening(&open, options: [])).location)
                    open.struct_size = UInt32(MemoryLayout<xbb_open>.offset(of: \.location) ?? 0)
                    let older = try #require(Opening(&open, options: []))
                    do throws(PluginError) {
                        told.append(try older.location)
                    } catch {
                        told.append("\(error.code)")
                    }
                }
            }
            #expect(told == ["", "pool/image", "\(ENOTSUP)"])
        }

        @Test func theTableHasWhatTheDiskIs() {
            #expect(table.flags == UInt32(XBB_PLUGIN_NO_FD | XBB_PLUGIN_BLOCKING | XBB_PLUGIN_RDONLY))
            #expect(table.req_ctx_size == 100)
            #expect(table.probe != nil && table.inspect != nil && table.poll != nil && table.cancel != nil)
            #expect(table.resize != nil && table.extents != nil && table.stats != nil)
            let plain = testPlugin.entry.pointee
            #expect(plain.probe == nil && plain.inspect == nil && plain.poll == nil && plain.cancel == nil)
            #expect(plain.resize == nil && plain.extents == nil && plain.stats == nil && plain.drain_begin == nil)
        }

        @Test func watchesAndTimersEndWithTheQueueOrBefore() throws {
            let before = Living.queues.load(ordering: .relaxed)
            let device = try open()
            for isEarly in [true, false] {
                LoopHost.said = []
                let (code, queue) = openQueue(device)
                #expect(code == 0 && LoopHost.said == ["watch 9 3", "timer 1 5"])
                let watch = try #require(LoopHost.watches[9])
                let timer = try #require(LoopHost.timers[1])
                watch.function(watch.argument, 9, UInt32(XBB_FD_READ))
                if isEarly {
                    // Each removes itself while it runs.
                    watch.function(watch.argument, 9, UInt32(XBB_FD_WRITE))
                    timer.function(timer.argument)
                    #expect(LoopHost.watches.isEmpty && LoopHost.timers.isEmpty)
                }
                table.queue_close(queue)
                #expect(LoopHost.watches.isEmpty && LoopHost.timers.isEmpty)
                #expect(LoopHost.said.filter { $0 == "unwatch 9" }.count == 1)
                #expect(LoopHost.said.filter { $0 == "no timer 1" }.count == 1)
                #expect(Living.queues.load(ordering: .relaxed) == before, "closures keep no queue alive")
            }
            table.close(device)
        }

        @Test func aQueueThatDoesNotOpenLeavesNothing() throws {
            let before = Living.queues.load(ordering: .relaxed)
            let failing = try open(label: "fails")
            #expect(openQueue(failing).code == -EINVAL)
            #expect(LoopHost.watches.isEmpty && LoopHost.timers.isEmpty)
            table.close(failing)
            LoopHost.refuses = true
            let device = try open()
            #expect(openQueue(device).code == -EOPNOTSUPP)
            table.close(device)
            #expect(Living.queues.load(ordering: .relaxed) == before)
        }

        @Test func postedCallsRunInTheirOrderOrNotAtAll() {
            let seen = Seen()
            do {
                let queue = HostQueue(OpaquePointer(bitPattern: 0x1000)!, of: PluginHost.current!)
                for number in 1...3 { queue.post { seen.lines.append("\(number)") } }
                #expect(LoopHost.posted.count == 3)
                for call in LoopHost.posted.prefix(2) { call.function(call.argument) }
                #expect(seen.lines == ["1", "2"])
                queue.end()
            }
            #expect(seen.lines == ["1", "2"])
        }

        @Test func aWatchCanListenForSomethingElse() throws {
            let queue = HostQueue(OpaquePointer(bitPattern: 0x1000)!, of: PluginHost.current!)
            let watch = try queue.watch(4) { _ in }
            watch.listen(for: .write)
            watch.remove()
            watch.remove()
            watch.listen(for: .read)
            #expect(LoopHost.said == ["watch 4 1", "set 4 2", "unwatch 4"])
        }

        @Test func requestsArePolledForAndCancelled() throws {
            let device = try open()
            let (_, queue) = openQueue(device)
            let requests = (0..<4).map { _ in TestRequest(XBB_OP_READ, parts: [512]) }
            #expect(submit(queue, requests) == 4 && FakeHost.completions.isEmpty)
            #expect(table.poll(queue) == 1 && FakeHost.completions.map(\.request) == [requests[0].pointer])
            table.cancel(queue, requests[2].pointer)
            #expect(FakeHost.completions.map(\.request) == [0, 2].map { requests[$0].pointer })
            table.cancel(queue, nil)
            #expect(FakeHost.completions.map(\.status) == [0, -ECANCELED, -ECANCELED, -ECANCELED])
            #expect(table.poll(queue) == 0)
            table.queue_close(queue)
            table.close(device)
        }

        @Test func aPluginThatNeverWritesSaysSo() throws {
            var (device, error) = (UnsafeMutableRawPointer?.none, xbb_error())
            #expect(withOpening(flags: UInt32(XBB_OPEN_RDONLY)) { table.open($0, &device, &error) } == 0)
            let (_, queue) = openQueue(try #require(device))
            #expect(submit(queue, [TestRequest(XBB_OP_WRITE, parts: [512]), TestRequest(XBB_OP_FLUSH)]) == 2)
            #expect(FakeHost.completions.map(\.status) == [-EROFS, -EOPNOTSUPP])
            table.queue_close(queue)
            table.close(device)
        }

        @Test func sizesRangesAndCountersReachTheHost() throws {
            let device = try open()
            var (info, error) = (xbb_info(), xbb_error())
            _ = table.get_info(device, &info)
            #expect(
                (info.mem_align, info.max_iov, info.discard_granularity, info.discard_offset) == (512, 7, 4096, 1024))
            #expect(table.resize(device, 8192, &error) == 0 && FakeHost.notifications == [UInt32(XBB_NOTIFY_INFO)])
            _ = table.get_info(device, &info)
            #expect(info.size == 8192)
            #expect(table.resize(device, 0, &error) == -EINVAL && message(error) == "nothing")
            for (stop, expected) in [(0, ["0+512 0", "512+3584 3"]), (1, ["0+512 0"])] as [(Int32, [String])] {
                LoopHost.said = []
                var answer = stop
                let code = table.extents(
                    device, 0, 4096,
                    { argument, offset, length, flags in
                        LoopHost.said.append("\(offset)+\(length) \(flags)")
                        return argument?.load(as: Int32.self) ?? 1
                    }, &answer, &error)
                #expect(code == 0 && LoopHost.said == expected)
            }
            LoopHost.said = []
            _ = table.stats(
                device,
                { _, name, value in LoopHost.said.append("\(name.map { String(cString: $0) } ?? "") \(value)") }, nil)
            #expect(LoopHost.said == ["one 1", "many 7"])
            table.close(device)
        }

        @Test func aFileThatTheImageNamesIsRead() throws {
            let device = try open()
            let queue = HostQueue(OpaquePointer(bitPattern: 0x1000)!, of: PluginHost.current!)
            let child = try withOpening { open in
                try Opening(open, options: [])!.child(ImageFileName(.backing, name: Array("base".utf8), format: []))
            }
            #expect(try child.descriptor == nil && child.size() == 4096)
            var bytes = [UInt8](repeating: 0, count: 512)
            #expect(bytes.withUnsafeMutableBytes { child.read($0, at: 1024, on: queue) } == 0)
            #expect(bytes.allSatisfy { $0 == 2 })
            // Where submit() must not sleep, the answer would come to a frame that is gone.
            let blocking = LoadedPlugin.current
            LoadedPlugin.current = blocking.map {
                LoadedPlugin(options: $0.options, isBlocking: false, inspector: $0.inspector, open: $0.open)
            }
            #expect(bytes.withUnsafeMutableBytes { child.read($0, at: 1024, on: queue) } == -ENOSYS)
            LoadedPlugin.current = blocking
            table.close(device)
        }

        @Test func aFileOfThePluginsOwnFormatIsADisk() throws {
            var (below, error) = (UnsafeMutableRawPointer?.none, xbb_error())
            let code = withOpening(flags: UInt32(XBB_OPEN_BACKING)) { table.open($0, &below, &error) }
            #expect(code == 0)
            let child = try withOpening { open in
                try Opening(open, options: [])!.child(ImageFileName(.backing, name: Array("base".utf8), format: []))
            }
            #expect(child.device(as: FullDisk.self) == nil, "another plugin serves it")
            LoopHost.childDevice = below
            #expect(try child.device(as: FullDisk.self) === disk(#require(below)).disk)
            #expect(child.device(as: OtherDisk.self) == nil)
            // A host of ABI 1.1: what lies behind its table is not looked at.
            LoopHost.table.pointee.struct_size = UInt32(MemoryLayout<xbb_host>.offset(of: \.child_device) ?? 0)
            defer { LoopHost.table.pointee.struct_size = UInt32(MemoryLayout<xbb_host>.size) }
            #expect(child.device(as: FullDisk.self) == nil)
            table.close(below)
        }

        @Test(arguments: [("other", "not this one"), ("b\0", "a NUL in its name")])
        func aNameIsTheHostsToRefuse(name: String, words: String) {
            let error = withOpening { open in
                #expect(throws: PluginError.self) {
                    try Opening(open, options: [])!.child(ImageFileName(.backing, name: Array(name.utf8), format: []))
                }
            }
            #expect(error?.message.contains(words) == true)
            let long = ImageFileName(.backing, name: [UInt8](repeating: 98, count: 1024), format: [])
            let format = ImageFileName(.backing, name: [98], format: [UInt8](repeating: 98, count: 32))
            var reference = xbb_ref()
            #expect(#expect(throws: PluginError.self) { try long.fill(&reference) }?.code == ENAMETOOLONG)
            #expect(#expect(throws: PluginError.self) { try format.fill(&reference) }?.code == EINVAL)
        }

        @Test func imagesAreRecognizedAndDescribed() throws {
            let bytes: [UInt8] = [1, 2, 3, 4]
            let score = bytes.withUnsafeBufferPointer { bytes in
                "full".withCString { format in
                    var probe = xbb_probe()
                    (probe.head, probe.head_len, probe.tail, probe.tail_len) = (
                        bytes.baseAddress, 4, bytes.baseAddress, 4
                    )
                    (probe.file_size, probe.format) = (4, format)
                    return table.probe(&probe)
                }
            }
            #expect(score == 90 && table.probe(nil) == 0)
            var (image, error) = (xbb_image(), xbb_error())
            #expect(withOpening { table.inspect($0, &image, &error) } == 0)
            #expect(image.flags == UInt32(XBB_IMG_DIRTY | XBB_IMG_ENCRYPTED))
            #expect((image.virtual_size, image.metadata_memory, image.ref_count) == (4096, 77, 1))
            #expect(
                image.refs.0.kind == UInt32(XBB_REF_BACKING) && image.refs.0.name.3 == CChar(UInt8(ascii: "e"))
            )
            #expect(image.refs.0.format.0 == CChar(UInt8(ascii: "r")))
            #expect(withOpening(label: "nul") { table.inspect($0, &image, &error) } == -EINVAL)
            #expect(message(error) == "the image names a file with a NUL in its name")
        }

        @Test func aBatchCanBeTakenAsTheHostHasIt() {
            let requests = (0..<5).map { _ in TestRequest(XBB_OP_READ, parts: [512]) }
            let list: [UnsafeMutablePointer<xbb_req>?] = requests.map(\.pointer)
            list.withUnsafeBufferPointer { list in
                var batch = RequestBatch(
                    list.baseAddress!, count: 5, queue: nil, complete: FakeHost.table.pointee.complete,
                    refusals: Refusals(capabilities: [], undeclaredWrite: -EROFS))
                batch.next()?.complete()
                batch.acceptUnchecked { rest, count in
                    #expect(count == 4 && rest[0] == requests[1].pointer)
                    return 2
                }
                #expect(batch.taken == 3 && batch.remaining == 2)
            }
        }

        @Test func buffersAreWalkedFromFrontToBack() {
            let test = TestRequest(XBB_OP_READ, parts: [3, 0, 5, 1])
            let request = Request(test.pointer, queue: nil, complete: FakeHost.table.pointee.complete)
            var cursor = BufferCursor(request)
            var (sizes, value): ([Int], UInt8) = ([], 0)
            while case let memory = cursor.take(2), memory.count > 0 {
                sizes.append(memory.count)
                for index in memory.indices {
                    memory[index] = value
                    value += 1
                }
            }
            #expect(sizes == [2, 1, 2, 2, 1, 1] && test.bytes == Array(0..<9))
            #expect(request.vectors.count == 4 && request.scratch == test.pointer.pointee.ctx)
            request.complete()
        }

        @Test func aKeptDiskOutlivesItsMemory() throws {
            var template = Array("/tmp/xbb-kit-XXXXXX".utf8CString)
            let fd = mkstemp(&template)
            defer {
                close(fd)
                unlink(&template)
            }
            let path = String(decoding: template.dropLast().map { UInt8(bitPattern: $0) }, as: UTF8.self)
            for file in [nil, path] {
                var memory = try DiskMemory(size: 32768, keptIn: file)
                let write = TestRequest(XBB_OP_WRITE, offset: 0, parts: [32768])
                let request = Request(write.pointer, queue: nil, complete: FakeHost.table.pointee.complete)
                #expect(request.write(to: &memory, limit: 32768 - 512) == .done)
                request.complete()
                let hole = TestRequest(XBB_OP_DISCARD, offset: 1024, length: 20480)
                let discard = Request(hole.pointer, queue: nil, complete: FakeHost.table.pointee.complete)
                #expect(discard.zero(in: &memory) == .done)
                discard.complete()
                if file != nil { memory = try DiskMemory(size: 32768, keptIn: file) }
                let read = TestRequest(XBB_OP_READ, offset: 0, parts: [32768])
                let back = Request(read.pointer, queue: nil, complete: FakeHost.table.pointee.complete)
                #expect(back.read(from: memory) == .done)
                back.complete()
                let expected = (0..<32768).map { UInt8($0 < 1024 || (21504..<32256).contains($0) ? 0xee : 0) }
                #expect(read.bytes == expected)
            }
            let missing = #expect(throws: PluginError.self) { _ = try DiskMemory(size: 512, keptIn: "/nonexistent/x") }
            #expect(
                missing?.code == ENOENT && missing?.message.contains("cannot keep the disk in /nonexistent/x") == true)
        }
    }
}
