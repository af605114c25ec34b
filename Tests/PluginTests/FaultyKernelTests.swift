// SPDX-License-Identifier: BSD-2-Clause
// The engine over Linux AIO on a kernel with bad days: libaio's calls go through a shim that takes little, refuses
// fdatasync, or has a completion ring that cannot be read.  The shim also counts calls, independently of the plugin.
import CLinux
import CPluginHarness
import Glibc
import PluginAPI
import PluginCheck
import Testing

/// The shim and a copy of the plugin that was bound to it.
struct FaultyKernel {
    /// What the shim does to the thread that called it; `struct aio_shim` of the C text below.
    struct Settings {
        /// iocbs taken per call of io_submit; 0: all.
        var most: Int32 = 0
        /// Each n-th call of io_submit gives EAGAIN; 0: none.
        var busyEvery: Int32 = 0
        /// The ring's magic is spoilt after io_setup.
        var noRing: Int32 = 0
        /// io_setup gives EAGAIN for more than so many requests; 0: never.
        var mostRoom: Int32 = 0
        var submitCalls: Int32 = 0
        var getEventsCalls: Int32 = 0
    }

    let plugin: Plugin
    /// Another one for days without a readable ring: a plugin keeps its contexts, spoilt ones too.
    let ringless: Plugin
    /// Another one for days without room.
    let roomless: Plugin
    private let accessor: @convention(c) () -> UnsafeMutableRawPointer

    /// Loaded once: the copy of the plugin stays bound to the shim.
    static let shared = Result { try FaultyKernel() }

    private init() throws {
        let folder = TemporaryFolder()
        let source = "\(folder.path)/shim.c"
        let written = shell("cat > \(source) <<'END'\n\(FaultyKernel.source)\nEND\n")
        let built = shell("gcc -shared -fPIC -Wall -Werror -o \(folder.path)/shim.so \(source)")
        guard written.status == 0, built.status == 0 else { throw Failure(description: built.output) }
        // In the global scope, so that a library that is loaded later finds these functions before libaio's.
        guard let shim = dlopen("\(folder.path)/shim.so", RTLD_NOW | RTLD_GLOBAL), let symbol = dlsym(shim, "aio_shim")
        else { throw Failure(description: "dlopen of the shim") }
        let settingsOfThread = unsafeBitCast(symbol, to: (@convention(c) () -> UnsafeMutableRawPointer).self)
        accessor = settingsOfThread
        // Another file is another library to the loader, also if the plugin is loaded already.
        func copy(_ name: String) throws -> Plugin {
            shell("cp \(library("file")) \(folder.path)/libxbb-file-\(name).so")
            return try Plugin("file", library: "\(folder.path)/libxbb-file-\(name).so")
        }
        (plugin, ringless, roomless) = (try copy("copy"), try copy("ringless"), try copy("roomless"))
    }

    /// The settings of the calling thread.
    var mine: UnsafeMutablePointer<Settings> { accessor().assumingMemoryBound(to: Settings.self) }

    static let source = """
        #define _GNU_SOURCE
        #include <errno.h>
        #include <libaio.h>
        #include <sys/syscall.h>
        #include <unistd.h>

        struct aio_shim { int most, busy_every, no_ring, most_room, submit_calls, getevents_calls; };
        static __thread struct aio_shim mine;
        struct aio_shim *aio_shim(void) { return &mine; }

        static int done(long result) { return result < 0 ? -errno : (int)result; }

        int io_setup(int count, io_context_t *context)
        {
            if (mine.most_room && count > mine.most_room) return -EAGAIN;
            int result = done(syscall(SYS_io_setup, count, context));
            if (result == 0 && mine.no_ring) ((unsigned *)*context)[4] = 0;
            return result;
        }
        int io_destroy(io_context_t context) { return done(syscall(SYS_io_destroy, context)); }
        int io_submit(io_context_t context, long count, struct iocb **blocks)
        {
            mine.submit_calls++;
            if (mine.busy_every && mine.submit_calls % mine.busy_every == 0) return -EAGAIN;
            if (mine.most && count > mine.most) count = mine.most;
            return done(syscall(SYS_io_submit, context, count, blocks));
        }
        int io_getevents(io_context_t context, long least, long most, struct io_event *events, struct timespec *wait)
        {
            mine.getevents_calls++;
            return done(syscall(SYS_io_getevents, context, least, most, events, wait));
        }
        """
}

@Suite(.serialized) struct FaultyKernelTests {
    let folder = TemporaryFolder()

    static let days: [FaultyKernel.Settings] = [
        .init(), .init(most: 1), .init(most: 3), .init(busyEvery: 2), .init(most: 2, busyEvery: 3),
        .init(noRing: 1), .init(most: 3, busyEvery: 4, noRing: 1),
    ]

