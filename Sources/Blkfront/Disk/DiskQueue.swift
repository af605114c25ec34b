// SPDX-License-Identifier: BSD-2-Clause
// One queue of a disk: any thread puts operations on the ring, and one thread takes the responses.
//
// As in Linux, the submitting thread puts requests on the ring, under the queue's lock; no thread is woken for that.
// The queue's own thread sleeps until an event arrives, then takes all responses at once.
import Blkif
import CLinux
import Glibc
import Synchronization

/// A queue's state besides its ring; guarded by the lock of the queue's box.
struct Slots: ~Copyable, Sendable {
    /// The operation of each request in flight, and the part of it that the request carries.
    var owners: [FrontIO?]
    var parts: [(position: UInt64, byteCount: Int)]
    /// Operations that wait for free slots; the first one may be partly submitted.
    var backlog: [FrontIO] = []
    var backlogHead = 0
    var finished: [FrontIO] = []
}

/// Drives one queue of a ``FrontDisk``.
///
/// `@unchecked Sendable`: `slots` is guarded by the box's lock, and `thread` belongs to whoever starts and stops the
/// queue.
final class DiskQueue: @unchecked Sendable {
    private let box: FrontQueueBox
    private let health: FrontHealth
    private let sectorUnit: UInt64
    private let skew: Int
    /// Touched only while the box is locked.
    private var slots: Slots
    private let stopping = Atomic<Bool>(false)
    private var thread: FrontThread?
    private let wake: Int32

    init(_ box: FrontQueueBox, health: FrontHealth, sectorUnit: Int, skew: Int) {
        wake = makeEvent()
        self.box = box
        self.health = health
        self.sectorUnit = UInt64(sectorUnit)
        self.skew = skew
        slots = Slots(
            owners: Array(repeating: nil, count: box.slotCount),
            parts: Array(repeating: (0, 0), count: box.slotCount))
    }

    deinit {
        close(wake)
    }

    /// Starts the thread that takes responses.
    func start() throws(BlkfrontError) {
        thread = try FrontThread(name: "front-q\(box.index)") { [self] in takeResponses() }
    }

    /// Puts as much of the operation on the ring as there is room for; the rest follows as slots become free.
    func submit(_ io: FrontIO) {
        let finished = box.withQueue { queue in
            slots.backlog.append(io)
            pump(&queue)
            return takeFinished()
        }
        for io in finished { io.finish() }
    }

    /// True if no request is unanswered and no operation waits for room.
    var isIdle: Bool {
        box.withQueue { queue in queue.inFlight == 0 && slots.backlog.count == slots.backlogHead }
    }

    /// Ends the thread. Operations in flight fail with the health's error; the ring is not read any more.
    func stop() {
        stopping.store(true, ordering: .releasing)
        _ = eventfd_write(wake, 1)
        thread?.join()
        thread = nil
        let finished = box.withQueue { queue in
            abandon(&queue, health.error ?? .closed("the queue was stopped"))
            return takeFinished()
        }
        for io in finished { io.finish() }
    }

    /// Fails all operations of a device that has ended, even while its thread is still asleep.
    func failAll() {
        let finished = box.withQueue { queue in
            abandon(&queue, health.error ?? .closed("the device ended"))
            return takeFinished()
        }
        for io in finished { io.finish() }
    }

    // MARK: The queue's thread

    private func takeResponses() {
        while !stopping.load(ordering: .acquiring) {
            let (finished, more) = box.withQueue { queue -> ([FrontIO], Bool) in
                var more = false
                do throws(BlkfrontError) {
                    while let completion = try queue.nextCompletion() { complete(completion, &queue) }
                    pump(&queue)
                    more = queue.finalCheck()
                } catch {
                    abandon(&queue, health.end(error))
                }
                return (takeFinished(), more)
            }
            for io in finished { io.finish() }
            if more { continue }
            waitForEvent()
        }
    }

    private func waitForEvent() {
        var items = (
            pollfd(fd: box.port.fileDescriptor, events: Int16(POLLIN), revents: 0),
            pollfd(fd: wake, events: Int16(POLLIN), revents: 0)
        )
        _ = unsafe withUnsafeMutableBytes(of: &items) { bytes in
            unsafe poll(bytes.baseAddress?.assumingMemoryBound(to: pollfd.self), 2, -1)
        }
        _ = box.port.takePending()
    }

