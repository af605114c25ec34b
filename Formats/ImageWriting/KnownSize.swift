// SPDX-License-Identifier: BSD-2-Clause
// What this process knows of a file's size, beside threads that change it and others that look whether somebody else has.
import Synchronization

/// The size of a file, in bytes, as this process has found or made it. Any thread; one at a time changes it.
package struct KnownSize: ~Copyable, Sendable {
    private let known: Atomic<UInt64>
    /// Counted at the begin and at the end of each change, so odd within one.
    private let changes = Atomic<UInt64>(0)

    /// As it was found.
    package init(_ bytes: UInt64) { known = Atomic(bytes) }

    /// Bytes.
    package var bytes: UInt64 { known.load(ordering: .acquiring) }

    /// Changes the size of the file within `body`, which gets what sets the known one.
    package func change<Result>(_ body: (_ set: (UInt64) -> Void) -> Result) -> Result {
        changes.wrappingAdd(1, ordering: .sequentiallyConsistent)
        defer { changes.wrappingAdd(1, ordering: .sequentiallyConsistent) }
        return body { known.store($0, ordering: .releasing) }
    }

    /// What `measure` gives, the bytes that the file has now, where those are fewer than the known ones: somebody else has cut it off.
    /// nil: it has them all, or this process is changing them.
    package func cutOff(_ measure: () -> UInt64?) -> UInt64? {
        // The two cannot be read in one step, so a change in between shows in the count.
        let before = changes.load(ordering: .sequentiallyConsistent)
        let known = bytes
        guard before & 1 == 0, let now = measure(), now < known else { return nil }
        return changes.load(ordering: .sequentiallyConsistent) == before ? now : nil
    }
}
