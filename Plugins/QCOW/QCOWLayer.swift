// SPDX-License-Identifier: BSD-2-Clause
// One image of a chain: its file, its checked header and its L1 table.  It never changes, so all queues share it.
import Glibc
import PluginKit

/// An image that may be read.
final class QCOWLayer: Sendable {
    let file: ImageFile
    let header: QCOWHeader
    /// Of each L2 table its place in the file, or 0 where there is none.
    let l1: [UInt64]
    /// Bytes of the disk: whole sectors, as QEMU counts them.
    let size: UInt64

    /// The disk is encrypted with AES.
    var isEncrypted: Bool { header.encryption == 1 }

    /// Reads the header alone and judges it.
    static func examine(_ file: ImageFile) throws(PluginError) -> QCOWCheck {
        guard file.size > 0 else { throw PluginError(EINVAL, "the image is empty") }
        let head = try file.bytes(at: 0, count: QCOWHeader.headBytes)
        let check = QCOWCheck(header: try QCOWHeader(head), fileSize: file.size)
        // Names before sizes: of an image with unknown features nothing else is certain.
        if (try? check.features()) != nil { try check.structure() }
        return check
    }

    init(_ file: ImageFile) throws(PluginError) {
        let check = try Self.examine(file)
        try check.features()
        self.file = file
        header = check.header
        size = check.header.size & ~511
        l1 = try Self.readL1(file, check)
    }

    /// The entries that the disk needs, a part of the table at a time: it may have 32 MiB, most of it often zeroes.
    private static func readL1(_ file: ImageFile, _ check: QCOWCheck) throws(PluginError) -> [UInt64] {
        let count = Int(check.neededL1)
        var table = [UInt64](repeating: 0, count: count)
        var done = 0
        while done < count {
            let part = min(count - done, 8192)
            let entries = try file.nonZeroWords(at: check.header.l1Offset + UInt64(done) * 8, count: part)
            for (index, word) in entries { table[done + index] = try place(word, done + index, check) }
            done += part
        }
        return table
    }

    /// The place of the L2 table that an entry points to.
    private static func place(_ entry: UInt64, _ index: Int, _ check: QCOWCheck) throws(PluginError) -> UInt64 {
        let mask: UInt64 = check.header.version == 1 ? .max : 0x00ff_ffff_ffff_fe00
        let place = entry & mask
        // libqcow takes reserved bits for a part of the place, and finds a table only at a multiple of its length.
        let isStrange = entry & ~(mask | 1 << 63) != 0 || place % (8 << UInt64(check.header.l2Bits)) != 0
        guard check.header.encryption == 0 || !isStrange else {
            throw PluginError(
                EOPNOTSUPP,
                "the image is encrypted, and entry \(index) of its L1 table is one that libqcow does not read right: "
                    + "convert the image")
        }
        guard place == 0 || check.mayHoldL2(place) else {
            throw PluginError(
                EINVAL,
                "the image is damaged: entry \(index) of its L1 table points to offset \(place), where no L2 table can be"
            )
        }
        return place
    }
}
