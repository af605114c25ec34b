// SPDX-License-Identifier: BSD-2-Clause
// How a domain's grant table and the marks of running copies lie in shared memory.
//
//     grants   entries x 8 bytes: struct grant_entry_v1 { uint16_t flags; uint16_t domid; uint32_t frame; }
//              written by the frontend with plain stores; the broker sets GTF_reading and GTF_writing for maps.
//     active   one page of header, then `arrays` arrays of entries x 8 bytes: byte b of entry r in array a is 1
//              while the grant-table handle in slot a*8+b copies from or to reference r.
//
// Real Xen sets GTF_reading also for the length of a copy, under the lock of its private active entry. Here a
// process may be killed while it copies and no lock may exist, so running copies are marked beside the table: a byte
// has one writer, and the broker clears the bytes of a slot whose process is gone. The two sides meet as in Dekker's
// algorithm: the copier writes its mark, fences, then reads the grant; the frontend revokes the grant, then reads the
// marks. Either the copier sees the revocation or the frontend sees the copy.

/// Flags of `struct grant_entry_v1` (xen/grant_table.h).
enum GrantFlags {
    static let permitAccess: UInt16 = 1
    static let typeMask: UInt16 = 3
    static let readOnly: UInt16 = 1 << 2
    static let reading: UInt16 = 1 << 3
    static let writing: UInt16 = 1 << 4
    static let subPage: UInt16 = 1 << 8
    static let inUse = reading | writing
}

/// Offsets in a domain's shared tables.
enum GrantTableLayout {
    static let pageBytes = 4096
    static let entryBytes = 8
    static let headerBytes = 4096
    /// Number of handles whose marks share an array.
    static let slotsPerArray = 8
    static let arrays = 32
    static let slots = slotsPerArray * arrays

    /// Header: 1 while the domain lives, written by the broker.
    static let aliveOffset = 0
    /// Header: number of arrays that may hold a mark; never decreases.
    static let usedArraysOffset = 4

    /// Linux keeps the first references for the console and XenStore.
    static let reservedReferences = 8
    /// The most entries of a table: what Xen's 2048 frames hold.
    static let entryLimit = 1 << 20
    /// The most pages of a domain, 64 GiB.
    static let pageLimit = 1 << 24

    static func grantsBytes(entries: Int) -> Int {
        (entries * entryBytes + pageBytes - 1) & ~(pageBytes - 1)
    }

    static func activeBytes(entries: Int) -> Int {
        headerBytes + arrays * grantsBytes(entries: entries)
    }

    /// Offset of the mark of `slot` for entry 0; the next entry's mark is 8 bytes further.
    @inline(__always)
    static func markOffset(slot: Int, entries: Int) -> Int {
        headerBytes + slot / slotsPerArray * grantsBytes(entries: entries) + slot % slotsPerArray
    }
}

/// An entry of the grant table, read in one load so that its parts belong together.
struct GrantEntry {
    let flags: UInt16
    let domain: UInt16
    let frame: UInt32

    @inline(__always)
    init(_ raw: UInt64) {
        flags = UInt16(truncatingIfNeeded: raw)
        domain = UInt16(truncatingIfNeeded: raw >> 16)
        frame = UInt32(truncatingIfNeeded: raw >> 32)
    }
}

/// Offsets in the page of an event channel, shared by its two ends and by nobody else.
///
/// Every end has a word with the pending and the mask bit of Xen's 2-level ABI. `link` counts up at every bind and
/// every close and is odd while both ends are bound; the broker alone writes it.
enum EventChannelLayout {
    static let pageBytes = 4096
    static let linkOffset = 0
    static let pending: UInt32 = 1
    static let masked: UInt32 = 2

    @inline(__always)
    static func wordOffset(end: Int) -> Int { 64 + 64 * (end & 1) }
}
