// SPDX-License-Identifier: BSD-2-Clause
// Several queues at once, as far as the declared thread model allows it.
import Base
import CPluginHarness
import Glibc
import PluginAPI
import Synchronization

extension Check {
    static let concurrency = [
        Check(.concurrency, "queues", "queues on threads of their own do not harm each other") {
            bench throws(Failure) in
            let plugin = try bench.plugin
            try require(
                plugin.library.threadModel == .queue, skipping: "its thread model is one call at a time for each disk")
            let disk = try bench.disk()
            let info = try bench.info(disk)
            let count = min(info.maxQueues, 4)
            try require(count > 1, skipping: "the disk has one queue")
            try require(info.capabilities.contains(.write), skipping: "the disk cannot be written")
            let part = info.region(1 << 20) / count / 4096 * 4096
            try require(part > 0, skipping: "the disk is too small")
            bench.at("random requests on \(count) queues at once")
            let shared = Shared(bench, disk)
            let isQuick = bench.subject.isQuick
            try inParallel(count) { index throws(Failure) in
                let queue = try shared.queue(index)
                var model = try DataModel(of: queue, size: part, at: UInt64(index * part), seed: UInt64(index))
                try model.run(on: queue, count: isQuick ? 200 : 1000, depth: 8, seed: UInt64(index))
                queue.close()
            }
            bench.close(disk, [])
        }
    ]

    static let acceptance = [
        Check(.acceptance, "again", "what was not accepted is accepted later, and nothing is lost") {
            bench throws(Failure) in
            let disk = try bench.disk()
            let info = try bench.info(disk)
            let block = UInt64(info.logicalBlock)
            for depth in [1, 3, 8] where depth <= info.queueDepth ?? 8 {
                let queue = try bench.queue(disk, depth: UInt32(depth))
                var waiting = (0..<100).map { index in
                    let request = Request(XBB_OP_READ, UInt64(index) % (info.size / block) * block, Int(block))
                    return request
                }
                var flying: [Request] = []
                var idle = 0
                bench.at("100 READs through a queue of depth \(depth)")
                while !waiting.isEmpty || !flying.isEmpty {
                    let room = depth - flying.count
                    let accepted = room > 0 && !waiting.isEmpty ? queue.submit(Array(waiting.prefix(room))) : 0
                    flying += waiting.prefix(accepted)
                    waiting.removeFirst(accepted)
                    idle = flying.isEmpty ? idle + 1 : 0
                    try require(idle < 100, "submit() accepts nothing with nothing in flight, 100 times")
                    let left = queue.run(until: UInt32(max(flying.count - 1, 0)))
                    try require(flying.isEmpty || left < flying.count, "\(left) accepted requests are never completed")
                    for request in flying where request.isDone {
                        try require(request.status == 0, "a \(request.name) gave \(errorName(request.status))")
                    }
                    flying.removeAll(where: \.isDone)
                }
                queue.close()
            }
            bench.close(disk, [])
        }
    ]

    static let cancel = [
        Check(.cancel, "all", "cancel() of all requests in flight ends each of them, once") { bench throws(Failure) in
            try bench.requireCall("cancel()", unsafe bench.plugin.table.cancel != nil)
            try bench.hurried { queue, _ throws(Failure) in queue.cancel(nil) }
        },
        Check(.cancel, "one", "cancel() of one request harms no other") { bench throws(Failure) in
            try bench.requireCall("cancel()", unsafe bench.plugin.table.cancel != nil)
            try bench.hurried { queue, requests throws(Failure) in
                for request in requests where !request.isDone { queue.cancel(request) }
            }
        },
        Check(.cancel, "drain", "a drain ends, and the disk goes on afterwards") { bench throws(Failure) in
            try bench.requireCall("drain_begin()", unsafe bench.plugin.table.drain_begin != nil)
            try bench.hurried { queue, _ throws(Failure) in
                let code = try bench.beginDrain(beside: queue)
                try require(code == 0, "drain_begin() returned \(errorName(code))")
                bench.at("what is in flight at drain_begin()")
                let left = queue.run(milliseconds: 10_000)
                try require(left == 0, "\(left) requests do not end in a drain")
                unsafe harness_drain_end(queue.disk.handle)
            }
        },
    ]
}

