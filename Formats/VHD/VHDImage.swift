// SPDX-License-Identifier: BSD-2-Clause
// A VHD as a value: all that is needed to find its data, checked so that nothing in it overlaps.
import ImageCore

/// An image that was opened.
public struct VHDImage: Sendable {
    /// What the disk is.
    public let footer: VHDFooter
    /// nil: a fixed disk.
    public let header: VHDHeader?
    /// The sector of the file where each block's bitmap begins; ``noBlock`` where there is none. Empty for a fixed disk.
    public let table: [UInt32]
    /// Bytes of the disk.
    public let size: UInt64
    /// Where the last of the image's structures and blocks ends, bytes of the file: behind it is nothing but the footer.
    public let end: UInt64
    /// The footer that ends the file is intact; else its copy was used.
    public let hasWholeFooter: Bool
    /// It has the batmap of XenServer behind its block table: which blocks are full. It says nothing that the bitmaps do not say, and
    /// stays true when it is left alone, as no block ever becomes less full.
    public let hasBatmap: Bool
    /// The names of the parent; empty but for differencing disks.
    public let parents: [ImageReference]

    /// An entry of the table that points nowhere.
    public static let noBlock: UInt32 = .max

    /// Reads footer, header and block table; throws where the image is damaged. The reader's file may be hostile. `isServed`: a process
    /// before this one has found it cut off, so that blocks may lie behind its end.
    public init(_ reader: some ImageReader, isServed: Bool = false) throws(ImageError) {
        let (footer, hasWholeFooter) = try Self.footer(reader)
        self.footer = footer
        size = footer.diskSize
        guard size > 0 else { throw .damaged("the disk has no sectors") }
        guard size <= VHDFooter.largestDisk else {
            throw ImageError(.tooLarge, "the disk has \(size) bytes, and a VHD at most \(VHDFooter.largestDisk)")
        }
        guard footer.kind != .fixed else {
            guard reader.size >= VHDFooter.byteCount, size <= reader.size - VHDFooter.byteCount else {
                throw .damaged("the disk has \(size) bytes, and the file \(reader.size) with the footer")
            }
            (header, table, hasBatmap, parents) = (nil, [], false, [])
            (end, self.hasWholeFooter) = (size, hasWholeFooter)
            return
        }
        guard footer.dataOffset & 511 == 0 else { throw .damaged("its header begins within a sector") }
        let header = try VHDHeader(
            try reader.bytes(at: footer.dataOffset, count: Int(VHDHeader.byteCount)))
        self.header = header
        guard header.entryCount >= (size + header.blockSize - 1) / header.blockSize else {
            throw .damaged("its block table is too short for a disk of \(size) bytes")
        }
        var places = PlaceList(fileSize: reader.size)
        try places.add("copy of the footer", 0, VHDFooter.byteCount)
        try places.add("header", footer.dataOffset, VHDHeader.byteCount)
        try places.add("block table", header.tableOffset, header.tableSize)
        for locator in header.locators where locator.length > 0 {
            try places.add("name of a parent", locator.offset, max(locator.length, locator.room))
        }
        let batmap = Batmap(reader, header)
        if let batmap {
            try places.add("header of the batmap", header.tableOffset + header.tableSize, 512)
            try places.add("batmap", batmap.offset, batmap.length)
        }
        hasBatmap = batmap != nil
        parents = footer.kind == .differencing ? try header.parents(reader) : []
        guard footer.kind == .dynamic || !parents.isEmpty else {
            throw ImageError(.unsupported, "the image has a parent, and no name of it that can be read")
        }
        table = try Self.table(reader, header)
        end = try places.addBlocks(table, header, mayLackBlocks: isServed)
        // What a guest has in the last sector of its disk may look like a footer.
        self.hasWholeFooter = hasWholeFooter && end <= reader.size - VHDFooter.byteCount
    }

    private static func table(_ reader: some ImageReader, _ header: VHDHeader) throws(ImageError) -> [UInt32] {
        let count = Int(header.entryCount)
        let bytes = try reader.bytes(at: header.tableOffset, count: count * 4)
        guard bytes.count == count * 4 else { throw ImageError(.corrupt, "the image was cut off while it was opened") }
        return unsafe bytes.withUnsafeBytes { raw in
            // All loads lie within `raw`, whose length was compared above.
            (0..<count).map { unsafe UInt32(bigEndian: raw.loadUnaligned(fromByteOffset: $0 * 4, as: UInt32.self)) }
        }
    }

