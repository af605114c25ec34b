// SPDX-License-Identifier: BSD-2-Clause
// Where a plugin's completions arrive.
//
// Completions on the queue's own thread go to a plain list. Those of other threads go to a lock-free stack, and only
// if the queue's thread is about to sleep does one of them cost a system call.
import CLinux
import CRing
import Glibc
import Memory
import PluginAPI
import Synchronization

/// The completion side of a queue. Lives as long as the process, because a plugin that breaks the rules may call
/// complete() at any time. Ports that no queue uses are kept in ``CompletionPorts`` for the next connection.
///
/// Unchecked, because the compiler cannot know who uses what: cells that other threads write are changed by atomic
/// operations alone, a request belongs to one side at a time by its atomic state, and the rest is the queue thread's.
/// `attachment` is set before a plugin knows the port.
@safe
public final class CompletionPort: @unchecked Sendable {
    @usableFromInline let requests: FixedArray<PluginRequest>
    private let contexts: UnsafeMutableRawPointer
    /// Vectors of requests that need several; pages that are never touched take no memory.
    @usableFromInline let vectors: UnsafeMutablePointer<iovec>
    /// Plugin requests of the pool.
    @inlinable public var requestCount: Int { unsafe requests.count }
    /// Completions that the queue's thread knows of; as long as the pool.
    @usableFromInline let local: UnsafeMutablePointer<Int32>
    /// What the queue's thread alone changes. Behind a pointer, because a class checks each access to a variable of its own.
    @usableFromInline let own: UnsafeMutablePointer<QueueThreadState>
    /// Head of the stack of completions from other threads, an index plus one; atomic.
    @usableFromInline let remoteHead: UnsafeMutablePointer<UInt32>
    /// 1 while the queue's thread sleeps or is about to; atomic.
    @usableFromInline let sleeping: UnsafeMutablePointer<UInt32>
    /// Calls that broke the rule "exactly once"; atomic.
    @usableFromInline let violationCells: UnsafeMutablePointer<UInt64>
    /// Wakes the queue's thread.
    public let wakeDescriptor: Int32
    /// Bytes of scratch that each request has for the plugin.
    public let contextSize: Int
    /// What the plugin's host keeps as long as the port, because a plugin may keep its address.
    public var attachment: AnyObject?

    /// A pool of `requestCount` plugin requests, each with `contextSize` bytes of scratch for the plugin.
    public init?(requestCount: Int, contextSize: Int) {
        precondition(unsafe MemoryLayout<PluginRequest>.offset(of: \.iov) == Self.vectorOffset)
        precondition(unsafe MemoryLayout<PluginRequest>.offset(of: \.state) == Self.stateOffset)
        wakeDescriptor = eventfd(0, Int32(EFD_CLOEXEC) | Int32(EFD_NONBLOCK))
        if wakeDescriptor < 0 { return nil }
        self.contextSize = contextSize
        unsafe requests = unsafe FixedArray(zeroed: requestCount)
        unsafe local = .allocate(capacity: requestCount)
        unsafe local.initialize(repeating: 0, count: requestCount)
        unsafe own = .allocate(capacity: 1)
        unsafe own.initialize(to: QueueThreadState())
        // Three cells that other threads write, each on a cache line of its own.
        let cells = UnsafeMutableRawPointer.allocate(byteCount: 192, alignment: 64)
        unsafe cells.initializeMemory(as: UInt64.self, repeating: 0, count: 24)
        unsafe remoteHead = cells.assumingMemoryBound(to: UInt32.self)
        unsafe sleeping = (cells + 64).assumingMemoryBound(to: UInt32.self)
        unsafe violationCells = (cells + 128).assumingMemoryBound(to: UInt64.self)
        unsafe vectors = .allocate(capacity: requestCount * PluginRequestPointer.mostVectors)
        let stride = (contextSize + 63) & ~63
        unsafe contexts = .allocate(byteCount: max(stride * requestCount, 64), alignment: 64)
        unsafe contexts.initializeMemory(as: UInt8.self, repeating: 0, count: max(stride * requestCount, 64))
        for index in 0..<requestCount where stride > 0 {
            unsafe requests.address(of: index).pointee.req.ctx = contexts + index * stride
        }
    }

