// SPDX-License-Identifier: BSD-2-Clause
// The keeper as a process beside its worker.
package import Base
import CLinux
import Glibc
package import Support
package import Xen

/// Starts the process that holds a worker's connection to XenStore.
package enum KeeperProcess {
    /// Its name for ps(1).
    package static let name = "xbb-store"

    /// Forks the keeper of the VBD at `backendPath` and returns its worker's end. To be called before there is a thread.
    ///
    /// In the keeper, `open` connects to XenStore and `confine` gives up what is not needed for that connection. If one of
    /// them fails the reason is logged, and the worker's first call fails with EPIPE. The keeper ends with its worker: of
    /// that it has no descriptor but the ends of the two sockets, so it keeps no lock and no image. It opens `journal` itself,
    /// and gives it up to `most` bytes when the worker asks.
    package static func start(
        backendPath: String, journal: (path: String, most: Int)?, log: Log,
        open: () throws(OperationError) -> any XenStore, confine: () throws(OperationError) -> Void
    ) throws(OperationError) -> BrokeredStore {
        let calls = try Descriptor.socketPair(Int32(SOCK_SEQPACKET.rawValue))
        let events = try Descriptor.socketPair(Int32(SOCK_SEQPACKET.rawValue))
        let child = clinux_fork()
        if child < 0 { throw OperationError(errno, "start the keeper of the XenStore connection") }
        if child > 0 { return BrokeredStore(calls: calls.one, events: events.one) }
        clinux_close_all_but(calls.other.raw, events.other.raw)
        // What is sent to a whole group of processes is for the worker, which still needs XenStore to end well.
        for number in [SIGTERM, SIGINT, SIGHUP, SIGPIPE] { signal(number, SIG_IGN) }
        // The call copies the name.
        unsafe pthread_setname_np(pthread_self(), name)
        do throws(OperationError) {
            let store = try open()
            let space = journal.flatMap { JournalSpace($0.path, most: $0.most) }
            try confine()
            StoreKeeper(
                store, backendPath: backendPath, calls: calls.other, events: events.other, journal: space, log: log
            ).run()
        } catch {
            log.error(error.description)
        }
        _exit(0)
    }
}
