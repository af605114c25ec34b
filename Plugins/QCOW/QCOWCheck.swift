// SPDX-License-Identifier: BSD-2-Clause
// What a header may say: the gate before anything in the image is believed or handed to libqcow.
import Glibc
import PluginAPI
import PluginKit

/// Judges a header against the size of its file.  The bounds are QEMU's, and nothing may lie outside the file.
struct QCOWCheck {
    let header: QCOWHeader
    let fileSize: UInt64

    /// QEMU's QCOW_MAX_L1_SIZE and QCOW_MAX_REFTABLE_SIZE, in bytes, and QCOW_MAX_SNAPSHOTS.
    static let largestL1: UInt64 = 32 << 20
    static let largestRefcountTable: UInt64 = 8 << 20
    static let mostSnapshots: UInt32 = 65536

    /// Entries of the L1 table that the disk needs.
    var neededL1: UInt64 {
        let reach = UInt64(header.clusterBits + header.l2Bits)
        return header.size >> reach + (header.size & ((1 << reach) - 1) == 0 ? 0 : 1)
    }

    /// Bytes that the L1 table takes in the file.
    var l1Bytes: UInt64 { header.l1Count * 8 }
    private var refcountBytes: UInt64 { UInt64(header.refcountClusters) * header.clusterSize }

    /// Refuses what is damaged or would take too much.
    func structure() throws(PluginError) {
        try clusters()
        guard header.size >= 512 else {
            throw PluginError(EINVAL, "the disk in the image has \(header.size) bytes, less than one sector")
        }
        guard header.size <= UInt64(Int64.max) else {
            throw PluginError(EINVAL, "the image is damaged: its disk would have \(header.size) bytes")
        }
        guard header.l1Count <= Self.largestL1 / 8 else {
            throw PluginError(
                EFBIG,
                "the L1 table has \(header.l1Count) entries; \(Self.largestL1 / 8) are the most. An image with larger "
                    + "clusters needs fewer")
        }
        guard header.l1Count >= neededL1 else {
            throw damaged("its L1 table has \(header.l1Count) entries, and the disk needs \(neededL1)")
        }
        try place("L1 table", header.l1Offset, l1Bytes)
        guard header.version >= 2 else { return }
        guard header.refcountOrder <= 6 else {
            throw damaged("its reference counts have 2^\(header.refcountOrder) bits")
        }
        guard refcountBytes <= Self.largestRefcountTable else {
            throw PluginError(
                EFBIG,
                "the reference count table has \(refcountBytes) bytes; \(Self.largestRefcountTable) are the most")
        }
        try place("reference count table", header.refcountOffset, refcountBytes)
        guard !overlaps(header.l1Offset, l1Bytes, header.refcountOffset, refcountBytes) else {
            throw damaged("its L1 table and its reference count table overlap")
        }
        guard header.snapshotCount <= Self.mostSnapshots else {
            throw PluginError(
                EFBIG, "the image has \(header.snapshotCount) snapshots; \(Self.mostSnapshots) are the most")
        }
        if header.snapshotCount > 0 {
            try place("table of snapshots", header.snapshotOffset, UInt64(header.snapshotCount) * 40)
        }
    }

    private func clusters() throws(PluginError) {
        let most: UInt32 = header.version == 1 ? 16 : 21
        guard (9...most).contains(header.clusterBits) else {
            throw damaged("its clusters would have 2^\(header.clusterBits) bytes; 2^9 to 2^\(most) are known")
        }
        guard header.version >= 2 || (6...13).contains(header.l2Bits) else {
            throw damaged("its L2 tables would have 2^\(header.l2Bits) entries; 2^6 to 2^13 are known")
        }
    }