    /// Completions that the queue's thread knows of; queue thread only.
    @inlinable @inline(__always)
    public var localCount: Int { unsafe own.pointee.localCount }

    /// Forgets what an earlier connection left. Nobody uses the port, unless a plugin breaks the rules.
    public func reset() {
        for index in 0..<requestCount {
            unsafe requests.address(of: index).pointee.state = PluginRequestState.host
        }
        _ = unsafe cring_exchange32(remoteHead, 0)
        unsafe own.pointee.localCount = 0
        awoke()
        drainWake()
    }

    /// Makes the calling thread the queue's thread.
    public func adoptThread() {
        unsafe own.pointee.thread = cring_thread()
        unsafe own.pointee.localCount = 0
    }

    /// A request of the pool.
    @inlinable @inline(__always)
    public func request(_ index: Int32) -> PluginRequestPointer {
        unsafe PluginRequestPointer(
            requests.address(of: Int(index)), vectors: vectors + Int(index) &* PluginRequestPointer.mostVectors)
    }

    /// Where a request's one iovec stands: right behind what the plugin sees.
    @inlinable @inline(__always)
    public static var vectorOffset: Int { unsafe MemoryLayout<xbb_req>.stride }

    /// Where a request's state stands.
    @inlinable @inline(__always)
    static var stateOffset: Int { unsafe vectorOffset + MemoryLayout<iovec>.stride }

    /// Called by the plugin, on any thread.
    @inlinable @inline(__always)
    public func complete(_ req: UnsafeMutablePointer<xbb_req>?, _ status: Int32) {
        guard let index = unsafe index(of: req), takesFromPlugin(index, PluginRequestState.completed) else {
            countViolation()
            return
        }
        // A status above zero means nothing in the ABI; taking it for success would make up data.
        unsafe requests.address(of: index).pointee.status = status > 0 ? -EIO : status
        if unsafe cring_thread() == own.pointee.thread {
            unsafe local[localCount] = Int32(truncatingIfNeeded: index)
            // Not &+=: Swift tells ThreadSanitizer that this changes all of `own`, whose thread others read.
            unsafe own.pointee.localCount = localCount &+ 1
        } else {
            pushRemote(index)
        }
    }

    /// Changes the state of a request from "the plugin's"; false if it was not that. Exactly one caller succeeds.
    @inlinable @inline(__always)
    func takesFromPlugin(_ index: Int, _ state: UInt32) -> Bool {
        let cell = unsafe UnsafeMutableRawPointer(requests.address(of: index)) + Self.stateOffset
        return unsafe cring_compare_exchange32(cell, PluginRequestState.plugin, state) != 0
    }

    @usableFromInline @inline(never)
    func pushRemote(_ index: Int) {
        let request = unsafe requests.address(of: index)
        while true {
            let head = unsafe cring_load32_acquire(remoteHead)
            unsafe request.pointee.link = head
            if unsafe cring_compare_exchange32(remoteHead, head, UInt32(truncatingIfNeeded: index + 1)) != 0 { break }
        }
        wakeIfSleeping()
    }

    @inlinable @inline(__always)
    func index(of req: UnsafeMutablePointer<xbb_req>?) -> Int? {
        guard let req = unsafe req else { return nil }
        let base = UInt(bitPattern: unsafe requests.address(of: 0))
        let distance = UInt(bitPattern: req) &- base
        let stride = unsafe UInt(MemoryLayout<PluginRequest>.stride)
        guard distance % stride == 0, distance / stride < UInt(bitPattern: requestCount) else { return nil }
        return Int(bitPattern: distance / stride)
    }

    @usableFromInline @inline(never)
    func countViolation() {
        _ = unsafe cring_add64(violationCells, 1)
    }

