// SPDX-License-Identifier: BSD-2-Clause
// The plugin's side of a queue: called in place, on threads of its own if it may sleep, or on that of a queue that several
// rings share.
import Base
import Glibc
import Memory
import PluginAPI
import PluginHost
import PluginPort

/// An open queue of a plugin, used and closed on the thread that opened it.
///
/// A fence for unsafe memory: the plugin's handle and functions, which live as long as the device, and two arrays of
/// `batchCapacity` that are written and read below it.
@safe
struct PluginQueue: ~Copyable {
    private let device: PluginDevice
    private let port: CompletionPort
    private let handle: UnsafeMutableRawPointer?
    private let threads: BlockingThreads?
    /// The queue that is shared with other rings, on a thread of its own; nil: `handle` or `threads` is this ring's alone.
    private let shared: SharedPluginQueue?
    private let submitFunction:
        @convention(c) (UnsafeMutableRawPointer?, UnsafePointer<UnsafeMutablePointer<xbb_req>?>?, UInt32) -> UInt32
    private let pollFunction: (@convention(c) (UnsafeMutableRawPointer?) -> UInt32)?
    private let exclusion: PluginExclusion?
    /// Requests that are being offered, as the plugin gets them and by their indices.
    private let batch: UnsafeMutablePointer<UnsafeMutablePointer<xbb_req>?>
    private let batchCapacity: Int
    private let indices: UnsafeMutablePointer<Int32>

    /// True if the plugin can be asked for completions without a system call.
    var canPoll: Bool { unsafe pollFunction != nil && threads == nil && shared == nil }

    /// Opens the plugin's queue number `index`, or a queue for each of `threadCount` threads if it may sleep; or takes part
    /// in one that is `shared`.
    init(
        device: PluginDevice, port: CompletionPort, events: PluginEvents, index: Int, depth: Int, threadCount: Int,
        shared: SharedPluginQueue? = nil
    ) throws(OperationError) {
        guard let submit = unsafe device.library.table.submit else {
            throw OperationError(.invalid, "plugin '\(device.library.name)' has no submit()")
        }
        let threads: BlockingThreads?
        let handle: UnsafeMutableRawPointer?
        if let shared {
            try shared.open()
            threads = nil
            unsafe handle = nil
        } else if device.library.isBlocking {
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
        self.shared = shared
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
        if let shared {
            shared.close()
        } else if let threads {
            threads.stop()
        } else {
            unsafe device.closeQueue(handle, of: port.hostQueue)
            // The port outlives the queue, its events do not.
            port.hostQueue.events = nil
        }
        unsafe batch.deallocate()
        unsafe indices.deallocate()
    }

    /// Offers what is ready to the plugin.
    ///
    /// A request that the plugin completed although it did not take it counts as taken, and as a violation.
    func submit(_ side: inout PluginSide) -> Submission {
        let count = min(side.offerable, batchCapacity)
        var submission = Submission()
        if count <= 0 { return submission }
        side.offer(count) { position, request, pointer in
            unsafe indices[position] = request
            unsafe batch[position] = unsafe pointer.forPlugin
        }
        submission.offered = count
        submission.taken = count
        if let threads {
            unsafe threads.submit(UnsafePointer(batch), count)
            return submission
        }
        if let shared {
            unsafe shared.submit(UnsafePointer(batch), count, answeringAt: port)
            return submission
        }
        exclusion?.lock()
        let answer = Int(unsafe submitFunction(handle, UnsafePointer(batch), UInt32(truncatingIfNeeded: count)))
        exclusion?.unlock()
        if answer > count { submission.violations = 1 }
        var position = count - 1
        while position >= min(answer, count) {
            if side.takeBack(unsafe indices[position]) {
                submission.taken -= 1
            } else {
                submission.violations += 1
            }
            position -= 1
        }
        return submission
    }

    /// Asks the plugin to finish all that it has in hand at once, with errors if need be: nobody waits for the data any more. Not a plugin
    /// that sleeps in submit(), nor a queue that other rings use, too.
    func cancel() {
        guard threads == nil, shared == nil, let cancel = unsafe device.library.table.cancel else { return }
        exclusion?.lock()
        unsafe cancel(handle, nil)
        exclusion?.unlock()
    }

    /// Lets the plugin reap its completions without sleeping; true if there were any.
    func poll() -> Bool {
        guard canPoll, let pollFunction = unsafe pollFunction else { return false }
        exclusion?.lock()
        defer { exclusion?.unlock() }
        return unsafe pollFunction(handle) > 0
    }
}

/// What became of plugin requests that were offered.
struct Submission {
    /// Requests that the plugin was offered; 0 where there was none to offer.
    var offered = 0
    /// Those of them that it took.
    var taken = 0
    /// Calls that broke the ABI's rules.
    var violations = 0
}
