// SPDX-License-Identifier: BSD-2-Clause
// The way of requests from the queues of a disk to its own threads.

/// Requests that wait for a thread. Any thread may put and take; nothing is allocated for a request.
///
/// `@unchecked Sendable`: all of it is under the monitor.
public final class RequestMailbox: @unchecked Sendable {
    private let monitor = Monitor()
    // Under the monitor:
    private var list = RequestList()
    private var isClosed = false

    /// An empty mailbox.
    public init() {}

    /// Adds a request. In a closed mailbox it fails with EIO.
    public func put(_ request: consuming Request) {
        monitor.lock()
        if isClosed {
            monitor.unlock()
            request.complete(.ioError)
            return
        }
        list.append(request)
        monitor.unlock()
        monitor.signal()
    }

    /// Takes the oldest request, and sleeps until there is one; nil when the mailbox is closed and empty.
    public func take() -> Request? {
        monitor.lock()
        while list.isEmpty && !isClosed { monitor.wait() }
        let request = list.removeFirst()
        monitor.unlock()
        return request
    }

    /// Lets threads end when they have taken what is there.
    public func close() {
        monitor.locked { isClosed = true }
        monitor.broadcast()
    }
}
