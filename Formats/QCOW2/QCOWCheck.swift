// SPDX-License-Identifier: BSD-2-Clause
// What a header may say: the gate before anything in the image is believed or handed to libqcow.
import ImageCore

/// Judges a header against the size of its file.  The bounds are QEMU's, and nothing may lie outside the file.
public struct QCOWCheck: Sendable {
    /// What is judged.
    public let header: QCOWHeader
    /// Bytes of the image's file.
    public let fileSize: UInt64

    /// QEMU's QCOW_MAX_L1_SIZE and QCOW_MAX_REFTABLE_SIZE, in bytes, and QCOW_MAX_SNAPSHOTS.
    public static let largestL1: UInt64 = 32 << 20
    /// Bytes.
    public static let largestRefcountTable: UInt64 = 8 << 20
    /// Offsets in a table have 56 bits, and files end at 2^63.
    public static let largestFile: UInt64 = 1 << 56
    /// Internal snapshots.
    public static let mostSnapshots: UInt32 = 65536

    /// A judge of this header.
    public init(header: QCOWHeader, fileSize: UInt64) {
        self.header = header
        self.fileSize = fileSize
    }

    /// Reads the header alone and judges it. Of an image with unknown features nothing but their names is certain, so its
    /// sizes are not looked at, and of one that is marked as damaged nothing is.
    public init(examining image: some ImageReader) throws(ImageError) {
        guard image.size > 0 else { throw ImageError(.invalid, "the image is empty") }
        let head = try image.bytes(at: 0, count: QCOWHeader.headBytes)
        if QCOWHeader.version(of: head) == nil, let other = ImageSignature(of: image) {
            throw ImageError(.invalid, "this is \(other.name), no QCOW image: \(other.remedy)")
        }
        self.init(header: try QCOWHeader(head), fileSize: image.size)
        if !isCorrupt, (try? features()) != nil { try structure() }
    }

    /// Entries of the L1 table that the disk needs.
    public var neededL1: UInt64 {
        let reach = min(UInt64(header.clusterBits) + UInt64(header.l2Bits), 63)
        return header.size >> reach + (header.size & ((1 << reach) - 1) == 0 ? 0 : 1)
    }

    /// Bytes that the L1 table takes in the file.
    public var l1Bytes: UInt64 { min(header.l1Count, UInt64.max / 8) * 8 }
    private var refcountBytes: UInt64 { UInt64(header.refcountClusters) * header.clusterSize }

    /// Refuses what is damaged or would take too much.
    public func structure() throws(ImageError) {
        try clusters()
        guard header.size >= 512 else {
            throw ImageError(.invalid, "the disk in the image has \(header.size) bytes, less than one sector")
        }
        guard header.size <= UInt64(Int64.max) else {
            throw ImageError(.invalid, "the image is damaged: its disk would have \(header.size) bytes")
        }
        guard header.l1Count <= Self.largestL1 / 8 else {
            throw ImageError(
                .tooLarge,
                "the L1 table has \(header.l1Count) entries; \(Self.largestL1 / 8) are the most. An image with larger "
                    + "clusters needs fewer")
        }
        guard header.l1Count >= neededL1 else {
            throw .damaged("its L1 table has \(header.l1Count) entries, and the disk needs \(neededL1)")
        }
        try place("L1 table", header.l1Offset, l1Bytes)
        guard header.version >= 2 else { return }
        guard header.refcountOrder <= 6 else {
            throw .damaged("its reference counts have 2^\(header.refcountOrder) bits")
        }
        guard refcountBytes <= Self.largestRefcountTable else {
            throw ImageError(
                .tooLarge,
                "the reference count table has \(refcountBytes) bytes; \(Self.largestRefcountTable) are the most")
        }
        try place("reference count table", header.refcountOffset, refcountBytes)
        guard !overlaps(header.l1Offset, l1Bytes, header.refcountOffset, refcountBytes) else {
            throw .damaged("its L1 table and its reference count table overlap")
        }
        guard header.snapshotCount <= Self.mostSnapshots else {
            throw ImageError(
                .tooLarge, "the image has \(header.snapshotCount) snapshots; \(Self.mostSnapshots) are the most")
        }
        if header.snapshotCount > 0 {
            try place("table of snapshots", header.snapshotOffset, UInt64(header.snapshotCount) * 40)
        }
    }

