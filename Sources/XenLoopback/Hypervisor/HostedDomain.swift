// SPDX-License-Identifier: BSD-2-Clause
// A domain as the broker keeps it: its shared memory, its mapped grants, running copies, its ports.
import Base
import CXen
import Glibc
import Xen

/// One incarnation of a domain. Used on the broker's thread only.
final class HostedDomain {
    let id: DomainID
    /// Unique among all incarnations of all domains.
    let serial: UInt32
    let pageCount: Int
    let entryCount: Int
    let memoryFile: Descriptor
    let grantsFile: Descriptor
    let activeFile: Descriptor
    let readOnlyActiveFile: Descriptor
    let grants: SharedRegion
    private let active: SharedRegion
    private var slots = [Bool](repeating: false, count: GrantTableLayout.slots)
    private var pins: [UInt32: Pin] = [:]
    var ports: [EventPort: HostedPort] = [:]
    var shares = FrontendShares()
    /// The connection whose end destroys the domain; nil for a domain that stays.
    weak var owner: HypervisorClient?

    /// How often a page is mapped, and the entry's flags at the time of the first map (Xen's active entry).
    private struct Pin {
        let domain: DomainID
        let frame: UInt32
        var reads = 0
        var writes = 0
    }

    init(id: DomainID, serial: UInt32, pages: Int, entries: Int) throws(OperationError) {
        self.id = id
        self.serial = serial
        pageCount = pages
        entryCount = entries
        let grantsBytes = GrantTableLayout.grantsBytes(entries: entries)
        let activeBytes = GrantTableLayout.activeBytes(entries: entries)
        let memoryBytes = max(pages, 1) * GrantTableLayout.pageBytes
        memoryFile = try Descriptor.sealedMemory("xbb-domain-\(id)", byteCount: memoryBytes)
        grantsFile = try Descriptor.sealedMemory("xbb-grants-\(id)", byteCount: grantsBytes)
        activeFile = try Descriptor.sealedMemory("xbb-active-\(id)", byteCount: activeBytes)
        readOnlyActiveFile = try activeFile.readOnlyCopy()
        grants = try SharedRegion(grantsFile, byteCount: grantsBytes)
        active = try SharedRegion(activeFile, byteCount: activeBytes)
        active.storeRelease32(1, at: GrantTableLayout.aliveOffset)
        shares.frames = FrameList(count: pages)
        shares.references = (GrantTableLayout.reservedReferences..<max(entries, GrantTableLayout.reservedReferences))
            .reversed().map { UInt32($0) }
    }

    /// True until the domain is destroyed; every view of it sees the change.
    var isAlive: Bool {
        get { active.load32(at: GrantTableLayout.aliveOffset) != 0 }
        set { active.storeRelease32(newValue ? 1 : 0, at: GrantTableLayout.aliveOffset) }
    }

    var hasMappedGrants: Bool { !pins.isEmpty }

    // MARK: Slots for copies

    /// A slot for a handle that copies; nil if all are taken.
    func takeSlot() -> Int? {
        guard let slot = slots.firstIndex(of: false) else { return nil }
        slots[slot] = true
        // The frontend must be told to look at the array before a handle can set a mark in it.
        let used = UInt32(slot / GrantTableLayout.slotsPerArray + 1)
        if active.load32(at: GrantTableLayout.usedArraysOffset) < used {
            active.storeRelease32(used, at: GrantTableLayout.usedArraysOffset)
        }
        return slot
    }

    /// Frees a slot, and clears the marks that a process left if it was killed during a copy.
    func giveSlot(_ slot: Int) {
        let marks = GrantTableLayout.markOffset(slot: slot, entries: entryCount)
        for reference in 0..<entryCount {
            let offset = marks + reference * GrantTableLayout.entryBytes
            if active.load8(at: offset) != 0 { active.storeRelease8(0, at: offset) }
        }
        slots[slot] = false
    }

    /// True while a copy from or to the reference runs.
    func isMarked(_ reference: UInt32) -> Bool {
        let arrays = Int(active.load32(at: GrantTableLayout.usedArraysOffset))
        for array in 0..<arrays {
            let marks = GrantTableLayout.markOffset(slot: array * GrantTableLayout.slotsPerArray, entries: entryCount)
            if active.load64(at: marks + Int(reference) * GrantTableLayout.entryBytes) != 0 { return true }
        }
        return false
    }

