// SPDX-License-Identifier: BSD-2-Clause
// Threads for a plugin whose submit() may sleep.
import CLinux
import Glibc
import PluginAPI
import Xen

/// A few threads, each with a queue of the plugin, that take requests from one list.
///
/// The ring's thread only appends to the list and never waits for the plugin.
@safe
final class BlockingThreads: @unchecked Sendable {
    private let device: PluginDevice
    private let port: CompletionPort
    private let mutex: UnsafeMutablePointer<pthread_mutex_t>
    private let condition: UnsafeMutablePointer<pthread_cond_t>
    /// The list: a ring of pointers, as long as the pool of requests.
    private let waiting: UnsafeMutablePointer<UnsafeMutablePointer<xbb_req>?>
    private let capacity: Int
    private var head = 0
    private var count = 0
    private var stopping = false
    private var opened = 0
    private var failure: PluginError?
    private var threads: [pthread_t] = []

    /// Starts `threadCount` threads and waits until each has opened its queue.
    init(device: PluginDevice, port: CompletionPort, firstIndex: Int, threadCount: Int) throws(PluginError) {
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
            let thread = startThread(name: "xbb-plugin-\(firstIndex + index)") { [self] in
                run(index: firstIndex + index)
            }
            guard let thread else {
                failure = PluginError(.open, "cannot start a thread for the plugin: \(errnoText(errno))")
                break
            }
            threads.append(thread)
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

    /// Hands over all of the requests.
    func submit(_ requests: UnsafePointer<UnsafeMutablePointer<xbb_req>?>, _ number: Int) {
        unsafe pthread_mutex_lock(mutex)
        for index in 0..<number {
            unsafe waiting[(head + count) % capacity] = requests[index]
            count += 1
        }
        unsafe pthread_mutex_unlock(mutex)
        if number == 1 { unsafe pthread_cond_signal(condition) } else { unsafe pthread_cond_broadcast(condition) }
    }

    /// Ends the threads; nothing is in flight.
    func stop() {
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
        var problem: PluginError?
        do throws(PluginError) {
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

/// Starts a joinable thread; nil with errno when the system refuses.
@safe
func startThread(name: String, _ body: @escaping @Sendable () -> Void) -> pthread_t? {
    final class Body {
        let run: @Sendable () -> Void
        let name: String
        init(_ run: @escaping @Sendable () -> Void, _ name: String) {
            self.run = run
            self.name = name
        }
    }
    var thread = pthread_t()
    let box = unsafe Unmanaged.passRetained(Body(body, name))
    let result = unsafe pthread_create(
        &thread, nil,
        { argument in
            guard let argument = unsafe argument else { return nil }
            let body = unsafe Unmanaged<Body>.fromOpaque(argument).takeRetainedValue()
            unsafe pthread_setname_np(pthread_self(), String(body.name.prefix(15)))
            body.run()
            return nil
        }, box.toOpaque())
    if result != 0 {
        unsafe box.release()
        errno = result
        return nil
    }
    return thread
}