    /// The footer at the end, or else its copy at the beginning, which a writer that was cut off leaves whole.
    private static func footer(_ reader: some ImageReader) throws(ImageError) -> (VHDFooter, Bool) {
        let head = try reader.bytes(at: 0, count: Int(VHDFooter.byteCount))
        let copy = Result { () throws(ImageError) in try VHDFooter(head) }
        let start = reader.size > VHDFooter.byteCount ? reader.size - VHDFooter.byteCount : 0
        let tail = try reader.bytes(at: start, count: Int(VHDFooter.byteCount))
        let last = Result { () throws(ImageError) in try VHDFooter(tail) }
        switch (copy, last) {
        // Data of a fixed disk may look like a copy: its footer says what it is.
        case (_, .success(let footer)) where footer.kind == .fixed: return (footer, true)
        case (.success(let copy), .success(let last)): return (copy, copy == last)
        case (.success(let copy), .failure) where copy.kind != .fixed: return (copy, false)
        case (_, .success(let last)): return (last, false)
        case (_, .failure(let error)):
            if tail.starts(with: VHDFooter.poison) || head.starts(with: VHDFooter.poison) {
                throw ImageError(
                    .unsupported,
                    "the image was left in the middle of a resize: vhd-util revert puts it back by its journal")
            }
            // Of a file with neither, the one that is no footer at all tells less than one that is damaged.
            if case .failure(let first) = copy, head.starts(with: VHDFooter.magic) { throw first }
            throw error
        }
    }
}

/// Where things are in the file: none may overlap another one, or lie outside of it.
private struct PlaceList {
    let fileSize: UInt64
    private var found: [(range: Range<UInt64>, what: String)] = []

    init(fileSize: UInt64) { self.fileSize = fileSize }

    mutating func add(_ what: String, _ offset: UInt64, _ length: UInt64) throws(ImageError) {
        guard offset <= fileSize, length <= fileSize - offset else {
            throw .damaged("its \(what) is not all in the file")
        }
        let range = offset..<offset + length
        if let other = found.first(where: { $0.range.overlaps(range) }) {
            throw .damaged("its \(what) overlaps its \(other.what)")
        }
        found.append((range, what))
    }

    /// Compares all blocks with what was added and with each other. `mayLackBlocks`: they may lie behind the end of the file.
    ///
    /// - Returns: where the last of everything ends.
    func addBlocks(
        _ table: [UInt32], _ header: VHDHeader, mayLackBlocks: Bool
    ) throws(ImageError) -> UInt64 {
        let length = header.bitmapSize + header.blockSize
        var end = found.map(\.range.upperBound).max() ?? 0
        var previous: UInt64 = 0
        for sector in table.filter({ $0 != VHDImage.noBlock }).sorted() {
            let start = UInt64(sector) * 512
            guard mayLackBlocks || start <= fileSize && length <= fileSize - start else {
                throw .damaged("the block at offset \(start) is not all in the file")
            }
            guard start >= previous else { throw .damaged("two blocks overlap at offset \(start) of the file") }
            if let other = found.first(where: { $0.range.overlaps(start..<start + length) }) {
                throw .damaged("the block at offset \(start) overlaps its \(other.what)")
            }
            previous = start + length
            end = max(end, previous)
        }
        return end
    }
}

/// The batmap that XenServer keeps behind the block table.
private struct Batmap {
    let offset: UInt64
    let length: UInt64

    /// nil: there is none that could be one.
    init?(_ reader: some ImageReader, _ header: VHDHeader) {
        let start = header.tableOffset + header.tableSize
        guard let head = try? reader.bytes(at: start, count: 512), head.count == 512,
            head.starts(with: Array("tdbatmap".utf8))
        else { return nil }
        let fields = ByteReader(head)
        guard let offset = try? fields.u64(8), let sectors = try? fields.u32(16), offset & 511 == 0, sectors > 0,
            UInt64(sectors) * 512 >= (header.entryCount + 7) / 8
        else { return nil }
        (self.offset, length) = (offset, UInt64(sectors) * 512)
    }
}

extension VHDImage {
    /// 0 (no) to 100 (certain): is a file with these first and last 512 bytes a VHD? A fixed disk has its data first, and may begin with
    /// anything.
    public static func score(head: [UInt8], tail: [UInt8]) -> Int {
        if (try? VHDFooter(tail)) != nil { return 100 }
        if let copy = try? VHDFooter(head), copy.kind != .fixed { return 90 }
        // A damaged one, which is refused with its damage.
        return head.starts(with: VHDFooter.magic) || tail.starts(with: VHDFooter.magic) ? 30 : 0
    }
}
