// SPDX-License-Identifier: BSD-2-Clause
// Grant copies that go to the hypervisor in one call.
public import CXen
import Glibc
public import Memory

/// Copies between granted pages and host memory, all done by one call of ``GrantTable/copy(_:)``.
///
/// Stores the array in the layout that libxengnttab takes (`xengnttab_grant_copy_segment_t`), so a batch is passed on
/// without conversion. The capacity never grows.
///
/// Unsafe code here indexes the array below `used`, which never exceeds `capacity`.
@safe
public struct GrantCopyBatch: ~Copyable {
    /// `GNTST_okay` of xen/grant_table.h.
    public static let okay: Int16 = 0

    @usableFromInline let operations: UnsafeMutablePointer<xengnttab_grant_copy_segment_t>
    @usableFromInline var used = 0
    /// Operations in the batch.
    @inlinable public var count: Int { used }
    /// The most operations that the batch can hold.
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
        used = 0
    }

    /// Adds a copy of `length` bytes between `offset` of a granted page and `hostOffset` of `memory`.
    ///
    /// The caller has checked that the bytes lie within one page and that the batch has room (``capacity``).
    @inlinable @inline(__always)
    public mutating func append(
        reference: UInt32, of domain: DomainID, offset: Int, length: Int,
        host memory: HostMemory, hostOffset: Int, toGuest: Bool
    ) {
        precondition(offset >= 0 && length > 0 && offset <= 4096 - length && used < capacity)
        unsafe cxen_set_copy(
            operations + used, domain, reference, UInt16(truncatingIfNeeded: offset),
            UInt16(truncatingIfNeeded: length), memory.address(at: hostOffset, count: length), toGuest ? 1 : 0)
        used &+= 1
    }

    /// The reference and the domain of an operation.
    func reference(at index: Int) -> UInt32 {
        precondition(UInt(bitPattern: index) < UInt(bitPattern: used))
        return unsafe cxen_copy_reference(operations + index)
    }

    /// See ``reference(at:)``.
    func domain(at index: Int) -> DomainID {
        precondition(UInt(bitPattern: index) < UInt(bitPattern: used))
        return unsafe cxen_copy_domain(operations + index)
    }

    /// Adds an operation of another batch. There must be room.
    mutating func append(_ index: Int, of other: borrowing GrantCopyBatch) {
        precondition(UInt(bitPattern: index) < UInt(bitPattern: other.used) && used < capacity)
        unsafe operations[used] = other.operations[index]
        used &+= 1
    }

    /// Does an operation on its granted page, which is mapped at `page`; the status is ``okay``.
    ///
    /// Unsafe as memcpy(3): the bytes lie within the page, as ``append(reference:of:offset:length:host:hostOffset:toGuest:)`` has
    /// checked, and the host's side was checked there, too. The guest may change its page meanwhile: what is copied from it has
    /// to be looked at in the copy.
    @unsafe mutating func carryOut(_ index: Int, on page: UnsafeMutableRawPointer) {
        precondition(UInt(bitPattern: index) < UInt(bitPattern: used))
        let operation = unsafe operations + index
        guard let host = unsafe cxen_copy_host(operation) else { return }
        let guest = unsafe page + Int(cxen_copy_offset(operation))
        if unsafe cxen_copy_to_guest(operation) != 0 {
            unsafe memcpy(guest, host, Int(operation.pointee.len))
        } else {
            unsafe memcpy(host, guest, Int(operation.pointee.len))
        }
        unsafe operation.pointee.status = Self.okay
    }

    /// Sets the status of an operation.
    mutating func setStatus(_ status: Int16, at index: Int) {
        precondition(UInt(bitPattern: index) < UInt(bitPattern: used))
        unsafe operations[index].status = status
    }

    /// Makes every operation one that was not done.
    public mutating func failAll() {
        for index in 0..<used { unsafe operations[index].status = Int16(GNTST_general_error) }
    }

    /// The status of an operation after the copy: ``okay`` or a negative `GNTST_` code.
    @inlinable @inline(__always)
    public func status(at index: Int) -> Int16 {
        precondition(UInt(bitPattern: index) < UInt(bitPattern: used))
        return unsafe operations[index].status
    }

    /// The array in the layout that libxengnttab takes, for implementations of the grant table.
    @unsafe public var segments: UnsafeMutableBufferPointer<xengnttab_grant_copy_segment_t> {
        unsafe .init(start: operations, count: count)
    }
}