    private func complete(_ completion: FrontCompletion, _ queue: inout FrontQueue) {
        let id = completion.id
        guard let io = slots.owners[id] else { return }
        slots.owners[id] = nil
        let part = slots.parts[id]
        if let error = completion.error {
            io.fail(error)
        } else if io.operation == .read {
            unsafe copyOut(io, part.position, part.byteCount, from: queue.address(of: id) + skew * 512)
        }
        queue.release(id)
        io.pending -= 1
        endIfDone(io)
    }

    /// Ends the operation once nothing of it is on the ring and no more of it will be submitted.
    private func endIfDone(_ io: FrontIO) {
        if io.pending > 0 || io.hasEnded || !(io.isSubmitted || io.hasFailed) { return }
        io.hasEnded = true
        slots.finished.append(io)
    }

    private func takeFinished() -> [FrontIO] {
        if slots.finished.isEmpty { return [] }
        let finished = slots.finished
        slots.finished = []
        return finished
    }

    // MARK: With the lock

    /// Moves the backlog to the ring while there are free slots, with one publication at the end.
    private func pump(_ queue: inout FrontQueue) {
        var any = false
        do throws(BlkfrontError) {
            try health.check()
            while slots.backlogHead < slots.backlog.count {
                let io = slots.backlog[slots.backlogHead]
                while !io.isSubmitted && !io.hasFailed {
                    guard let id = queue.allocate() else {
                        if any { try queue.publish() }
                        trimBacklog()
                        return
                    }
                    do throws(BlkfrontError) {
                        try put(io, id, &queue)
                    } catch {
                        queue.release(id)
                        throw error
                    }
                    any = true
                }
                slots.backlogHead += 1
                endIfDone(io)
            }
            trimBacklog()
            if any { try queue.publish() }
        } catch {
            abandon(&queue, health.end(error))
        }
    }

    /// Drops submitted operations, rarely enough that a long backlog is not moved for every operation.
    private func trimBacklog() {
        guard slots.backlogHead == slots.backlog.count || slots.backlogHead >= 256 else { return }
        slots.backlog.removeFirst(slots.backlogHead)
        slots.backlogHead = 0
    }

    /// Puts the next part of the operation on the ring.
    private func put(_ io: FrontIO, _ id: Int, _ queue: inout FrontQueue) throws(BlkfrontError) {
        switch io.operation {
        case .flush:
            try queue.submit(id, .flush, sector: 0, byteCount: 0)
            io.started = true
            slots.parts[id] = (0, 0)
        case .discard:
            try queue.submitDiscard(
                id, sector: io.offset / sectorUnit, sectorCount: io.byteCount / sectorUnit, secure: io.secure)
            io.started = true
            slots.parts[id] = (0, 0)
        case .read, .write, .writeBarrier:
            let room = queue.mostBytes(io.operation) - (skew == 0 ? 0 : Int(max(sectorUnit, 4096)))
            let count = Int(min(UInt64(room), io.byteCount - io.submitted))
            if io.operation != .read {
                unsafe copyIn(io, io.submitted, count, to: queue.address(of: id) + skew * 512)
            }
            try queue.submit(
                id, io.operation, sector: (io.offset + io.submitted) / sectorUnit, byteCount: count, skew: skew)
            slots.parts[id] = (io.submitted, count)
            io.submitted += UInt64(count)
        }
        slots.owners[id] = io
        io.pending += 1
    }

    /// Fails everything that is in flight or waiting. The slots in flight stay in use: the backend may still access
    /// them.
    private func abandon(_ queue: inout FrontQueue, _ error: BlkfrontError) {
        for id in slots.owners.indices {
            guard let io = slots.owners[id] else { continue }
            slots.owners[id] = nil
            io.fail(error)
            io.pending -= 1
            endIfDone(io)
        }
        for io in slots.backlog[slots.backlogHead...] {
            io.fail(error)
            endIfDone(io)
        }
        slots.backlog = []
        slots.backlogHead = 0
    }

    private func copyIn(_ io: FrontIO, _ position: UInt64, _ count: Int, to target: UnsafeMutableRawPointer) {
        switch io.memory {
        case .none: break
        case .zeroes: _ = unsafe memset(target, 0, count)
        case .borrowed(let base), .owned(let base): _ = unsafe memcpy(target, base + Int(position), count)
        }
    }

    private func copyOut(_ io: FrontIO, _ position: UInt64, _ count: Int, from source: UnsafeMutableRawPointer) {
        switch io.memory {
        case .none, .zeroes: break
        case .borrowed(let base), .owned(let base): _ = unsafe memcpy(base + Int(position), source, count)
        }
    }
}
