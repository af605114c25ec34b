// SPDX-License-Identifier: BSD-2-Clause
// The real grant table, over libxengnttab and /dev/xen/gntdev.
import Base
import CLinux
import CXen
import Glibc
import Memory

/// Grant copy and map of Xen (xengnttab.h).
///
/// Unsafe code here is the C interface; the handle lives as long as this object.
@safe
public final class LibXenGrantTable: GrantTable {
    private let handle: OpaquePointer
    /// Number of pages of each mapping, by the address that Xen returned.
    private var mapped: [UInt64: UInt32] = [:]

    /// Opens /dev/xen/gntdev: xengnttab_open().
    public init() throws(OperationError) {
        guard let handle = unsafe xengnttab_open(nil, 0) else { throw OperationError(errno, "open /dev/xen/gntdev") }
        unsafe self.handle = handle
    }

    deinit {
        unsafe xengnttab_close(handle)
    }

    /// See ``GrantTable``.
    public func copy(_ batch: inout GrantCopyBatch) throws(OperationError) {
        let segments = unsafe batch.segments
        guard let first = segments.baseAddress else { return }
        if unsafe xengnttab_grant_copy(handle, UInt32(segments.count), first) != 0 {
            throw OperationError(errno, "grant copy of \(batch.count) operations")
        }
    }

    /// See ``GrantTable``.
    public func map(
        _ references: [UInt32], of domain: DomainID, writable: Bool
    ) throws(OperationError) -> GrantMapping {
        var references = references
        let count = UInt32(clamping: references.count)
        let address = unsafe xengnttab_map_domain_grant_refs(
            handle, count, UInt32(domain), &references, writable ? PROT_READ | PROT_WRITE : PROT_READ)
        guard let address = unsafe address else {
            throw OperationError(errno, "map grant references \(references) of domain \(domain)")
        }
        let cookie = UInt64(UInt(bitPattern: address))
        mapped[cookie] = count
        return unsafe GrantMapping(pages: SharedPages(base: address, byteCount: Int(count) * 4096), cookie: cookie)
    }

    /// See ``GrantTable``.
    public func unmap(_ mapping: GrantMapping) throws(OperationError) {
        guard let count = mapped.removeValue(forKey: mapping.cookie),
            let address = unsafe UnsafeMutableRawPointer(bitPattern: UInt(mapping.cookie))
        else { throw OperationError(EINVAL, "unmap pages that are not mapped") }
        if unsafe xengnttab_unmap(handle, address, count) != 0 { throw OperationError(errno, "unmap granted pages") }
    }
}
