// SPDX-License-Identifier: BSD-2-Clause
// The internal snapshots of an image, as far as a writer must know them: whose tables and clusters are not its own.
import ImageCore

/// One internal snapshot.
public struct SnapshotEntry: Sendable, Equatable {
    /// Its L1 table: bytes of the file, and entries.
    public let l1Offset: UInt64
    /// Entries.
    public let l1Count: UInt64
    /// Its name.
    public let name: [UInt8]
    /// Seconds since 1970.
    public let date: UInt32
}

/// All of an image's internal snapshots.
public struct SnapshotTable: Sendable {
    /// In the order of the table.
    public let entries: [SnapshotEntry]
    /// Bytes of the table in the file.
    public let byteCount: UInt64

    /// QEMU's QCOW_MAX_SNAPSHOTS_SIZE.
    static let largest: UInt64 = 64 << 20

    /// Reads the table of an image whose header was judged.
    public init(_ image: some ImageReader, _ header: QCOWHeader) throws(ImageError) {
        var found: [SnapshotEntry] = []
        var position = header.snapshotOffset
        for index in 0..<header.snapshotCount {
            let fixed = ByteReader(try image.bytes(at: position, count: 40))
            let (idLength, nameLength) = (UInt64(try fixed.u16(12)), UInt64(try fixed.u16(14)))
            let extra = UInt64(try fixed.u32(36))
            guard extra <= 1024 else { throw .damaged("snapshot \(index) has \(extra) bytes of extra data") }
            let (offset, count) = (try fixed.u64(0), UInt64(try fixed.u32(8)))
            guard count <= QCOWCheck.largestL1 / 8, offset & (header.clusterSize - 1) == 0,
                offset >= header.clusterSize,
                offset <= image.size, count * 8 <= image.size - offset
            else { throw .damaged("the L1 table of snapshot \(index) is not in the file") }
            let words = try image.bytes(at: position + 40 + extra, count: Int(idLength + nameLength))
            found.append(
                SnapshotEntry(
                    l1Offset: offset, l1Count: count, name: Array(words.dropFirst(Int(idLength))),
                    date: try fixed.u32(16)))
            position += (40 + extra + idLength + nameLength + 7) & ~7
            guard position - header.snapshotOffset <= Self.largest, position <= image.size + 7 else {
                throw .damaged("its table of snapshots is not in the file")
            }
        }
        entries = found
        byteCount = position - header.snapshotOffset
    }
}
