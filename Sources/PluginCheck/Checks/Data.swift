// SPDX-License-Identifier: BSD-2-Clause
// Reads return what was written: compared with an array, after close and open, on two disks at once, and with a
// reference.
import PluginHost
import CLinux
import Glibc
import PluginAPI

extension Check {
    static let data = [
        Check(.data, "model", "random requests leave what the same requests leave in an array") {
            bench throws(Failure) in
            for seed in UInt64(1)...(bench.subject.isQuick ? 1 : 5) {
                let disk = try bench.disk()
                let queue = try bench.queue(disk)
                let info = try bench.info(disk)
                for start in info.regions(length: 2 << 20) {
                    bench.at("random requests from byte \(start) on, seed \(seed)")
                    var model = try DataModel(of: queue, size: info.region(2 << 20), at: start, seed: seed)
                    try model.overwrite(queue)
                    try model.run(on: queue, count: bench.subject.isQuick ? 300 : 1500, depth: 16, seed: seed)
                }
                bench.close(disk, [queue])
            }
        },
        Check(.data, "reopen", "what was written is there after close and open") { bench throws(Failure) in
            let plugin = try bench.plugin
            if plugin.library.hasNoFile, !plugin.library.isNetwork {
                throw .skip("the plugin has no file to keep data in")
            }
            let disk = try bench.disk()
            let info = try bench.info(disk)
            let queue = try bench.queue(disk)
            bench.at("random requests")
            var model = try DataModel(of: queue, size: info.region(1 << 20), at: 0, seed: 7)
            try model.run(on: queue, count: 300, depth: 16, seed: 7)
            bench.close(disk, [queue])
            for readOnly in [false, true] {
                let again = try bench.disk(readOnly: readOnly)
                let reader = try bench.queue(again)
                bench.at("reading all of it after close and open")
                try model.check(reader, 7)
                bench.close(again, [reader])
            }
        },
        Check(.data, "two-disks", "two disks that are open at once do not mix") { bench throws(Failure) in
            let disks = try (bench.disk(), bench.secondDisk())
            let info = try bench.info(disks.0)
            try require(info.capabilities.contains(.write), skipping: "the disk cannot be written")
            let queues = try (bench.queue(disks.0), bench.queue(disks.1))
            let block = Int(info.logicalBlock)
            for (queue, value) in [(queues.0, UInt8(0xaa)), (queues.1, 0x55)] {
                let request = Request(XBB_OP_WRITE, 0, block)
                request.put([UInt8](repeating: value, count: block))
                try bench.perform(request, on: queue)
            }
            for (queue, value) in [(queues.0, UInt8(0xaa)), (queues.1, 0x55)] {
                let request = Request(XBB_OP_READ, 0, block)
                try bench.perform(request, on: queue)
                try require(
                    request.bytes.allSatisfy { $0 == value },
                    "what was written to one disk is read from another: keep nothing of a disk in global variables "
                        + "(--skip data.two-disks where options name one storage for both)")
            }
            bench.close(disks.0, [queues.0])
            bench.close(disks.1, [queues.1])
        },
        Check(.data, "reference", "the image reads as the reference, byte for byte") { bench throws(Failure) in
            guard let path = bench.subject.reference else { throw .skip("there is no --reference") }
            let disk = try bench.disk(readOnly: true)
            let queue = try bench.queue(disk)
            let file = unsafe clinux_open(path, O_RDONLY | O_CLOEXEC, 0)
            try require(file >= 0, "cannot open \(path)")
            let size = try bench.info(disk).size
            let length = UInt64(max(lseek(file, 0, SEEK_END), 0))
            try require(size == length, "the disk has \(size) bytes, and the reference \(length)")
            for offset in stride(from: 0, to: size, by: 256 << 10) {
                let count = Int(min(size - offset, 256 << 10))
                let request = Request(XBB_OP_READ, offset, count)
                try bench.perform(request, on: queue)
                var expected = [UInt8](repeating: 0, count: count)
                _ = unsafe pread(file, &expected, count, Int(offset))
                let bytes = request.bytes
                if bytes == expected { continue }
                throw Failure(
                    "byte \(offset + UInt64(zip(bytes, expected).prefix { $0 == $1 }.count)) is not that of the reference"
                )
            }
            bench.close(disk, [queue])
        },
    ]
}

/// Skips the check if the condition does not hold.
func require(_ condition: Bool, skipping reason: String) throws(Failure) {
    if !condition { throw .skip(reason) }
}

extension DeviceInfo {
    /// The length in whole blocks, limited to the disk.
    func region(_ length: Int) -> Int { Int(min(size, UInt64(length))) / Int(logicalBlock) * Int(logicalBlock) }

    /// The start and the end of the disk.
    func regions(length: Int) -> [UInt64] {
        let last = size - UInt64(region(length))
        return last == 0 ? [0] : [0, last]
    }
}

extension Bench {
    /// A second disk beside that of `disk()`, with its own image.
    func secondDisk() throws(Failure) -> Disk {
        if let first = subject.locations.first {
            guard let second = subject.locations.dropFirst().first, second != first else {
                throw .skip("give --location a second time, for another disk")
            }
            return try disk(location: second)
        }
        guard let image = subject.image, try !plugin.library.hasNoFile else { return try disk() }
        var status = stat()
        guard unsafe stat(image, &status) == 0, status.st_mode & S_IFMT == S_IFREG else {
            throw .skip("a block device is one disk")
        }
        let copy = "\(subject.folder)/second"
        try copySparse(image, to: copy)
        return try disk(image: copy)
    }
}
