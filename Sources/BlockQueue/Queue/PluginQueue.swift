// SPDX-License-Identifier: BSD-2-Clause
// The plugin's side of a queue: called in place, or on threads of its own if it may sleep.
import PluginHost
import PluginPort
import Base
import Glibc
import Memory
import PluginAPI

/// An open queue of a plugin, used and closed on the thread that opened it.
@safe
struct PluginQueue: ~Copyable {
    private let device: PluginDevice
    private let port: CompletionPort
    private let handle: UnsafeMutableRawPointer?
    private let threads: BlockingThreads?
    private let submitFunction:
        @convention(c) (UnsafeMutableRawPointer?, UnsafePointer<UnsafeMutablePointer<xbb_req>?>?, UInt32) -> UInt32
    private let pollFunction: (@convention(c) (UnsafeMutableRawPointer?) -> UInt32)?
    private let exclusion: PluginExclusion?
    private let batch: UnsafeMutablePointer<UnsafeMutablePointer<xbb_req>?>
    private let batchCapacity: Int
    private let indices: UnsafeMutablePointer<Int32>

    /// True if the plugin can be asked for completions without a system call.
    var canPoll: Bool { unsafe pollFunction != nil && threads == nil }

    /// Opens the plugin's queue number `index`, or a queue for each of `threadCount` threads if it may sleep.
    init(
        device: PluginDevice, port: CompletionPort, events: PluginEvents, index: Int, depth: Int, threadCount: Int
    ) throws(OperationError) {
        guard let submit = unsafe device.library.table.submit else {
            throw OperationError(.invalid, "plugin '\(device.library.name)' has no submit()")
        }
        let threads: BlockingThreads?
        let handle: UnsafeMutableRawPointer?
        if device.library.isBlocking {
            threads = try BlockingThreads(
                device: device, port: port, firstIndex: index * threadCount, threadCount: threadCount)
            unsafe handle = nil
        } else {
            threads = nil
            let host = port.hostQueue
            host.events = events
            events.exclusion = device.exclusion
            do throws(OperationError) {
                unsafe handle = try device.openQueue(host, index: index, depth: depth)
            } catch {
                host.events = nil
                throw error
            }
        }
        self.threads = threads
        self.port = port
        unsafe self.handle = handle
        self.device = device
        exclusion = device.exclusion
        unsafe submitFunction = submit
        unsafe pollFunction = device.library.table.poll
        batchCapacity = port.requestCount
        unsafe batch = .allocate(capacity: batchCapacity)
        unsafe batch.initialize(repeating: nil, count: batchCapacity)
        unsafe indices = .allocate(capacity: batchCapacity)
        unsafe indices.initialize(repeating: 0, count: batchCapacity)
    }

    deinit {
        if let threads {
            threads.stop()
        } else {
            unsafe device.closeQueue(handle, of: port.hostQueue)
            // The port outlives the queue, its events do not.
            port.hostQueue.events = nil
        }
        unsafe batch.deallocate()
        unsafe indices.deallocate()
    }

    /// Offers what is ready to the plugin; returns how many requests it took, or nil if there was nothing to offer.
    ///
    /// A request that the plugin completed although it did not take it counts as taken, and as a violation.
    mutating func submit(_ engine: inout QueueEngine) -> Int? {
        let room = engine.depthLimit - engine.pluginInFlight
        let count = min(engine.ready.count, room, batchCapacity)
        if count <= 0 { return nil }
        for position in 0..<count {
            let sub = engine.ready[position]
            let request = unsafe engine.port.address(of: sub)
            unsafe request.pointee.state = PluginRequestState.plugin
            unsafe indices[position] = sub
            unsafe batch[position] = UnsafeMutableRawPointer(request).assumingMemoryBound(to: xbb_req.self)
        }
        engine.ready.removeFirst(count)
        if let threads {
            engine.pluginInFlight += count
            unsafe threads.submit(UnsafePointer(batch), count)
            return count
        }
        exclusion?.lock()
        let answer = Int(unsafe submitFunction(handle, UnsafePointer(batch), UInt32(truncatingIfNeeded: count)))
        exclusion?.unlock()
        var taken = min(answer, count)
        if answer > count { engine.stats.add(.plugin_violations) }
        var position = count - 1
        while position >= min(answer, count) {
            let sub = unsafe indices[position]
            if engine.port.takeBack(sub) {
                engine.ready.prepend(sub)
            } else {
                engine.stats.add(.plugin_violations)
                taken += 1
            }
            position -= 1
        }
        if taken < count { engine.stats.add(.plugin_busy) }
        engine.pluginInFlight += taken
        return taken
    }

    /// Lets the plugin reap its completions without sleeping; true if there were any.
    func poll() -> Bool {
        guard threads == nil, let pollFunction = unsafe pollFunction else { return false }
        exclusion?.lock()
        defer { exclusion?.unlock() }
        return unsafe pollFunction(handle) > 0
    }
}