    func isPinned(_ reference: UInt32) -> Bool { pins[reference] != nil }

    // MARK: Maps

    /// Pins an entry for a map as map_grant_ref() does and gives its frame.
    func pin(_ reference: UInt32, by domain: DomainID, writable: Bool) -> Result<UInt32, GrantStatus> {
        if Int(reference) >= entryCount { return .failure(.init(GNTST_bad_gntref)) }
        var pin = pins[reference]
        if let pin, pin.domain != domain { return .failure(.init(GNTST_general_error)) }
        if pin == nil || (writable && pin?.writes == 0) {
            if let failure = setStatus(reference, of: domain, writable: writable, isPinned: pin != nil) {
                return .failure(failure)
            }
            if pin == nil {
                let frame = GrantEntry(grants.load64(at: offset(reference))).frame
                if Int(frame) >= pageCount {
                    _ = grants.clearBits16(GrantFlags.inUse, at: offset(reference))
                    return .failure(.init(GNTST_bad_page))
                }
                pin = Pin(domain: domain, frame: frame)
            }
        }
        guard var pin else { return .failure(.init(GNTST_general_error)) }
        if writable { pin.writes += 1 } else { pin.reads += 1 }
        pins[reference] = pin
        return .success(pin.frame)
    }

    /// Sets GTF_reading and GTF_writing if the entry allows it: _set_status_v1() with its five attempts.
    private func setStatus(
        _ reference: UInt32, of domain: DomainID, writable: Bool, isPinned: Bool
    ) -> GrantStatus? {
        var seen = grants.load32(at: offset(reference))
        for _ in 0..<5 {
            let flags = UInt16(truncatingIfNeeded: seen)
            let kind = flags & (GrantFlags.typeMask | GrantFlags.subPage)
            let owner = DomainID(truncatingIfNeeded: seen >> 16)
            if !isPinned && (kind != GrantFlags.permitAccess || owner != domain) { break }
            if writable && flags & GrantFlags.readOnly != 0 { break }
            let use = GrantFlags.reading | (writable ? GrantFlags.writing : 0)
            let before = grants.exchange32(from: seen, to: seen | UInt32(use), at: offset(reference))
            if before == seen { return nil }
            seen = before
        }
        return .init(GNTST_general_error)
    }

    /// Ends one map of an entry: reduce_status_for_pin().
    func unpin(_ reference: UInt32, writable: Bool) {
        guard var pin = pins[reference] else { return }
        if writable { pin.writes -= 1 } else { pin.reads -= 1 }
        var clear: UInt16 = 0
        if pin.writes == 0 && writable { clear |= GrantFlags.writing }
        if pin.writes == 0 && pin.reads == 0 { clear |= GrantFlags.reading }
        pins[reference] = clear & GrantFlags.reading != 0 ? nil : pin
        if clear != 0 { _ = grants.clearBits16(clear, at: offset(reference)) }
    }

    func offset(_ reference: UInt32) -> Int { Int(reference) * GrantTableLayout.entryBytes }

    // MARK: Report

    /// The words of LoopbackDomainReport.
    func describe() -> [UInt32] {
        var granted = 0
        var copying = 0
        for reference in 0..<UInt32(entryCount) {
            if grants.load16(at: offset(reference)) & GrantFlags.typeMask != 0 { granted += 1 }
            if isMarked(reference) { copying += 1 }
        }
        let mapped = pins.values.reduce(0) { $0 + $1.reads + $1.writes }
        let bound = ports.values.count { $0.peer != nil }
        let flags = (isAlive ? 1 : 0) | (owner != nil ? 2 : 0)
        let numbers = [
            Int(id), flags, pageCount, entryCount, granted, mapped, copying, slots.count { $0 }, ports.count - bound,
            bound, shares.frontends,
        ]
        return numbers.map { UInt32(clamping: $0) }
    }
}

/// A GNTST_ code that is not GNTST_okay.
struct GrantStatus: Error {
    let code: Int32

    init(_ code: Int32) {
        self.code = code
    }
}
