// SPDX-License-Identifier: BSD-2-Clause
// Access to pages that another domain granted.
import Base
public import Memory

/// Pages of another domain mapped side by side. Unmapped by ``GrantTable/unmap(_:)``, or with the process.
public struct GrantMapping: Sendable {
    /// The mapped pages.
    public let pages: SharedPages
    /// What the implementation needs to unmap.
    public let cookie: UInt64

    /// Pages and the implementation's own number for them.
    public init(pages: SharedPages, cookie: UInt64) {
        self.pages = pages
        self.cookie = cookie
    }
}

/// The grant table of this domain's hypervisor, seen from the side that uses grants.
///
/// `copy` is the hot path and is called once for a batch. Each queue has a table of its own; use from one thread.
public protocol GrantTable: AnyObject {
    /// Copies every operation of the batch and sets each one's status (``GrantCopyBatch/status(at:)``).
    ///
    /// Throws only if no operation was tried; a bad grant reference is a status of its operation, not an error.
    func copy(_ batch: inout GrantCopyBatch) throws(OperationError)
    /// Maps one page for each reference, all or none.
    func map(_ references: [UInt32], of domain: DomainID, writable: Bool) throws(OperationError) -> GrantMapping
    /// Unmaps; the pages must not be used any more.
    func unmap(_ mapping: GrantMapping) throws(OperationError)
}
