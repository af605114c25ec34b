// SPDX-License-Identifier: BSD-2-Clause
// One image of a chain: its checked header and its L1 table.  It never changes, so all queues share it.
import ImageCore

/// An image that may be read.
public final class QCOWImage: Sendable {
    /// Checked: nothing in it lies outside of the file.
    public let header: QCOWHeader
    /// Of each L2 table its place in the file with ``L2Entry/copied``, or 0 where there is none.
    public let l1: [UInt64]
    /// Bytes of the disk: whole sectors, as QEMU counts them.
    public let size: UInt64
    /// Bytes of the file when it was opened.
    public let fileSize: UInt64
    /// What is strange about the L1 table, though it can be read; nil: nothing.
    public let l1Fault: String?

    /// The disk is encrypted with AES.
    public var isEncrypted: Bool { header.encryption == 1 }

    /// Reads header and L1 table, and refuses what is damaged or has features that are not read here. `isServed`: a process before this
    /// one has served the disk to its guest and found the damage that the image is marked with.
    public init(_ image: some ImageReader, isServed: Bool = false) throws(ImageError) {
        let check = try QCOWCheck(examining: image)
        if isServed, check.isCorrupt { try check.structure() } else { try check.integrity() }
        try check.features()
        header = check.header
        size = check.header.size & ~511
        fileSize = check.fileSize
        (l1, l1Fault) = try Self.readL1(image, check)
    }

    /// The entries that the disk needs.
    private static func readL1(
        _ image: some ImageReader, _ check: QCOWCheck
    ) throws(ImageError) -> (table: [UInt64], fault: String?) {
        let count = Int(check.neededL1)
        var table = [UInt64](repeating: 0, count: count)
        var fault: String?
        try image.forEachNonZeroWord(at: check.header.l1Offset, count: count) { (index, word) throws(ImageError) in
            let place = try place(word, index, check)
            if fault == nil, check.header.version >= 2, let words = L2Entry.fault(ofL1Entry: word) {
                fault = "entry \(index) of its L1 table \(words)"
            }
            table[index] = place == 0 || check.header.version == 1 ? place : place | word & L2Entry.copied
        }
        return (table, fault)
    }

    /// The place of the L2 table that an entry points to.
    private static func place(_ entry: UInt64, _ index: Int, _ check: QCOWCheck) throws(ImageError) -> UInt64 {
        let mask: UInt64 = check.header.version == 1 ? .max : L2Entry.offsetMask
        let place = entry & mask
        // libqcow takes reserved bits for a part of the place, and finds a table only at a multiple of its length.
        let isStrange = entry & ~(mask | 1 << 63) != 0 || place % check.header.l2Bytes != 0
        guard !check.isEncrypted || !isStrange else {
            throw ImageError(
                .unsupported,
                "the image is encrypted, and entry \(index) of its L1 table is one that libqcow does not read right: "
                    + "convert the image")
        }
        guard place == 0 || check.mayHoldL2(place) else {
            throw .damaged("entry \(index) of its L1 table points to offset \(place), where no L2 table can be")
        }
        return place
    }
}
