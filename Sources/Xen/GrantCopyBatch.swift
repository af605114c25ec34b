// SPDX-License-Identifier: BSD-2-Clause
// Grant copies that go to the hypervisor in one call.
public import CXen
public import Memory

/// Copies between granted pages and host memory, done in one call of ``GrantTable/copy(_:)``.
///
/// Holds the very array that libxengnttab takes (`xengnttab_grant_copy_segment_t`), so that a batch is handed on as
/// it is. The capacity never grows.
@safe
public struct GrantCopyBatch: ~Copyable {
    /// `GNTST_okay` of xen/grant_table.h.
    public static let okay: Int16 = 0

    private let operations: UnsafeMutablePointer<xengnttab_grant_copy_segment_t>
    /// Operations in the batch.
    public private(set) var count = 0
    /// The most operations that fit.
    public let capacity: Int

    /// An empty batch for at most `capacity` operations.
    public init(capacity: Int) {
        precondition(capacity > 0)
        unsafe operations = .allocate(capacity: capacity)
        unsafe operations.initialize(repeating: .init(), count: capacity)
        self.capacity = capacity
    }

    deinit {
        unsafe operations.deallocate()
    }

    /// Empties the batch.
    public mutating func removeAll() {
        count = 0
    }

    /// Adds a copy of `length` bytes between `offset` of a granted page and `hostOffset` of `memory`.
    ///
    /// The caller has checked that the bytes lie in one page and that there is room (``capacity``).
    public mutating func append(
        reference: UInt32, of domain: DomainID, offset: Int, length: Int,
        host memory: HostMemory, hostOffset: Int, toGuest: Bool
    ) {
        precondition(offset >= 0 && length > 0 && offset <= 4096 - length && count < capacity)
        unsafe cxen_set_copy(
            operations + count, domain, reference, UInt16(truncatingIfNeeded: offset),
            UInt16(truncatingIfNeeded: length), memory.address(at: hostOffset, count: length), toGuest ? 1 : 0)
        count += 1
    }

    /// The status of an operation after the copy: ``okay`` or a negative `GNTST_` code.
    public func status(at index: Int) -> Int16 {
        precondition(index < count)
        return unsafe operations[index].status
    }

    /// The array as libxengnttab takes it; for implementations of the grant table.
    @unsafe public var segments: UnsafeMutableBufferPointer<xengnttab_grant_copy_segment_t> {
        unsafe .init(start: operations, count: count)
    }
}
