// SPDX-License-Identifier: BSD-2-Clause
// How a frontend grants pages and takes grants back, with the stores that Linux makes (drivers/xen/grant-table.c).
import Glibc
import Synchronization
public import Xen

extension LoopbackDomain {
    /// Lets `domain` use a frame and gives the reference; ENOSPC when the table is full.
    ///
    /// As gnttab_grant_foreign_access: frame, domain, and the flags last. No system call and no lock.
    public func grantAccess(to domain: DomainID, frame: UInt32, readOnly: Bool) throws(XenError) -> UInt32 {
        precondition(Int(frame) < pageCount)
        guard let reference = references.take() else {
            throw XenError(ENOSPC, "grant a frame to domain \(domain)")
        }
        let flags = GrantFlags.permitAccess | (readOnly ? GrantFlags.readOnly : 0)
        setEntry(reference, flags: flags, domain: domain, frame: frame)
        return reference
    }

    /// Takes a grant back and frees its reference; false while the other domain uses it ("g.e. still in use").
    ///
    /// A grant that is in use stays as it was: call again later. No system call and no lock.
    public func endAccess(_ reference: UInt32) -> Bool {
        precondition(references.isTaken(reference), "grant reference \(reference) is not granted")
        guard revokeUnlessInUse(reference) else { return false }
        references.give(reference)
        return true
    }

    /// The order matters: flags first, then the marks of running copies (see GrantTableLayout).
    private func revokeUnlessInUse(_ reference: UInt32) -> Bool {
        let offset = Int(reference) * GrantTableLayout.entryBytes
        if isBeingCopied(reference) { return false }
        var flags = grants.load16(at: offset)
        while true {
            if flags & GrantFlags.inUse != 0 { return false }
            let seen = grants.exchange16(from: flags, to: 0, at: offset)
            if seen == flags { break }
            flags = seen
        }
        if !isBeingCopied(reference) { return true }
        // A copy began in between; it holds the page, so the grant stands again.
        grants.storeRelease16(flags, at: offset)
        return false
    }

    /// True while the other domain maps the page or copies from or to it.
    public func isInUse(_ reference: UInt32) -> Bool {
        precondition(Int(reference) < grantEntryCount)
        let flags = grants.load16(at: Int(reference) * GrantTableLayout.entryBytes)
        return flags & GrantFlags.inUse != 0 || isBeingCopied(reference)
    }

    private func isBeingCopied(_ reference: UInt32) -> Bool {
        let arrays = min(Int(active.load32(at: GrantTableLayout.usedArraysOffset)), GrantTableLayout.arrays)
        let entry = Int(reference) * GrantTableLayout.entryBytes
        for array in 0..<arrays {
            let slot = array * GrantTableLayout.slotsPerArray
            if active.load64(at: GrantTableLayout.markOffset(slot: slot, entries: grantEntryCount) + entry) != 0 {
                return true
            }
        }
        return false
    }

    /// The references that are granted now: after ``init(joining:directory:)``, those of the previous frontend.
    public var grantedReferences: [UInt32] {
        (0..<UInt32(grantEntryCount)).filter {
            grants.load16(at: Int($0) * GrantTableLayout.entryBytes) & GrantFlags.typeMask != 0
        }
    }

    // MARK: Misbehaviour, for tests

    /// Withdraws a grant although it may be in use, as no correct frontend does. ``endAccess(_:)`` frees the reference.
    public func forceRevoke(_ reference: UInt32) {
        precondition(Int(reference) < grantEntryCount)
        grants.storeRelease16(0, at: Int(reference) * GrantTableLayout.entryBytes)
    }

    /// Writes a raw entry of the grant table, whatever it says; `flags` are GTF_ bits of xen/grant_table.h.
    public func setEntry(_ reference: UInt32, flags: UInt16, domain: DomainID, frame: UInt32) {
        precondition(Int(reference) < grantEntryCount)
        let offset = Int(reference) * GrantTableLayout.entryBytes
        grants.store32(frame, at: offset + 4)
        grants.storeRelease16(domain, at: offset + 2)
        grants.storeRelease16(flags, at: offset)
    }

    /// The flags of an entry as they are now, GTF_reading and GTF_writing included.
    public func entryFlags(_ reference: UInt32) -> UInt16 {
        precondition(Int(reference) < grantEntryCount)
        return grants.load16(at: Int(reference) * GrantTableLayout.entryBytes)
    }
}

/// Free grant references as a lock-free stack: a head with a tag against reuse, and a link for each reference.
final class ReferenceList: Sendable {
    /// Linux keeps the first references for the console and XenStore.
    static let reserved = 8
    private static let end: UInt32 = 0xffff_ffff
    private static let taken: UInt32 = 0xffff_fffe

    private let links: SharedRegion
    private let count: Int
    private let head: Atomic<UInt64>

    /// All references that `isFree` accepts, the lowest on top.
    init(entries: Int, isFree: (Int) -> Bool) throws(XenError) {
        count = entries
        links = try SharedRegion(privateBytes: max(entries, 1) * 4)
        var top = Self.end
        for reference in stride(from: entries - 1, through: 0, by: -1) {
            if reference >= Self.reserved && isFree(reference) {
                links.store32(top, at: reference * 4)
                top = UInt32(reference)
            } else {
                links.store32(Self.taken, at: reference * 4)
            }
        }
        head = Atomic(UInt64(top))
    }

    func take() -> UInt32? {
        var old = head.load(ordering: .acquiring)
        while true {
            let reference = UInt32(truncatingIfNeeded: old)
            if reference == Self.end { return nil }
            let next = links.load32(at: Int(reference) * 4)
            let new = (old >> 32 &+ 1) << 32 | UInt64(next)
            let result = head.compareExchange(expected: old, desired: new, ordering: .acquiringAndReleasing)
            if result.exchanged {
                links.store32(Self.taken, at: Int(reference) * 4)
                return reference
            }
            old = result.original
        }
    }

    func isTaken(_ reference: UInt32) -> Bool {
        reference >= Self.reserved && Int(reference) < count && links.load32(at: Int(reference) * 4) == Self.taken
    }

    func give(_ reference: UInt32) {
        var old = head.load(ordering: .acquiring)
        while true {
            links.store32(UInt32(truncatingIfNeeded: old), at: Int(reference) * 4)
            let new = (old >> 32 &+ 1) << 32 | UInt64(reference)
            let result = head.compareExchange(expected: old, desired: new, ordering: .acquiringAndReleasing)
            if result.exchanged { return }
            old = result.original
        }
    }
}
