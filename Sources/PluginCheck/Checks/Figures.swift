// SPDX-License-Identifier: BSD-2-Clause
// The costs of a request: allocations, system calls, time. Reported, not judged.
import PluginHost
import CAllocations
import CLinux
import CPluginHarness
import Glibc
import PluginAPI

extension Check {
    static let figures = [
        Check(.figures, "allocations", "allocations of a request") { bench throws(Failure) in
            for (op, name) in [(XBB_OP_READ, "READ"), (XBB_OP_WRITE, "WRITE")] {
                let disk = try bench.disk()
                let info = try bench.info(disk)
                guard op == XBB_OP_READ || info.capabilities.contains(.write) else { continue }
                let queue = try bench.queue(disk, depth: 32)
                let (size, count) = (try bench.loadSize(info), bench.subject.isQuick ? UInt64(2000) : 20000)
                bench.at("\(count) \(name)s")
                _ = unsafe harness_perform_many(queue.handle, UInt32(op), size, 32, 1000)
                let before = callocations_calls()
                let done = unsafe harness_perform_many(queue.handle, UInt32(op), size, 32, count)
                bench.note("\(hundredths(callocations_calls() - before, done)) allocations per \(name)")
                let rate = unsafe harness_measure(queue.handle, UInt32(op), size, 32, bench.subject.isQuick ? 100 : 500)
                bench.note("\(Int(rate)) \(name)s of 4 KiB a second in one queue")
                bench.close(disk, [queue])
            }
        },
        Check(.figures, "system-calls", "system calls of a request") { bench throws(Failure) in
            var calls: UInt64 = 0
            let shared = unsafe clinux_mmap(nil, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0)
            guard let cells = unsafe shared?.assumingMemoryBound(to: UInt64.self) else { throw Failure("no memory") }
            let status = unsafe harness_fork_counted(&calls)
            if status == 0, unsafe cells[2] == 0 {
                do throws(Failure) {
                    let disk = try bench.disk()
                    let queue = try bench.queue(disk, depth: 32)
                    let size = try bench.loadSize(bench.info(disk))
                    _ = unsafe harness_perform_many(queue.handle, UInt32(XBB_OP_READ), size, 32, 500)
                    let own = harness_own_calls()
                    unsafe cells[2] = 1
                    harness_mark()
                    unsafe cells[1] = unsafe harness_perform_many(queue.handle, UInt32(XBB_OP_READ), size, 32, 2000)
                    harness_mark()
                    unsafe cells[0] = harness_own_calls() - own
                    bench.close(disk, [queue])
                } catch {
                    bench.tell(error)
                }
                _exit(0)
            }
            try require(status != -1 && status != 77, skipping: "this process may not trace another (ptrace)")
            try require(unsafe status == 0 && cells[2] == 1, "the traced process ended with status \(status)")
            // The harness's own system calls, including the two markers, do not count.
            let made = unsafe calls > cells[0] + 4 ? calls - cells[0] - 4 : 0
            bench.note("\(unsafe hundredths(made, cells[1])) system calls per READ")
        },
    ]
}

/// A quotient with two decimals.
private func hundredths(_ dividend: UInt64, _ divisor: UInt64) -> String {
    guard divisor > 0 else { return "?" }
    let value = dividend * 100 / divisor
    return "\(value / 100).\(value % 100 < 10 ? "0" : "")\(value % 100)"
}

extension Bench {
    /// The part of the disk that a load of 4 KiB requests uses, in bytes.
    fileprivate func loadSize(_ info: DeviceInfo) throws(Failure) -> UInt64 {
        try require(info.size >= 4096, skipping: "the disk is smaller than a request of 4 KiB")
        return min(info.size, 64 << 20)
    }
}