    /// Calls of complete() that named no request of the plugin's; any thread.
    public var violations: UInt64 { unsafe cring_load64_relaxed(violationCells) }

    /// Takes a request back that the plugin did not accept; false if it has completed it nevertheless.
    public func takeBack(_ index: Int32) -> Bool {
        takesFromPlugin(Int(index), PluginRequestState.host)
    }

    /// True if another thread completed something; queue thread only.
    @inlinable @inline(__always)
    public var hasRemote: Bool { unsafe cring_load32_relaxed(remoteHead) != 0 }

    /// Moves what other threads completed to the local list; queue thread only.
    @inlinable @inline(__always)
    public func takeRemote() {
        if unsafe cring_load32_relaxed(remoteHead) == 0 { return }
        var link = unsafe cring_exchange32(remoteHead, 0)
        while link != 0 {
            let index = Int32(truncatingIfNeeded: link) - 1
            link = unsafe requests.address(of: Int(index)).pointee.link
            unsafe local[localCount] = index
            unsafe own.pointee.localCount = localCount &+ 1
        }
    }

    /// A completed request of the local list.
    @inlinable @inline(__always)
    public func completed(at position: Int) -> Int32 {
        precondition(position < localCount)
        return unsafe local[position]
    }

    /// Forgets the first `count` of the local list; the others move up.
    @inlinable @inline(__always)
    public func removeCompleted(_ count: Int) {
        let left = localCount - count
        precondition(left >= 0)
        if left > 0 { unsafe local.update(from: local + count, count: left) }
        unsafe own.pointee.localCount = left
    }

    // MARK: Sleeping

    /// Says that the thread is going to sleep; false if something arrived after all.
    public func prepareToSleep() -> Bool {
        _ = unsafe cring_exchange32(sleeping, 1)
        if unsafe cring_load32_acquire(remoteHead) != 0 || localCount > 0 {
            awoke()
            return false
        }
        return true
    }

    /// The thread runs again.
    public func awoke() {
        unsafe cring_store32_relaxed(sleeping, 0)
    }

    /// Wakes the queue's thread if it sleeps; any thread.
    public func wakeIfSleeping() {
        if unsafe cring_exchange32(sleeping, 0) == 1 { wake() }
    }

    /// Wakes the queue's thread; any thread.
    public func wake() {
        var one: UInt64 = 1
        _ = unsafe write(wakeDescriptor, &one, 8)
    }

    /// Takes the wake-up away from the descriptor.
    public func drainWake() {
        var value: UInt64 = 0
        _ = unsafe read(wakeDescriptor, &value, 8)
    }
}

/// What a queue's thread keeps of its port.
@usableFromInline
struct QueueThreadState {
    /// The thread, as `cring_thread()` names it; 0 for none.
    @usableFromInline var thread: UInt = 0
    /// Completions in the local list.
    @usableFromInline var localCount = 0

    @usableFromInline init() {}
}

/// The ports that no queue uses now. A guest may connect again without end, and ports are never freed.
///
/// There are at most as many of each size as there were queues at once, and the sizes are those of rings.
public enum CompletionPorts {
    private static let unused = Mutex<[CompletionPort]>([])

    /// A port that was used before or a new one; nil when no descriptor is left.
    public static func take(requestCount: Int, contextSize: Int) -> CompletionPort? {
        let found = unused.withLock { list -> CompletionPort? in
            let index = list.firstIndex { $0.requestCount == requestCount && $0.contextSize == contextSize }
            return index.map { list.remove(at: $0) }
        }
        if let found {
            found.reset()
            return found
        }
        guard let port = CompletionPort(requestCount: requestCount, contextSize: contextSize) else { return nil }
        return unsafe Unmanaged.passRetained(port).takeUnretainedValue()
    }

    /// Takes a port back whose plugin queue is closed.
    public static func giveBack(_ port: CompletionPort) {
        unused.withLock { $0.append(port) }
    }
}
