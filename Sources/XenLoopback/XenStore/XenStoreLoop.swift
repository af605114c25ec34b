// SPDX-License-Identifier: BSD-2-Clause
// The sockets around the core: one thread that sleeps in epoll_wait(2), one lock around everything else.
import Base
import CLinux
import Glibc
import Synchronization
import Xen

/// Serves the sockets of a directory.
///
/// The thread takes the lock for each batch of events and never sleeps with it, so others can change domains at any
/// time. An event carries a number that is not used again rather than a descriptor, so an event of a socket that
/// another thread has closed meanwhile finds nothing.
final class XenStoreLoop: Sendable {
    private let state: Mutex<XenStoreSockets>
    private let poll: XenStorePoll
    private let directory: String

    /// Makes the store and the socket of domain 0.
    init(directory: String, limits: XenStoreLimits) throws(OperationError) {
        let poll = try XenStorePoll()
        self.poll = poll
        self.directory = directory
        state = Mutex(try XenStoreSockets(directory: directory, core: XenStoreCore(limits: limits), poll: poll))
    }

    func socketPath(of domain: DomainID) -> String {
        XenStoreSockets.path(of: domain, in: directory)
    }

    func addDomain(_ domain: DomainID) throws(OperationError) {
        let result = state.withLock { state in
            Result { () throws(OperationError) in try state.addDomain(domain) }
        }
        try result.get()
    }

    func removeDomain(_ domain: DomainID) {
        state.withLock { $0.removeDomain(domain) }
    }

    /// Serves until ``stop()``.
    func run() {
        var buffer = [UInt8](repeating: 0, count: 1 << 14)
        var timeout: Int32 = -1
        while true {
            guard let events = poll.wait(milliseconds: timeout) else { break }
            let next: Int32? = state.withLock { state in
                for event in events {
                    if event.token == XenStorePoll.wakeToken { return nil }
                    state.serve(event, &buffer)
                }
                return state.resumeAccepting()
            }
            guard let next else { break }
            timeout = next
        }
        close()
    }

    /// Closes all sockets and removes those that have a name.
    func close() {
        state.withLock { $0.closeAll() }
    }

    /// Ends ``run()`` soon.
    func stop() {
        poll.wake()
    }
}
