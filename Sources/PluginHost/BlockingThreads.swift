// SPDX-License-Identifier: BSD-2-Clause
// Threads for a plugin whose submit() may sleep.
import PluginPort
import Base
import CLinux
import Glibc
import PluginAPI

/// A few threads that take requests from one list; each has a plugin queue of its own.
///
/// The ring's thread only appends to the list and never waits for the plugin.
///
/// `@unchecked Sendable`: the mutex guards the list and the flags; `threads` belongs to the thread that starts and
/// stops them.
///
/// Unsafe code here is the list, whose indices wrap at `capacity`; it holds every request of the pool at most once.
@safe
package final class BlockingThreads: @unchecked Sendable {
    private let device: PluginDevice
    private let port: CompletionPort
    private let mutex: UnsafeMutablePointer<pthread_mutex_t>
    private let condition: UnsafeMutablePointer<pthread_cond_t>
    /// The list: a ring buffer of pointers, with room for every request of the pool.
    private let waiting: UnsafeMutablePointer<UnsafeMutablePointer<xbb_req>?>
    private let capacity: Int
    private var head = 0
    private var count = 0
    private var stopping = false
    private var opened = 0
    private var failure: OperationError?
    private var threads: [pthread_t] = []

    /// Starts `threadCount` threads and waits until each has opened its queue.
    package init(device: PluginDevice, port: CompletionPort, firstIndex: Int, threadCount: Int) throws(OperationError) {
        self.device = device
        self.port = port
        capacity = port.requestCount
        unsafe waiting = .allocate(capacity: capacity)
        unsafe waiting.initialize(repeating: nil, count: capacity)
        unsafe mutex = .allocate(capacity: 1)
        unsafe mutex.initialize(to: pthread_mutex_t())
        unsafe pthread_mutex_init(mutex, nil)
        unsafe condition = .allocate(capacity: 1)
        unsafe condition.initialize(to: pthread_cond_t())
        unsafe pthread_cond_init(condition, nil)
        for index in 0..<threadCount {
            do throws(OperationError) {
                threads.append(
                    try startThread(named: "xbb-plugin-\(firstIndex + index)") { [self] in
                        run(index: firstIndex + index)
                    })
            } catch {
                failure = error
                break
            }
        }
        unsafe pthread_mutex_lock(mutex)
        while opened < threads.count { unsafe pthread_cond_wait(condition, mutex) }
        let problem = failure
        unsafe pthread_mutex_unlock(mutex)
        if let problem {
            stop()
            throw problem
        }
    }

    deinit {
        unsafe pthread_mutex_destroy(mutex)
        unsafe mutex.deallocate()
        unsafe pthread_cond_destroy(condition)
        unsafe condition.deallocate()
        unsafe waiting.deallocate()
    }

    /// Appends all requests to the list.
    package func submit(_ requests: UnsafePointer<UnsafeMutablePointer<xbb_req>?>, _ number: Int) {
        unsafe pthread_mutex_lock(mutex)
        for index in 0..<number {
            unsafe waiting[(head + count) % capacity] = requests[index]
            count += 1
        }
        unsafe pthread_mutex_unlock(mutex)
        if number == 1 { unsafe pthread_cond_signal(condition) } else { unsafe pthread_cond_broadcast(condition) }
    }

    /// Ends the threads. Nothing may be in flight.
    package func stop() {
        unsafe pthread_mutex_lock(mutex)
        stopping = true
        unsafe pthread_cond_broadcast(condition)
        unsafe pthread_mutex_unlock(mutex)
        for thread in threads { pthread_join(thread, nil) }
        threads = []
    }

    private func run(index: Int) {
        let host = HostQueue(port: port, events: nil)
        var queue: UnsafeMutableRawPointer?
        var problem: OperationError?
        do throws(OperationError) {
            unsafe queue = try device.openQueue(host, index: index, depth: 1)
        } catch {
            problem = error
        }
        unsafe pthread_mutex_lock(mutex)
        opened += 1
        if let problem { failure = problem }
        unsafe pthread_cond_broadcast(condition)
        while problem == nil {
            while count == 0 && !stopping { unsafe pthread_cond_wait(condition, mutex) }
            if count == 0 { break }
            var request = unsafe waiting[head]
            head = (head + 1) % capacity
            count -= 1
            unsafe pthread_mutex_unlock(mutex)
            unsafe device.offer(&request, to: queue, answeringAt: port)
            unsafe pthread_mutex_lock(mutex)
        }
        unsafe pthread_mutex_unlock(mutex)
        if problem == nil { unsafe device.closeQueue(queue, of: host) }
    }
}
