// SPDX-License-Identifier: BSD-2-Clause
// open() with valid and invalid arguments, and what is left after close().
import PluginHost
import CLinux
import Glibc
import PluginAPI
import Support

extension Check {
    static let open = [
        Check(.open, "good", "the disk opens and says what it is") { bench throws(Failure) in
            let disk = try bench.disk()
            let info = try bench.info(disk)
            if info.capabilities.contains(.needsMemoryMap), try unsafe bench.plugin.table.mem_map == nil {
                throw Failure("get_info() says NEEDS_MEM_MAP, and there is no mem_map()")
            }
            let isReadOnly = try bench.plugin.library.isReadOnly
            try require(
                !isReadOnly || info.capabilities.isDisjoint(with: [.write, .discard, .writeZeroes]),
                "the plugin never writes (XBB_PLUGIN_RDONLY), and get_info() says that the disk can be written")
            for index in 0..<min(info.maxQueues, 4) { _ = try bench.queue(disk, index: UInt32(index)) }
        },
        Check(.open, "read-only", "a disk that is opened read-only has no way to change data") {
            bench throws(Failure) in
            let info = try bench.info(bench.disk(readOnly: true))
            try require(
                info.capabilities.isDisjoint(with: [.write, .discard, .writeZeroes]),
                "get_info() of a disk that was opened with XBB_OPEN_RDONLY says WRITE, DISCARD or WRITE_ZEROES")
        },
        Check(.open, "options", "extreme values of the options are served or refused with a message") {
            bench throws(Failure) in
            let schema = try bench.plugin.library.options
            for option in schema {
                for value in option.extremes {
                    bench.at("open() with \(option.name)=\(value.prefix(40))")
                    // Only a size option tells where data must be; others may be intended to make requests fail.
                    try bench.opensOrRefuses([option.name: value], reads: option.kind == .size)
                }
            }
        },
        Check(.open, "hostile", "a bad descriptor or image is refused with a message, or served") {
            bench throws(Failure) in
            if try bench.plugin.library.hasNoFile { throw .skip("the plugin opens no file") }
            for descriptor in [Int32(-1), 9999] {
                bench.at("open() with descriptor \(descriptor)")
                try bench.refuses(descriptor)
            }
            for image in try bench.hostileImages() {
                bench.at("open() of \(image.name)")
                let path = "\(bench.subject.folder)/hostile"
                try write(image.head, to: path)
                try bench.opensOrRefuses(image: path)
                try bench.opensOrRefuses(image: path, readOnly: true)
            }
        },
        Check(.open, "descriptor-kept", "the descriptor is still open after close()") { bench throws(Failure) in
            if try bench.plugin.library.hasNoFile { throw .skip("the plugin opens no file") }
            let disk = try bench.unkeptDisk()
            let spare = clinux_fcntl_int(disk.fd, F_DUPFD_CLOEXEC, 100)
            var before = stat()
            var after = stat()
            _ = unsafe fstat(spare, &before)
            let descriptor = disk.fd
            bench.at("close()")
            let queue = try bench.queue(disk)
            _ = try bench.perform(bench.firstRead(disk), on: queue)
            queue.close()
            disk.closeKeepingDescriptor()
            try require(
                unsafe fstat(descriptor, &after) == 0 && after.st_ino == before.st_ino,
                "close() closed the host's descriptor: it is borrowed, dup() it to have one of your own")
        },
        Check(.open, "leaks", "nothing is left after many times of open and close") { bench throws(Failure) in
            try bench.leaks(rounds: bench.subject.isQuick ? 50 : 1000) { () throws(Failure) in
                let disk = try bench.unkeptDisk()
                let queues = try (0..<min(bench.info(disk).maxQueues, 2)).map { index throws(Failure) in
                    try Queue(disk, index: UInt32(index), depth: 8, guarded: true)
                }
                for queue in queues { try bench.perform(bench.firstRead(disk), on: queue) }
                for queue in queues { queue.close() }
                disk.close()
            }
        },
        Check(.open, "failure-leaks", "nothing is left after many failures of open()") { bench throws(Failure) in
            if try bench.plugin.library.hasNoFile { throw .skip("the plugin opens no file") }
            try bench.leaks(rounds: bench.subject.isQuick ? 50 : 500) { () throws(Failure) in try bench.refuses(-1) }
        },
    ]
}

