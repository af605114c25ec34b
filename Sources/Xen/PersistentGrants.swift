// SPDX-License-Identifier: BSD-2-Clause
// Persistent grants: pages that a frontend uses again and again stay mapped, and memcpy(3) takes the place of a grant copy.
//
// blkif.h, feature-persistent: the frontend reuses its grants, and lets the backend map all of them writable. It may still use
// others at any time; those, and what does not fit, are copied by Xen. No I/O goes to mapped pages: bytes are copied between
// them and private memory, once, and looked at there.
import Base
import CLinux
import Memory

/// What ``PersistentGrants`` did, to be added to statistics.
public struct PersistentGrantCounts: Sendable, Equatable {
    /// Copies that were no hypercall.
    public var copies: UInt64 = 0
    /// Pages mapped and unmapped.
    public var maps: UInt64 = 0
    /// See ``maps``.
    public var unmaps: UInt64 = 0
    /// Pages that could not be mapped or unmapped.
    public var errors: UInt64 = 0
}

/// How many pages stay mapped.
public enum PersistentGrantLimits {
    /// Pages of a disk: 32 requests of 32 pages and their lists. xen-blkback has so many for each queue; Xen lets a domain map
    /// 262,144 pages of others unless told otherwise, which all disks share with whatever else dom0 maps.
    public static let pagesOfDisk = 1056

    /// The part of ``pagesOfDisk`` that each of `queues` has; never less than a few small requests need.
    public static func pages(ofEachOf queues: Int) -> Int { max(pagesOfDisk / max(queues, 1), 16) }
}

/// A grant table that keeps pages mapped for the copies of one domain, in front of one that does all other copies.
///
/// Bounded in pages, and in how many it maps and unmaps: whatever references a guest uses. All is unmapped by
/// ``unmapAll()``, or with this object; of a process that is killed, by the kernel. Use from one thread.
public final class PersistentGrants<Base: GrantTable>: GrantTable {
    private let base: Base
    private let domain: DomainID
    private let usesBeforeMapping: UInt8
    private var kept: KeptGrants
    /// The operations that are left for `base`, and where they stand in the batch.
    private var rest: GrantCopyBatch
    private var positions: FixedArray<Int32>
    private let report: (PersistentGrantCounts) -> Void
    private let clock: () -> UInt64
    private var counts = PersistentGrantCounts()
    /// When a page was last unmapped to make room, in ns of `clock`.
    private var lastEviction: UInt64 = 0
    /// References that could not be mapped.
    private var errors: UInt64 = 0

    /// Pages mapped for one batch; the others of it are copied by Xen and mapped later.
    static var mapsPerBatch: Int { 64 }
    /// One page in so many ns makes room for another one: 500 in a second, as xen-blkback's shrinker.
    static var evictionPause: UInt64 { 2_000_000 }
    /// So many references that cannot be mapped, and none are mapped any more: each costs a system call.
    static var mostErrors: UInt64 { 256 }

    /// For copies of `domain` in batches of at most `batchCapacity`. A page is mapped at its `firstUse`th use, 1 to 255; of at
    /// most `pages`. `report` gets what was done since it was last called, on the thread that copies. `clock` is in ns.
    public init(
        _ base: Base, of domain: DomainID, batchCapacity: Int, mapAtUse firstUse: UInt8, pages: Int,
        clock: @escaping () -> UInt64 = { clinux_monotonic_ns() }, report: @escaping (PersistentGrantCounts) -> Void
    ) {
        self.base = base
        self.domain = domain
        usesBeforeMapping = firstUse
        kept = KeptGrants(capacity: pages, secret: UInt64.random(in: .min ... .max))
        rest = GrantCopyBatch(capacity: batchCapacity)
        positions = FixedArray(zeroed: batchCapacity)
        self.clock = clock
        self.report = report
    }

    deinit { unmapAll() }

    /// Pages that are mapped or known.
    public var count: Int { kept.count }

    /// See ``GrantTable``. What is mapped is copied even where the call for the rest fails.
    public func copy(_ batch: inout GrantCopyBatch) throws(OperationError) {
        guard batch.count <= rest.capacity else { return try base.copy(&batch) }
        rest.removeAll()
        var mapsLeft = Self.mapsPerBatch
        for index in 0..<batch.count {
            if let page = unsafe page(for: batch.reference(at: index), of: batch.domain(at: index), &mapsLeft) {
                unsafe batch.carryOut(index, on: page)
                counts.copies += 1
            } else {
                positions[rest.count] = Int32(truncatingIfNeeded: index)
                rest.append(index, of: batch)
            }
        }
        if counts != PersistentGrantCounts() {
            report(counts)
            counts = PersistentGrantCounts()
        }
        if rest.count == 0 { return }
        try base.copy(&rest)
        for index in 0..<rest.count { batch.setStatus(rest.status(at: index), at: Int(positions[index])) }
    }

    /// See ``GrantTable``: a mapping that is the caller's.
    public func map(
        _ references: [UInt32], of domain: DomainID, writable: Bool
    ) throws(OperationError) -> GrantMapping {
        try base.map(references, of: domain, writable: writable)
    }

    /// See ``GrantTable``.
    public func unmap(_ mapping: GrantMapping) throws(OperationError) { try base.unmap(mapping) }

    /// Unmaps all pages. Those that the kernel refuses are counted, and end with the process.
    public func unmapAll() {
        while kept.oldest >= 0 { forget(kept.oldest) }
        report(counts)
        counts = PersistentGrantCounts()
    }

    // MARK: Pages

    /// The mapped page of a reference; nil where Xen is to copy.
    private func page(
        for reference: UInt32, of domain: DomainID, _ mapsLeft: inout Int
    ) -> UnsafeMutableRawPointer? {
        if domain != self.domain { return nil }
        guard let index = kept.use(reference) ?? add(reference) else { return nil }
        if kept[index].state == .seen {
            guard kept[index].uses >= usesBeforeMapping, mapsLeft > 0, errors < Self.mostErrors else { return nil }
            mapsLeft -= 1
            map(index)
        }
        return unsafe UnsafeMutableRawPointer(bitPattern: kept[index].address)
    }

    private func map(_ index: Int32) {
        do throws(OperationError) {
            let mapping = try base.map([kept[index].reference], of: domain, writable: true)
            kept[index].cookie = mapping.cookie
            kept[index].address = unsafe UInt(bitPattern: mapping.pages.address)
            kept[index].state = .mapped
            counts.maps += 1
        } catch {
            kept[index].state = .refused
            counts.errors += 1
            errors += 1
        }
    }

    /// A reference that was not known. Where the table is full, the one that was not used for the longest time goes, if it costs
    /// nothing or it is time.
    private func add(_ reference: UInt32) -> Int32? {
        if let index = kept.add(reference) { return index }
        if kept[kept.oldest].state != .seen {
            let now = clock()
            if now &- lastEviction < Self.evictionPause { return nil }
            lastEviction = now
        }
        forget(kept.oldest)
        return kept.add(reference)
    }

    private func forget(_ index: Int32) {
        let grant = kept[index]
        kept.remove(index)
        guard grant.state == .mapped, let page = unsafe UnsafeMutableRawPointer(bitPattern: grant.address) else {
            return
        }
        do throws(OperationError) {
            try base.unmap(GrantMapping(pages: unsafe SharedPages(base: page, byteCount: 4096), cookie: grant.cookie))
            counts.unmaps += 1
        } catch {
            counts.errors += 1
        }
    }
}