    /// A table must lie in the file, and behind the header's cluster.
    private func place(_ what: String, _ offset: UInt64, _ length: UInt64) throws(PluginError) {
        let first = header.version == 1 ? 48 : header.clusterSize
        guard offset >= first else { throw damaged("its \(what) is at offset \(offset), in the header") }
        guard header.version == 1 || offset & (header.clusterSize - 1) == 0 else {
            throw damaged("its \(what) is at offset \(offset), which is not the start of a cluster")
        }
        guard offset <= fileSize, length <= fileSize - offset else {
            throw damaged(
                "its \(what), \(length) bytes at offset \(offset), is not in the file of \(fileSize) bytes")
        }
    }

    private func overlaps(_ a: UInt64, _ aLength: UInt64, _ b: UInt64, _ bLength: UInt64) -> Bool {
        a < b + bLength && b < a + aLength
    }

    /// True for the place of an L2 table that collides with nothing that is known.
    func mayHoldL2(_ offset: UInt64) -> Bool {
        let length = UInt64(8) << UInt64(header.l2Bits)
        let first = header.version == 1 ? 48 : header.clusterSize
        return offset >= first && (header.version == 1 || offset & (header.clusterSize - 1) == 0)
            && offset <= fileSize && length <= fileSize - offset
            && !overlaps(offset, length, header.l1Offset, l1Bytes)
            && !overlaps(offset, length, header.refcountOffset, refcountBytes)
    }

    private func damaged(_ what: String) -> PluginError { PluginError(EINVAL, "the image is damaged: \(what)") }

    /// Refuses, by name, what an intact image may have and this plugin cannot read.
    func features() throws(PluginError) {
        let convert = "convert the image: qemu-img convert -O qcow2 OLD NEW"
        let bits = header.incompatible
        if bits & QCOWHeader.Incompatible.corrupt != 0 {
            throw PluginError(
                EIO, "the image is marked as corrupt: repair a copy of it with qemu-img check -r all")
        }
        if bits & QCOWHeader.Incompatible.dataFile != 0 {
            throw PluginError(EOPNOTSUPP, "the image has an external data file, which is not served; \(convert)")
        }
        if bits & QCOWHeader.Incompatible.extendedL2 != 0 {
            throw PluginError(EOPNOTSUPP, "the image has extended L2 entries (subclusters), not served; \(convert)")
        }
        let known = QCOWHeader.Incompatible.names.reduce(0) { $0 | $1.bit }
        if bits & ~known != 0 {
            let numbers = (0..<64).filter { bits & ~known & (1 << UInt64($0)) != 0 }.map { "\($0)" }
            throw PluginError(
                EOPNOTSUPP, "the image has unknown incompatible features: bit \(numbers.joined(separator: ", "))")
        }
        switch header.compression {
        case 0: break
        case 1: throw PluginError(EOPNOTSUPP, "the image is compressed with zstd, which is not served; \(convert)")
        default: throw PluginError(EOPNOTSUPP, "the image has an unknown compression type \(header.compression)")
        }
        switch header.encryption {
        case 0, 1: break
        case 2 where header.version >= 2:
            throw PluginError(EOPNOTSUPP, "the image is encrypted with LUKS, which libqcow cannot read; \(convert)")
        default: throw PluginError(EOPNOTSUPP, "the image has an unknown encryption method \(header.encryption)")
        }
    }

    /// `XBB_IMG_*`.  Whether clusters are compressed stands in the L2 tables only.
    var flags: UInt32 {
        var flags = 0
        if header.encryption != 0 { flags |= Int(XBB_IMG_ENCRYPTED) }
        if header.incompatible & QCOWHeader.Incompatible.dirty != 0 { flags |= Int(XBB_IMG_DIRTY) }
        if header.incompatible & QCOWHeader.Incompatible.corrupt != 0 { flags |= Int(XBB_IMG_CORRUPT) }
        if (try? features()) == nil, header.incompatible & QCOWHeader.Incompatible.corrupt == 0 {
            flags |= Int(XBB_IMG_UNKNOWN_FEAT)
        }
        return UInt32(truncatingIfNeeded: flags)
    }
}
