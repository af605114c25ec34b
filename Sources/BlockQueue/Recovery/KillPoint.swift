// SPDX-License-Identifier: BSD-2-Clause
// Places where a test lets the process be killed. Release builds have none.
import PluginHost
import Glibc
import Synchronization

/// A place on the way of a request or of a connection. docs/recovery.md says what each of them leaves behind.
package enum KillPoint: String, CaseIterable, Sendable {
    /// A request is in the journal and not yet counted as taken.
    case taking
    /// Requests were taken, and nothing was done for them.
    case taken
    /// The segments of indirect requests were copied, and nothing was made of them.
    case fetched
    /// Data was copied from or to the guest.
    case copied
    /// The plugin was handed requests.
    case submitted
    /// The plugin's completions were taken.
    case completed
    /// Responses stand in the ring, and the frontend cannot see them.
    case answered
    /// The frontend can see them, and the journal does not know.
    case published
    /// The journal knows, and the frontend has had no event.
    case released
    /// Requests of a predecessor were begun again.
    case replayed
    /// The storage is open.
    case opened
    /// The journal of a connection was begun and is not complete.
    case journalBegun
    /// The ring is mapped.
    case mapped
    /// The event channel is bound.
    case bound
    /// The queues run, and XenStore does not say so yet.
    case connected
    /// XenStore says so, and no request was taken.
    case started
    /// A guest is about to be served from other storage.
    case exchanged
    /// The queues are about to finish.
    case draining
    /// Nothing is in flight and mapped any more.
    case drained
    /// Before it hands over: the storage is closed.
    case closed
    /// The next process may begin, and this one has not ended.
    case letGo
    /// A process is ready to stand by and has not said so.
    case prepared
    /// One that stands by was told that its turn has come.
    case called
    /// It holds the lock, and nobody knows.
    case inherited

    /// Kills the process where XBB_KILL_POINT names this place: "taken", or "taken:3" for the third time.
    @inline(__always)
    package static func reach(_ point: KillPoint) {
        #if DEBUG
            Trap.shared?.spring(point)
        #endif
    }
}

#if DEBUG
    private final class Trap: Sendable {
        static let shared = Trap()
        private let point: KillPoint
        private let left: Atomic<Int>

        private init?() {
            // The environment is not changed while the process runs, and the text is copied.
            guard let text = unsafe getenv("XBB_KILL_POINT") else { return nil }
            let parts = unsafe String(cString: text).split(separator: ":").map(String.init)
            guard let name = parts.first, let point = KillPoint(rawValue: name) else { return nil }
            self.point = point
            left = Atomic(parts.count > 1 ? Int(parts[1]) ?? 1 : 1)
        }

        func spring(_ reached: KillPoint) {
            guard reached == point, left.subtract(1, ordering: .relaxed).newValue == 0 else { return }
            raise(SIGKILL)
        }
    }
#endif
