// SPDX-License-Identifier: BSD-2-Clause
// How a frontend grants pages and revokes grants, with the same stores as Linux (drivers/xen/grant-table.c).
import Base
import Glibc
import Synchronization
public import Xen

extension LoopbackDomain {
    /// Grants a frame to `domain` and returns the reference; ENOSPC if the table is full.
    ///
    /// Like gnttab_grant_foreign_access: frame and domain first, the flags last. No system call and no lock, unless
    /// more grants exist at once than ever before: then the broker is asked to double the number of references.
    public func grantAccess(to domain: DomainID, frame: UInt32, readOnly: Bool) throws(OperationError) -> UInt32 {
        precondition(Int(frame) < pageCount)
        let reference: UInt32
        if let free = references.take() { reference = free } else { reference = try takeMoreReferences() }
        let flags = GrantFlags.permitAccess | (readOnly ? GrantFlags.readOnly : 0)
        setEntry(reference, flags: flags, domain: domain, frame: frame)
        return reference
    }

    private func takeMoreReferences() throws(OperationError) -> UInt32 {
        try referenceCount.withLock { count throws(OperationError) -> UInt32 in
            if let reference = references.take() { return reference }
            let answer = try connection.call(
                .takeReferences, [UInt32(max(count, 128))], for: "take more grant references of domain \(id)")
            count += answer.words.count
            for reference in answer.words.dropFirst().reversed() where Int(reference) < grantEntryCount {
                references.give(reference)
            }
            let first = answer.word(0)
            if Int(first) >= grantEntryCount { throw OperationError(EPROTO, "take more grant references") }
            references.claim(first)
            return first
        }
    }

    /// Revokes a grant and frees its reference; false while the other domain uses it ("g.e. still in use").
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
        // A copy began in between and uses the page, so the grant is restored.
        grants.storeRelease16(flags, at: offset)
        return false
    }

    /// True while the other domain maps the page or a copy from or to it is running.
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

    /// The references that this object has granted.
    public var grantedReferences: [UInt32] {
        (0..<UInt32(grantEntryCount)).filter {
            references.isTaken($0)
                && grants.load16(at: Int($0) * GrantTableLayout.entryBytes) & GrantFlags.typeMask != 0
        }
    }

    // MARK: Misbehaviour, for tests

    /// Revokes a grant even if it is in use, which no correct frontend does. ``endAccess(_:)`` frees the reference.
    public func forceRevoke(_ reference: UInt32) {
        precondition(Int(reference) < grantEntryCount)
        grants.storeRelease16(0, at: Int(reference) * GrantTableLayout.entryBytes)
    }

    /// Writes a raw entry of the grant table, valid or not; `flags` are GTF_ bits of xen/grant_table.h.
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
    private static let end: UInt32 = 0xffff_ffff
    private static let taken: UInt32 = 0xffff_fffe
    /// A reference that does not belong to this object.
    private static let foreign: UInt32 = 0xffff_fffd

    private let links: SharedRegion
    private let count: Int
    private let head = Atomic(UInt64(end))

    /// An empty list for references below `entries`.
    init(entries: Int) throws(OperationError) {
        count = entries
        links = try SharedRegion(privateBytes: max(entries, 1) * 4)
        for reference in 0..<entries { links.store32(Self.foreign, at: reference * 4) }
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

    /// Marks a foreign reference as taken by this object.
    func claim(_ reference: UInt32) {
        links.store32(Self.taken, at: Int(reference) * 4)
    }

    func isTaken(_ reference: UInt32) -> Bool {
        Int(reference) < count && links.load32(at: Int(reference) * 4) == Self.taken
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
