// SPDX-License-Identifier: BSD-2-Clause
// One queue of a plugin that serves several rings, for plugins that have fewer queues than the frontend has rings.
//
//   rings' threads ── submit() ──► inbox ──► copy of the request ──► plugin
//                  ◄─ the port of each ring ◄── completion of the copy ◄──┘
//
// The rings are offered before the disk is known, so they are served whatever the plugin has. Each batch takes two wake-ups
// more than a queue of the ring's own.
import Base
import CLinux
import Glibc
import PluginAPI
import PluginHost
import PluginPort
import Synchronization

/// A queue of a plugin on a thread of its own, which the first ring opens and the last one closes.
///
/// `@unchecked Sendable`: what is not under a lock is constant, or belongs to the queue's thread.
///
/// A fence for unsafe memory: requests of rings' pools, which are never freed, from ``submit(_:_:answeringAt:)`` until they
/// are completed.
@safe
package final class SharedPluginQueue: @unchecked Sendable {
    /// A ring's request.
    @safe private struct Entry: @unchecked Sendable {
        let request: UnsafeMutablePointer<xbb_req>
        let port: CompletionPort
    }

    /// What the thread is handed. The lock is never held for long.
    private struct Inbox {
        var entries: [Entry] = []
        var isClosing = false
        /// The thread's, while it runs.
        var port: CompletionPort?
    }

    /// Rings that use it, and its thread while there are any. Held while the plugin opens the queue, and closes it.
    private struct Use {
        var count = 0
        var thread: pthread_t?
    }

    private let device: PluginDevice
    private let index: Int
    private let threadCount: Int
    private let use = Mutex(Use())
    private let inbox = Mutex(Inbox())
    private let openFailure = Mutex<OperationError?>(nil)
    private let opened = Semaphore()
    /// Requests that it can have in hand: as many as a ring of 32 pages.
    private static let requestCount = 1024

    private init(_ device: PluginDevice, index: Int, threadCount: Int) {
        self.device = device
        self.index = index
        self.threadCount = threadCount
    }

    /// The queues for a frontend with `ringCount` rings, which take them in turn; none where each ring can have its own.
    /// A plugin that may sleep has one with `threads` threads or as many as it has queues.
    package static func queues(of device: PluginDevice, forRings ringCount: Int, threads: Int) -> [SharedPluginQueue] {
        let most = max(device.maxQueues, 1)
        if ringCount <= most { return [] }
        if device.library.isBlocking {
            return [SharedPluginQueue(device, index: 0, threadCount: max(min(threads, most), 1))]
        }
        return (0..<most).map { SharedPluginQueue(device, index: $0, threadCount: 1) }
    }

    // MARK: The rings' threads

    /// Takes part; the first one waits until the plugin has opened the queue, which may take for ever.
    func open() throws(OperationError) {
        let failure = use.withLock { use -> OperationError? in
            if use.count == 0, let failure = begin(&use) { return failure }
            use.count += 1
            return nil
        }
        if let failure { throw failure }
    }

    private func begin(_ use: inout Use) -> OperationError? {
        // Unsafe as a C struct with pointers; this member is a number.
        let context = unsafe Int(device.library.table.req_ctx_size)
        guard let port = CompletionPorts.take(requestCount: Self.requestCount, contextSize: context) else {
            return OperationError(errno, "make a descriptor for queue \(index) of the plugin")
        }
        inbox.withLock { $0 = Inbox(port: port) }
        openFailure.withLock { $0 = nil }
        do throws(OperationError) {
            let thread = try startThread(named: "xbb-shared-\(index)") { [self] in run(port) }
            opened.wait()
            if let failure = openFailure.withLock({ $0 }) {
                pthread_join(thread, nil)
                throw failure
            }
            use.thread = thread
            return nil
        } catch {
            inbox.withLock { $0.port = nil }
            CompletionPorts.giveBack(port)
            return error
        }
    }

    /// Takes part no more: nothing of the ring is in flight. The last one waits until the plugin has closed the queue.
    func close() {
        use.withLock { use in
            use.count -= 1
            guard use.count == 0, let thread = use.thread else { return }
            let port = inbox.withLock { inbox in
                inbox.isClosing = true
                return inbox.port
            }
            port?.wake()
            pthread_join(thread, nil)
            use.thread = nil
            inbox.withLock { $0.port = nil }
            if let port { CompletionPorts.giveBack(port) }
        }
    }

    /// Takes all of the requests; each is completed at `ring`.
    func submit(
        _ requests: UnsafePointer<UnsafeMutablePointer<xbb_req>?>, _ count: Int, answeringAt ring: CompletionPort
    ) {
        let port = inbox.withLock { inbox in
            for position in 0..<count {
                guard let request = unsafe requests[position] else { continue }
                inbox.entries.append(unsafe Entry(request: request, port: ring))
            }
            return inbox.port
        }
        port?.wakeIfSleeping()
    }

    /// Calls of complete() that broke the plugin ABI.
    package var violations: UInt64 { inbox.withLock { $0.port }?.violations ?? 0 }

    // MARK: The queue's thread

    private func run(_ port: CompletionPort) {
        port.adoptThread()
        do throws(OperationError) {
            guard let events = PluginEvents(port: port) else {
                throw OperationError(errno, "make a plugin's event loop")
            }
            let side = PluginSide(port: port, device: device.info, listCount: 1)
            let queue = try PluginQueue(
                device: device, port: port, events: events, index: index, depth: side.depthLimit,
                threadCount: threadCount)
            opened.signal()
            serve(port, events, side, queue)
        } catch {
            openFailure.withLock { $0 = error }
            opened.signal()
        }
    }

    private func serve(
        _ port: CompletionPort, _ events: PluginEvents, _ side: consuming PluginSide, _ queue: consuming PluginQueue
    ) {
        /// What was not handed to the plugin yet, and by request of the pool what the plugin has.
        var waiting: [Entry] = []
        var taken = [Entry?](repeating: nil, count: port.requestCount)
        var stalledSince: UInt64?
        while true {
            var worked = events.needsCare && events.runDue(now: clinux_monotonic_ns())
            let done = side.beginAbsorbing()
            for position in 0..<done {
                let (request, status) = side.absorb(position)
                answer(&taken, request, status)
            }
            side.endAbsorbing(done)
            worked = worked || done > 0
            let isClosing = inbox.withLock { inbox in
                waiting += inbox.entries
                inbox.entries.removeAll(keepingCapacity: true)
                return inbox.isClosing
            }
            makeReady(&waiting, &taken, &side, port)
            let submission = queue.submit(&side)
            if submission.taken > 0 { worked = true }
            if submission.offered == 0 || submission.taken > 0 || side.inFlight > 0 {
                stalledSince = nil
            } else if let since = stalledSince, clinux_monotonic_ns() &- since > QueueEngine.stallLimit {
                while let request = side.dropReady() { answer(&taken, request, -EIO) }
            } else {
                stalledSince = stalledSince ?? clinux_monotonic_ns()
            }
            if side.inFlight > 0 && queue.poll() { worked = true }
            if isClosing && waiting.isEmpty && side.ready.isEmpty && side.inFlight == 0 { return }
            sleep(port, events, isBusy: worked, isStalled: stalledSince != nil)
        }
    }

    /// Copies requests of rings into the pool, as many as there is room for.
    private func makeReady(
        _ waiting: inout [Entry], _ taken: inout [Entry?], _ side: inout PluginSide, _ port: CompletionPort
    ) {
        var count = 0
        while count < waiting.count, let request = side.takeIfFree() {
            let pointer = port.request(request)
            // The pool's number stands in for a list.
            pointer.prepare(list: request, op: 0, flags: 0, offset: 0, length: 0)
            unsafe pointer.copy(waiting[count].request.pointee)
            taken[Int(request)] = waiting[count]
            side.makeReady(request)
            count += 1
        }
        waiting.removeFirst(count)
    }

    private func answer(_ taken: inout [Entry?], _ request: Int32, _ status: Int32) {
        guard let entry = taken[Int(request)] else { return }
        taken[Int(request)] = nil
        unsafe entry.port.complete(entry.request, status)
    }

    /// Looks at the plugin's descriptors, and waits for one of them or for work where there is none.
    private func sleep(_ port: CompletionPort, _ events: PluginEvents, isBusy: Bool, isStalled: Bool) {
        if isBusy {
            _ = events.wait(timeout: 0)
            return
        }
        guard port.prepareToSleep() else { return }
        defer { port.awoke() }
        if inbox.withLock({ !$0.entries.isEmpty }) { return }
        let timer = events.timeout(now: clinux_monotonic_ns())
        _ = events.wait(timeout: isStalled ? (timer < 0 ? 5 : min(timer, 5)) : timer)
    }
}
