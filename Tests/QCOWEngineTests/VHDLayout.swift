// SPDX-License-Identifier: BSD-2-Clause
// The tests' own reader of VHDs, and what must hold in a file whatever was cut off.
import Foundation

/// A VHD as it stands in a file.
struct VHDLayout {
    let image: ByteImage
    let kind: UInt32
    let size: Int
    private(set) var blockSize = 0
    private(set) var tableOffset = 0
    private(set) var entries: [UInt32] = []
    /// The footer that ends the file.
    let hasFooter: Bool
    /// What is wrong.
    private(set) var faults: [String] = []

    var bitmapSize: Int { (blockSize / sectorSize / 8 + 511) & ~511 }
    var stride: Int { bitmapSize + blockSize }

    /// nil: there is no footer at either end.
    init?(_ image: ByteImage) {
        self.image = image
        let end = image.count - 512
        hasFooter = Self.isWhole(image, end, 512, "conectix", at: 64)
        guard hasFooter || Self.isWhole(image, 0, 512, "conectix", at: 64) else { return nil }
        let footer = hasFooter ? end : 0
        kind = image.u32(footer + 60)
        size = Int(image.u64(footer + 48))
        guard kind != 2 else {
            if end < size { faults.append("the disk is cut off") }
            return
        }
        if !Self.isWhole(image, 0, 512, "conectix", at: 64) { faults.append("the copy of the footer is damaged") }
        guard Self.isWhole(image, 512, 1024, "cxsparse", at: 36) else {
            faults.append("the header is damaged")
            return
        }
        tableOffset = Int(image.u64(512 + 16))
        blockSize = Int(image.u32(512 + 32))
        let (table, image) = (tableOffset, image)
        entries = (0..<Int(image.u32(512 + 28))).map { image.u32(table + $0 * 4) }
        judgeBlocks()
    }

    private static func isWhole(_ image: ByteImage, _ start: Int, _ count: Int, _ magic: String, at place: Int) -> Bool
    {
        guard start >= 0, image.part(start, 8).elementsEqual(magic.utf8) else { return false }
        let copy = ByteImage()
        copy.write([UInt8](image.part(start, count)), at: 0)
        let sum = copy.u32(place)
        VHDRecipe.checksum(copy, 0, count, at: place)
        return copy.u32(place) == sum
    }

    private mutating func judgeBlocks() {
        var end = tableOffset + (entries.count * 4 + 511) & ~511
        for sector in entries.filter({ $0 != .max }).sorted() {
            let start = Int(sector) * 512
            if start < end { faults.append("the block at \(start) overlaps what ends at \(end)") }
            end = start + stride
        }
        let last = hasFooter ? image.count - 512 : image.count
        if end > last { faults.append("a block ends at \(end), and the file at \(last)") }
    }

    /// The block's own, by its bitmap.
    func isOwn(_ block: Int, _ index: Int) -> Bool {
        image.u8(Int(entries[block]) * 512 + index / 8) & (0x80 >> UInt8(index % 8)) != 0
    }

    /// What all sectors show above `lower`.
    func content(above lower: ByteImage?) -> DiskContent {
        var content = DiskContent(sectors: size / sectorSize)
        if kind == 2 {
            content.note(image.part(0, size), first: 0)
            return content
        }
        for sector in 0..<size / sectorSize {
            let (block, index) = (sector * sectorSize / blockSize, sector % (blockSize / sectorSize))
            if block < entries.count, entries[block] != .max, isOwn(block, index) {
                content.note(
                    image.part(Int(entries[block]) * 512 + bitmapSize + index * sectorSize, sectorSize), first: sector)
            } else if let lower {
                content.note(lower.part(sector * sectorSize, sectorSize), first: sector)
            }
        }
        return content
    }

    /// Sectors of a file that were changed from `before` and are no blocks and no table: nobody may change them. What had nothing
    /// may have been taken for a block; so may what is behind the last block of a device.
    static func foreignChanges(_ before: ByteImage, _ after: ByteImage, isDevice: Bool = false) -> [String] {
        guard let layout = VHDLayout(before), layout.kind != 2 else { return [] }
        var own = [Bool](repeating: false, count: before.count / sectorSize + 1)
        func add(_ offset: Int, _ count: Int) {
            for sector in offset / sectorSize..<(offset + count + 511) / sectorSize where sector < own.count {
                own[sector] = true
            }
        }
        add(layout.tableOffset, layout.entries.count * 4)
        for entry in layout.entries where entry != .max { add(Int(entry) * 512, layout.stride) }
        if isDevice, let last = own.lastIndex(of: true) { add(last * sectorSize, before.count - last * sectorSize) }
        let full = ByteImage(count: sectorSize)
        full.write([UInt8](repeating: 0xff, count: sectorSize), at: 0)
        // A disk that is closed is cut off behind its last block: bitmaps of reserved blocks and the footer behind them go.
        func isCutOff(_ offset: Int) -> Bool {
            guard offset >= after.count - sectorSize else { return false }
            let bytes = before.part(offset, sectorSize)
            return bytes.elementsEqual(full.all) || bytes.elementsEqual(before.part(0, sectorSize))
        }
        return (0..<before.count / sectorSize).filter { sector in
            let offset = sector * sectorSize
            return !own[sector] && !before.isEqual(to: after, offset, sectorSize) && !before.isZero(offset, sectorSize)
                && !isCutOff(offset)
        }.prefix(4).map { "sector \($0) of the file was changed" }
    }
}