/// What the threads of a check share.
///
/// `@unchecked Sendable`: queues are opened under the lock, and the plugin's thread model allows their concurrent use.
private final class Shared: @unchecked Sendable {
    private let bench: Bench
    private let disk: Disk
    private let lock = Mutex(())

    init(_ bench: Bench, _ disk: Disk) {
        self.bench = bench
        self.disk = disk
    }

    /// A queue for the calling thread.
    func queue(_ index: Int) throws(Failure) -> Queue {
        try lock.withLock { _ throws(Failure) in try bench.queue(disk, index: UInt32(index)) }
    }
}

/// Calls `body` on `count` threads at once and throws the first failure.
private func inParallel(_ count: Int, _ body: @escaping @Sendable (Int) throws(Failure) -> Void) throws(Failure) {
    final class Work: Sendable {
        let index: Int
        let body: @Sendable (Int) throws(Failure) -> Void
        let failure = Mutex<Failure?>(nil)
        init(_ index: Int, _ body: @escaping @Sendable (Int) throws(Failure) -> Void) {
            self.index = index
            self.body = body
        }
        func run() {
            do throws(Failure) {
                try body(index)
            } catch {
                failure.withLock { $0 = error }
            }
        }
    }
    let works = (0..<count).map { Work($0, body) }
    var threads: [pthread_t] = []
    for work in works {
        do throws(OperationError) {
            threads.append(try startThread(named: "xbb-check") { work.run() })
        } catch {
            try require(false, error.description)
        }
    }
    for thread in threads { pthread_join(thread, nil) }
    for work in works {
        if let failure = work.failure.withLock({ $0 }) { throw failure }
    }
}

extension Bench {
    /// Skips a check of a callback that the plugin does without.
    fileprivate func requireCall(_ name: String, _ isThere: Bool) throws(Failure) {
        try require(isThere, skipping: "the plugin has no \(name)")
    }

    /// Calls drain_begin() while this thread goes on serving the queue, as the host does: a plugin may need the queue for it, such as for a
    /// flush on its only connection.
    fileprivate func beginDrain(beside queue: Queue) throws(Failure) -> Int32 {
        final class Answer: Sendable { let code = Mutex<Int32?>(nil) }
        // The disk outlives the thread, which is waited for.
        nonisolated(unsafe) let disk = unsafe queue.disk.handle
        let answer = Answer()
        let thread: pthread_t
        do throws(OperationError) {
            thread = try startThread(named: "xbb-check") {
                let code = unsafe harness_drain_begin(disk)
                answer.code.withLock { $0 = code }
            }
        } catch {
            throw Failure(error)
        }
        while true {
            if let code = answer.code.withLock({ $0 }) {
                pthread_join(thread, nil)
                return code
            }
            queue.idle(milliseconds: 2)
        }
    }

    /// Starts requests, does something to them, and checks that they all end with success or -ECANCELED and that others
    /// still work.
    fileprivate func hurried(_ hurry: (Queue, [Request]) throws(Failure) -> Void) throws(Failure) {
        let disk = try disk()
        let info = try info(disk)
        let queue = try queue(disk)
        let block = UInt64(info.logicalBlock)
        for round in 0..<20 {
            let requests = (0..<16).map { index in
                let op = info.capabilities.contains(.write) && index % 2 == 0 ? XBB_OP_WRITE : XBB_OP_READ
                let request = Request(op, UInt64(index) % (info.size / block) * block, Int(block))
                return request
            }
            let accepted = queue.submit(requests)
            at("cancel() or drain of \(requests.count { !$0.isDone }) requests in flight, round \(round)")
            try hurry(queue, Array(requests.prefix(accepted)))
            let left = queue.run(milliseconds: 10_000)
            try require(
                left == 0, "\(left) of \(accepted) requests never end after cancel() or drain: a hint drops nothing")
            for request in requests.prefix(accepted) where ![0, -ECANCELED].contains(request.status) {
                throw Failure("a \(request.name) gave \(errorName(request.status)): 0 or -ECANCELED is expected")
            }
            try perform(firstRead(disk), on: queue)
        }
        close(disk, [queue])
    }
}