extension PluginOption {
    /// The extreme values that the schema allows.
    fileprivate var extremes: [String] {
        switch kind {
        case .bool: ["on", "off"]
        case .uint, .size:
            [bounds.lowerBound, bounds.upperBound, min(bounds.lowerBound, bounds.upperBound - 1) + 1].map(String.init)
        case .choice(let choices): choices
        case .string, .secret: ["", "x", "../../etc/passwd", "%s%n", String(repeating: "y", count: 5000)]
        case .unknown: []
        }
    }
}

extension Bench {
    /// A read of the first block.
    func firstRead(_ disk: Disk) throws(Failure) -> Request {
        let request = Request(XBB_OP_READ, 0, Int(try info(disk).logicalBlock))
        return request
    }

    /// open() with an invalid descriptor must fail.
    fileprivate func refuses(_ descriptor: Int32) throws(Failure) {
        do throws(Failure) {
            _ = try Disk(
                plugin, borrowing: descriptor, flags: 0, subject.options, format: subject.format)
        } catch {
            return try require(error.isRefusal, error.description)
        }
        throw Failure("open() accepts descriptor \(descriptor), which is not open")
    }

    /// open() with unusual arguments must yield a disk whose first and last block can be read, or a refusal with a
    /// message.
    fileprivate func opensOrRefuses(
        _ options: [String: String] = [:], image: String? = nil, readOnly: Bool = false, reads: Bool = true
    ) throws(Failure) {
        let disk: Disk
        do throws(Failure) {
            disk = try unkeptDisk(options, image: image, readOnly: readOnly)
        } catch {
            // What the host itself refuses never reaches the plugin.
            if error.code == 0 { return }
            return try require(error.isRefusal, error.description)
        }
        // The host may refuse the reported properties, such as a disk without a single block.
        if let info = try? DeviceInfo(validating: disk.info) {
            let queue = try Queue(disk, depth: 4, guarded: true)
            for offset in reads ? [0, info.size - UInt64(info.logicalBlock)] : [] {
                let request = Request(XBB_OP_READ, offset, Int(info.logicalBlock))
                at("a \(request.name) of what open() took")
                let status = queue.perform(request)
                try require(status <= 0, "a \(request.name) is not completed")
            }
            queue.close()
        }
        disk.close()
    }

    fileprivate func hostileImages() throws(Failure) -> [Sample] {
        var random = SplitMix64(seed: 5)
        let noise = (0..<65536).map { _ in UInt8(truncatingIfNeeded: random.next()) }
        var images = [
            Sample(name: "an empty file", head: []), Sample(name: "a file of one byte", head: [0]),
            Sample(name: "a file of 511 bytes", head: Array(noise.prefix(511))),
            Sample(name: "a file of noise", head: noise),
        ]
        if let path = subject.image, let image = Sample(ofFile: path) {
            let lengths = [4, 24, 71, 72, 103, 104, 112, 511, 512, 513, 4095, 4096, 16384]
            images += lengths.filter { $0 < image.head.count }.map { image.cut(to: $0) }
            for _ in 0..<(subject.isQuick ? 50 : 500) {
                var changed = image
                changed.name = "an image with changed bytes"
                for _ in 0...random.less(4) where !changed.head.isEmpty {
                    changed.head[random.less(min(changed.head.count, 128))] = UInt8(truncatingIfNeeded: random.next())
                }
                images.append(changed)
            }
        }
        return images
    }

    /// Repeats something many times and compares the process's resources before and after.
    fileprivate func leaks(rounds: Int, _ round: () throws(Failure) -> Void) throws(Failure) {
        for _ in 0..<20 { try round() }
        let (before, memory) = (Residue.now(), Allocations.live)
        for _ in 0..<rounds { try round() }
        let (after, left) = (Residue.now(), Allocations.live - memory)
        func leaked(_ what: String, _ count: Int) -> Failure {
            Failure(
                "\(rounds) times of open() and close() leave \(count) \(what) behind: give back all that open() takes")
        }
        if after.descriptors > before.descriptors {
            throw leaked("descriptors", after.descriptors - before.descriptors)
        }
        if after.threads > before.threads { throw leaked("threads", after.threads - before.threads) }
        // The allocator and the harness may grow a little.
        if after.mappings > before.mappings + rounds / 4 + 8 {
            throw leaked("mappings", after.mappings - before.mappings)
        }
        if left.blocks >= rounds { throw leaked("allocations of \(left.bytes) bytes", left.blocks) }
        note("\(rounds) rounds left \(max(left.blocks, 0)) allocations")
    }
}
