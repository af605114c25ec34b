// SPDX-License-Identifier: BSD-2-Clause
// Contexts of Linux AIO that no queue uses at present.
//
// To destroy one takes the kernel a grace period of RCU, some 30 ms in which the caller sleeps and a guest waits whose disk
// goes over to another process. So a queue that closes leaves its context for the next one, and the end of the process
// takes away what is left. There are never more than were in use at the same time, and no more than a few: all processes
// of the machine share the sysctl fs.aio-max-nr.
import CAIO
import Synchronization

/// The store of contexts of this process.
enum KernelContexts {
    /// `@unchecked Sendable`: an idle context is nobody's, and taken under the lock.
    @safe
    private struct Kept: @unchecked Sendable {
        let context: io_context_t
        let depth: Int
    }
    private static let kept = Mutex<[Kept]>([])
    /// The most requests that all contexts together have room for: those of eight queues of the largest rings.
    private static let mostRequests = 8192

    /// A context with nothing in flight that has room for `depth` requests, and for how many it has; else the kernel's errno.
    static func take(depth: Int) -> (code: Int32, context: io_context_t?, depth: Int) {
        let (fitting, other) = kept.withLock { kept -> (Kept?, Kept?) in
            let best = kept.indices.filter { kept[$0].depth >= depth }.min { kept[$0].depth < kept[$1].depth }
            if let best { return (kept.remove(at: best), nil) }
            return (nil, kept.popLast())
        }
        if let fitting { return unsafe (0, fitting.context, fitting.depth) }
        if let other { unsafe _ = io_destroy(other.context) }
        var context: io_context_t?
        let code = unsafe io_setup(Int32(clamping: depth), &context)
        return unsafe (-code, context, depth)
    }

    /// Makes a context for a queue that opens later; else the kernel's errno.
    static func reserve(depth: Int) -> Int32 {
        if kept.withLock({ kept in kept.contains { $0.depth >= depth } }) { return 0 }
        var context: io_context_t?
        let code = unsafe io_setup(Int32(clamping: depth), &context)
        if code == 0, let context = unsafe context { unsafe giveBack(context, depth: depth) }
        return -code
    }

    /// Keeps a context for which nothing is in flight and all completions were read, or destroys it.
    static func giveBack(_ context: io_context_t, depth: Int) {
        let isKept = kept.withLock { kept in
            guard kept.reduce(depth, { $0 + $1.depth }) <= mostRequests else { return false }
            kept.append(unsafe Kept(context: context, depth: depth))
            return true
        }
        if !isKept { unsafe _ = io_destroy(context) }
    }
}
