// SPDX-License-Identifier: BSD-2-Clause
// A host that writes down what the kit tells it, and requests in memory of their own.
import Glibc
import PluginAPI
import PluginKit
import Synchronization

/// What was completed, in order: the request and its status.
struct Completion: Equatable {
    let request: UnsafeMutablePointer<xbb_req>?
    let queue: OpaquePointer?
    let status: Int32
}

/// C functions have no context, so there is one host; suites that use it are serialized below `PluginKit`.
enum FakeHost {
    nonisolated(unsafe) static var completions: [Completion] = []
    nonisolated(unsafe) static var lines: [String] = []
    nonisolated(unsafe) static var notifications: [UInt32] = []

    nonisolated(unsafe) static let table: UnsafeMutablePointer<xbb_host> = {
        let place = UnsafeMutablePointer<xbb_host>.allocate(capacity: 1)
        place.initialize(to: xbb_host())
        place.pointee.struct_size = UInt32(MemoryLayout<xbb_host>.size)
        place.pointee.abi_major = 1
        place.pointee.complete = { queue, request, status in
            FakeHost.completions.append(Completion(request: request, queue: queue, status: status))
        }
        place.pointee.log = { _, _, line in FakeHost.lines.append(line.map { String(cString: $0) } ?? "") }
        place.pointee.notify = { _, what in FakeHost.notifications.append(what) }
        return place
    }()

    static func reset() {
        (completions, lines, notifications) = ([], [], [])
    }
}

/// A request whose data are split over several buffers.
final class TestRequest {
    let pointer = UnsafeMutablePointer<xbb_req>.allocate(capacity: 1)
    private let parts: UnsafeMutablePointer<iovec>
    private let memory: UnsafeMutablePointer<UInt8>
    private let scratch = UnsafeMutableRawPointer.allocate(byteCount: 4096, alignment: 16)
    let count: Int

    init(_ operation: Int, offset: UInt64 = 0, parts sizes: [Int] = [], length: UInt64? = nil, flags: Int = 0) {
        count = sizes.reduce(0, +)
        memory = .allocate(capacity: max(count, 1))
        memory.initialize(repeating: 0xee, count: max(count, 1))
        parts = .allocate(capacity: max(sizes.count, 1))
        var place = 0
        for (index, size) in sizes.enumerated() {
            (parts + index).initialize(to: iovec(iov_base: memory + place, iov_len: size))
            place += size
        }
        pointer.initialize(to: xbb_req())
        pointer.pointee.op = UInt8(operation)
        pointer.pointee.flags = UInt16(flags)
        pointer.pointee.offset = offset
        pointer.pointee.length = length ?? UInt64(count)
        pointer.pointee.iov = UnsafePointer(parts)
        pointer.pointee.iovcnt = UInt32(sizes.count)
        pointer.pointee.ctx = scratch
    }

    deinit {
        pointer.deallocate()
        parts.deallocate()
        memory.deallocate()
        scratch.deallocate()
    }

    var bytes: [UInt8] {
        get { Array(UnsafeBufferPointer(start: memory, count: count)) }
        set { for (index, byte) in newValue.enumerated() { memory[index] = byte } }
    }
}

/// The mode of the test plugin.
enum Mode: String, OptionChoice {
    case fast
    case safe
}

/// One of each kind.
enum TestOptions {
    static let size = PluginOption.size("size", default: "64K", in: 512...(1 << 60), help: "bytes")
    static let count = PluginOption.count("count", in: 1...9, help: "must be given")
    static let flag = PluginOption.bool("flag", default: true, help: "on or off")
    static let text = PluginOption.text("text", default: "", help: "any text")
    static let secret = PluginOption.secret("secret", default: "", help: "hidden")
    static let mode = PluginOption.choice("mode", default: Mode.safe, help: "fast or safe")
    static let all: [any OptionSchema] = [size, count, flag, text, secret, mode]
    /// Not in the plugin's list.
    static let stray = PluginOption.bool("stray", default: false, help: "of nobody")
}

/// A disk that keeps what it was given.
final class TestDisk: StorageDisk {
    let info: DiskInfo
    let data: Mutex<DiskMemory>
    /// How many requests a queue takes of a batch.
    let appetite: Int
    let host: HostDisk
    let seen: String
    let hasStarted = Atomic<Bool>(false)
    let isClosed: @Sendable () -> Void

    init(_ opening: Opening) throws(PluginError) {
        let size = try opening[TestOptions.size]
        data = Mutex(try DiskMemory(size: size))
        info = DiskInfo(size: size, capabilities: [.write, .flush, .force])
        appetite = Int(try opening[TestOptions.count])
        host = opening.hostDisk
        let (flag, text, mode) = (
            try opening[TestOptions.flag], try opening[TestOptions.text], try opening[TestOptions.mode]
        )
        seen = "\(flag) \(text) \(mode) \(try opening[TestOptions.secret]) \(opening.format) \(opening.label)"
        if text == "stray" { _ = try opening[TestOptions.stray] }
        isClosed = { Living.disks.wrappingSubtract(1, ordering: .relaxed) }
        Living.disks.wrappingAdd(1, ordering: .relaxed)
    }

    deinit { isClosed() }

    func start() throws(PluginError) {
        hasStarted.store(true, ordering: .relaxed)
        if appetite == 9 { throw PluginError(EBUSY, "nine is too much") }
    }

    func openQueue(_ parameters: QueueParameters) throws(PluginError) -> TestQueue {
        if parameters.depth == 0 { throw .invalid("a queue without depth") }
        return TestQueue(self)
    }

    func close() { host.log(.info, "closed after \(seen)") }
}

/// Counts objects, to see that none is left.
enum Living {
    static let disks = Atomic<Int>(0)
    static let queues = Atomic<Int>(0)
}

final class TestQueue: StorageQueue {
    private let disk: TestDisk

    init(_ disk: TestDisk) {
        self.disk = disk
        Living.queues.wrappingAdd(1, ordering: .relaxed)
    }

    deinit { Living.queues.wrappingSubtract(1, ordering: .relaxed) }

    func submit(_ batch: inout RequestBatch) {
        var left = disk.appetite
        while left > 0, let request = batch.next() {
            left -= 1
            let outcome: Outcome = disk.data.withLock { data in
                switch request.operation {
                case .read: request.read(from: data)
                case .write: request.write(to: &data)
                case .flush: .done
                default: .unsupported
                }
            }
            request.complete(outcome)
        }
    }
}

let testPlugin = Plugin(
    name: "test", version: "7", description: "A plugin of the tests", formats: ["one", "two"], options: TestOptions.all,
    hasFile: true
) { opening throws(PluginError) in try TestDisk(opening) }
