// SPDX-License-Identifier: BSD-2-Clause
// Access to pages that another domain granted.
import Base
public import Memory

/// Pages of another domain, mapped next to each other. Unmapped by ``GrantTable/unmap(_:)``, or when the process ends.
public struct GrantMapping: Sendable {
    /// The mapped pages.
    public let pages: SharedPages
    /// A number by which the implementation finds the mapping again.
    public let cookie: UInt64

    /// Pages and the implementation's own number for the mapping.
    public init(pages: SharedPages, cookie: UInt64) {
        self.pages = pages
        self.cookie = cookie
    }
}

/// The hypervisor's grant table, seen from the side that uses grants.
///
/// `copy` is on the hot path and is called once for each batch. Each queue has a handle of its own; use from one
/// thread.
public protocol GrantTable: AnyObject {
    /// Copies every operation of the batch and sets each one's status (``GrantCopyBatch/status(at:)``).
    ///
    /// Throws only if no operation was tried; a bad grant reference is a status of its operation, not an error.
    func copy(_ batch: inout GrantCopyBatch) throws(OperationError)
    /// Maps one page for each reference: all of them or none.
    func map(_ references: [UInt32], of domain: DomainID, writable: Bool) throws(OperationError) -> GrantMapping
    /// Unmaps the pages, which must not be used afterwards.
    func unmap(_ mapping: GrantMapping) throws(OperationError)
}
