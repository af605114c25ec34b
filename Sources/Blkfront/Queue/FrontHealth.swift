// SPDX-License-Identifier: BSD-2-Clause
// Whether a device still works. Shared by its queues.
import Synchronization

/// The end of a device, reported once and never revoked (`BLKIF_STATE_ERROR`, or closed).
///
/// Any thread may ask and report. The first reason counts.
public final class FrontHealth: Sendable {
    private let broken = Atomic<Bool>(false)
    private let reason = Mutex<BlkfrontError?>(nil)

    /// A device that works.
    public init() {}

    /// True while the device works.
    @inline(__always)
    public var isGood: Bool { !broken.load(ordering: .relaxed) }

    /// Why the device no longer works; nil while it does.
    public var error: BlkfrontError? { isGood ? nil : reason.withLock { $0 } }

    /// The fault of the backend that ended the device; nil if there was none.
    public var fault: FrontFault? {
        if case .dead(let fault) = error { return fault }
        return nil
    }

    /// Ends the device; returns the reason that counts.
    @discardableResult
    public func end(_ error: BlkfrontError) -> BlkfrontError {
        let first = reason.withLock { current in
            if current == nil { current = error }
            return current ?? error
        }
        broken.store(true, ordering: .releasing)
        return first
    }

    /// Throws the reason if the device no longer works.
    @inline(__always)
    public func check() throws(BlkfrontError) {
        if !isGood, let error { throw error }
    }
}
