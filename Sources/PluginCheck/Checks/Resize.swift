// SPDX-License-Identifier: BSD-2-Clause
// A disk that changes its size, and buffers that a guest changes while they are in use.
import CLinux
import CPluginHarness
import Glibc
import PluginAPI

extension Check {
    static let resize = [
        Check(.resize, "grows", "a resize is done, and get_info() says so, or refused with a message") {
            bench throws(Failure) in
            guard try unsafe bench.plugin.table.resize != nil else { throw .skip("there is no resize()") }
            let disk = try bench.disk()
            let before = try bench.info(disk)
            for size in [before.size + 1 << 20, before.size, before.size + UInt64(before.logicalBlock)] {
                bench.at("resize() to \(size)")
                var error = xbb_error()
                let code = unsafe harness_resize(disk.handle, size, &error)
                if code != 0 {
                    let failure = error.refusal(of: "resize()", code)
                    try require(failure.isRefusal, failure.description)
                    throw .skip("resize() says: \(failure)")
                }
                let now = try bench.info(disk).size
                try require(now == size, "resize() to \(size) succeeds, and get_info() says \(now)")
                let queue = try bench.queue(disk)
                let request = Request(XBB_OP_READ, size - UInt64(before.logicalBlock), Int(before.logicalBlock))
                try bench.perform(request, on: queue)
                queue.close()
            }
            bench.close(disk, [])
        },
        Check(.resize, "refuses", "an impossible size is refused, and nothing changes") { bench throws(Failure) in
            guard try unsafe bench.plugin.table.resize != nil else { throw .skip("there is no resize()") }
            let disk = try bench.disk()
            let before = try bench.info(disk).size
            for size in [0, 1, before + 1, .max] {
                bench.at("resize() to \(size)")
                var error = xbb_error()
                let code = unsafe harness_resize(disk.handle, size, &error)
                try require(code != 0, "resize() to \(size) bytes succeeds")
                let failure = error.refusal(of: "resize()", code)
                try require(failure.isRefusal, failure.description)
                try require(try bench.info(disk).size == before, "a resize() that was refused changed the size")
            }
            bench.close(disk, [])
        },
    ]

    static let mutation = [
        Check(.mutation, "writes", "of a buffer that changes under way each byte is stored in one of its states") {
            bench throws(Failure) in
            let disk = try bench.disk()
            let info = try bench.info(disk)
            try require(info.capabilities.contains(.write), skipping: "the disk cannot be written")
            try require(
                !info.capabilities.contains(.stableBuffers), skipping: "the host hands over copies (STABLE_BUFFERS)")
            let queue = try bench.queue(disk)
            let length = min(info.region(64 << 10), Int(info.maxTransfer))
            let request = Request()
            let states = [UInt8(HARNESS_MUTATION_A), UInt8(HARNESS_MUTATION_B)]
            let deadline = clinux_monotonic_ns() + (bench.subject.isQuick ? 1 : 4) * 1_000_000_000
            while clinux_monotonic_ns() < deadline {
                bench.at("a write whose buffers change")
                request.set(XBB_OP_WRITE, 0, length)
                request.put([UInt8](repeating: UInt8(HARNESS_MUTATION_A), count: length))
                try require(unsafe harness_mutate(request.handle), "cannot start a thread")
                var stored: [UInt8] = []
                var status: Int32 = 0
                for _ in 0..<20 where status == 0 && !stored.contains(where: { !states.contains($0) }) {
                    status = queue.perform(request)
                    stored = queue.read(0, length).bytes
                }
                _ = harness_mutate_end()
                try require(status == 0, "a \(request.name) whose buffers change gave \(errorName(status))")
                for (index, byte) in stored.enumerated() where !states.contains(byte) {
                    throw Failure(
                        "byte \(index) of a write whose buffers changed is stored as \(byte), which it never was: look at "
                            + "each byte once, or say XBB_CAP_STABLE_BUFFERS")
                }
            }
            bench.close(disk, [queue])
        }
    ]
}