    private func clusters() throws(ImageError) {
        let most: UInt32 = header.version == 1 ? 16 : 21
        guard (9...most).contains(header.clusterBits) else {
            throw .damaged("its clusters would have 2^\(header.clusterBits) bytes; 2^9 to 2^\(most) are known")
        }
        guard !header.hasExtendedL2 || header.clusterBits >= 14 else {
            throw .damaged(
                "its clusters have 2^\(header.clusterBits) bytes; with extended L2 entries they have at least 2^14")
        }
        guard header.version >= 2 || (6...13).contains(header.l2Bits) else {
            throw .damaged("its L2 tables would have 2^\(header.l2Bits) entries; 2^6 to 2^13 are known")
        }
    }

    /// A table must lie in the file, and behind the header's cluster.
    private func place(_ what: String, _ offset: UInt64, _ length: UInt64) throws(ImageError) {
        let first = header.version == 1 ? 48 : header.clusterSize
        guard offset >= first else { throw .damaged("its \(what) is at offset \(offset), in the header") }
        guard header.version == 1 || offset & (header.clusterSize - 1) == 0 else {
            throw .damaged("its \(what) is at offset \(offset), which is not the start of a cluster")
        }
        guard offset <= fileSize, length <= fileSize - offset else {
            throw .damaged(
                "its \(what), \(length) bytes at offset \(offset), is not in the file of \(fileSize) bytes")
        }
    }

    private func overlaps(_ a: UInt64, _ aLength: UInt64, _ b: UInt64, _ bLength: UInt64) -> Bool {
        a < b + bLength && b < a + aLength
    }

    /// True for the place of an L2 table that collides with nothing that is known. `structure()` has found no fault.
    func mayHoldL2(_ offset: UInt64) -> Bool {
        let length = header.l2Bytes
        let first = header.version == 1 ? 48 : header.clusterSize
        return offset >= first && (header.version == 1 || offset & (header.clusterSize - 1) == 0)
            && offset <= fileSize && length <= fileSize - offset
            && !overlaps(offset, length, header.l1Offset, l1Bytes)
            && !overlaps(offset, length, header.refcountOffset, refcountBytes)
    }

    /// Refuses an image that says that it is damaged.
    public func integrity() throws(ImageError) {
        guard isCorrupt else { return }
        throw ImageError(.corrupt, "the image is marked as corrupt: repair a copy of it with qemu-img check -r all")
    }

    /// Refuses, by name, what an intact image may have and this plugin cannot read.
    public func features() throws(ImageError) {
        let convert = "convert the image: qemu-img convert -O qcow2 OLD NEW"
        let bits = header.incompatible
        if header.hasDataFile { try dataFile(convert) }
        if header.hasExtendedL2, header.encryption == 1 {
            throw ImageError(
                .unsupported,
                "the image has extended L2 entries (subclusters) and is encrypted with AES, which libqcow cannot read; "
                    + convert)
        }
        let known = QCOWHeader.Incompatible.names.reduce(0) { $0 | $1.bit }
        if bits & ~known != 0 {
            let numbers = (0..<64).filter { bits & ~known & (1 << UInt64($0)) != 0 }.map { "\($0)" }
            throw ImageError(
                .unsupported, "the image has unknown incompatible features: bit \(numbers.joined(separator: ", "))")
        }
        switch header.compression {
        case 0, 1: break
        default: throw ImageError(.unsupported, "the image has an unknown compression type \(header.compression)")
        }
        switch header.encryption {
        case 0, 1: break
        case 2 where header.version >= 2:
            throw ImageError(.unsupported, "the image is encrypted with LUKS, which libqcow cannot read; \(convert)")
        default: throw ImageError(.unsupported, "the image has an unknown encryption method \(header.encryption)")
        }
    }

    /// What cannot be together with an external data file.
    private func dataFile(_ convert: String) throws(ImageError) {
        guard header.dataFileName?.isEmpty == false else {
            throw ImageError(.unsupported, "the image has an external data file and does not say which; \(convert)")
        }
        guard header.encryption == 0, header.incompatible & QCOWHeader.Incompatible.extendedL2 == 0 else {
            throw ImageError(
                .unsupported,
                "the image has an external data file together with encryption or extended L2 entries; \(convert)")
        }
        guard header.autoclear & QCOWHeader.rawDataFile == 0 || header.backingName == nil else {
            throw ImageError(.unsupported, "the image has a raw external data file and a backing file; \(convert)")
        }
    }

    /// The image has a feature that is not known, or not read here; one that is marked as corrupt says nothing about it.
    public var hasUnknownFeatures: Bool { !isCorrupt && (try? features()) == nil }
    /// The data are encrypted. Whether clusters are compressed stands in the L2 tables only.
    public var isEncrypted: Bool { header.encryption != 0 }
    /// The last writer did not close the image.
    public var isDirty: Bool { header.incompatible & QCOWHeader.Incompatible.dirty != 0 }
    /// The image says that it is damaged.
    public var isCorrupt: Bool { header.isCorrupt }
}