    @Test(arguments: 0..<days.count)
    func theModelHoldsOnABadDay(day: Int) throws {
        let kernel = try FaultyKernel.shared.get()
        kernel.mine.pointee = FaultyKernelTests.days[day]
        defer { kernel.mine.pointee = .init() }
        let plugin = FaultyKernelTests.days[day].noRing != 0 ? kernel.ringless : kernel.plugin
        let disk = try Disk(plugin, folder.file("disk", size: 2 << 20), ["direct": "on"])
        let queue = try Queue(disk)
        var model = DataModel(size: 2 << 20, seed: UInt64(100 + day))
        try model.run(on: queue, count: 600, depth: 20, seed: UInt64(100 + day))
        #expect(disk.breaches == 0)
        #expect(UInt64(kernel.mine.pointee.submitCalls) == disk.statistic("io-submit-calls"))
        #expect((kernel.mine.pointee.getEventsCalls > 0) == (FaultyKernelTests.days[day].noRing != 0))
    }

    @Test func aBatchIsOneCallAndReapingIsNone() throws {
        let kernel = try FaultyKernel.shared.get()
        kernel.mine.pointee = .init()
        let disk = try Disk(kernel.plugin, folder.file("disk", size: 1 << 20), ["direct": "on"])
        let queue = try Queue(disk)
        let requests = (0..<32).map { _ in Request() }
        for (index, request) in requests.enumerated() { request.set(XBB_OP_WRITE, UInt64(index * 512), 512) }
        for _ in 0..<10 {
            #expect(queue.submit(requests) == 32)
            #expect(queue.run() == 0)
        }
        #expect(kernel.mine.pointee.submitCalls == 10 && kernel.mine.pointee.getEventsCalls == 0)
    }

    /// EAGAIN in the middle: the prefix counts, also for what went to helper threads.
    @Test func whatComesAfterAFullKernelStaysWithTheHost() throws {
        let kernel = try FaultyKernel.shared.get()
        kernel.mine.pointee = .init(most: 2, busyEvery: 2)
        defer { kernel.mine.pointee = .init() }
        let disk = try Disk(kernel.plugin, folder.file("disk", size: 1 << 20), ["direct": "on"])
        let queue = try Queue(disk)
        let ops = [XBB_OP_DISCARD, XBB_OP_READ, 99, XBB_OP_READ, XBB_OP_DISCARD, XBB_OP_READ, XBB_OP_DISCARD, 99]
        let requests = ops.map { _ in Request() }
        for (index, request) in requests.enumerated() { request.set(ops[index], UInt64(index * 4096), 4096) }
        // Two reads are taken, the third meets EAGAIN.
        #expect(queue.submit(requests) == 5)
        #expect(queue.run() == 0)
        #expect(requests.prefix(5).map(\.status) == [0, 0, -EOPNOTSUPP, 0, 0])
        #expect(requests.suffix(3).allSatisfy { $0.handle.pointee.completions == 0 })
        #expect(disk.statistic("helper-requests") == 2)
        #expect(disk.breaches == 0)
    }

    /// The room is everybody's: what a disk takes of it is small, whatever a guest's ring is, and where there is none,
    /// threads serve the disk.
    @Test(arguments: [Int32(1), 128]) func aDiskTakesLittleRoomAndNeedsNone(_ mostRoom: Int32) throws {
        let kernel = try FaultyKernel.shared.get()
        kernel.mine.pointee = .init(mostRoom: mostRoom)
        defer { kernel.mine.pointee = .init() }
        let disk = try Disk(kernel.roomless, folder.file("disk", size: 2 << 20), ["direct": "on"])
        let isServedByThreads = mostRoom < 128
        #expect((disk.info.queue_depth == 128) == !isServedByThreads)
        let queue = try Queue(disk, depth: 1056)
        var model = DataModel(size: 2 << 20, seed: UInt64(mostRoom))
        try model.run(on: queue, count: 400, depth: 200, seed: UInt64(mostRoom))
        #expect(disk.breaches == 0)
        #expect((disk.statistic("io-submit-calls") == 0) == isServedByThreads)
    }

    /// A queue that comes later than the room of the first one.
    @Test func aQueueWithoutRoomIsServedByThreads() throws {
        let kernel = try FaultyKernel.shared.get()
        kernel.mine.pointee = .init()
        defer { kernel.mine.pointee = .init() }
        let disk = try Disk(kernel.plugin, folder.file("disk", size: 1 << 20), ["direct": "on"])
        let first = try Queue(disk)
        kernel.mine.pointee.mostRoom = 1
        let queues = try (1..<5).map { try Queue(disk, index: UInt32($0), depth: 32) }
        for queue in [first] + queues {
            #expect(queue.write(4096, [UInt8](repeating: 7, count: 512)) == 0)
            #expect(queue.read(4096, 512).bytes == [UInt8](repeating: 7, count: 512))
        }
        #expect(disk.breaches == 0)
    }

    @Test func nothingFitsAtAll() throws {
        let kernel = try FaultyKernel.shared.get()
        kernel.mine.pointee = .init(busyEvery: 1)
        defer { kernel.mine.pointee = .init() }
        let disk = try Disk(kernel.plugin, folder.file("disk", size: 1 << 20), ["direct": "on"])
        let queue = try Queue(disk)
        let requests = (0..<4).map { _ in Request() }
        for request in requests { request.set(XBB_OP_READ, 0, 512) }
        #expect(queue.submit(requests) == 0)
        #expect(disk.breaches == 0)
        kernel.mine.pointee.busyEvery = 0
        #expect(queue.submit(requests) == 4 && queue.run() == 0)
    }
}
