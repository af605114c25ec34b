// SPDX-License-Identifier: BSD-2-Clause
// VHDs for tests, made byte by byte as the specification has it, by code that shares nothing with the product.
import Foundation
import TestSupport

/// A kind of VHD.
struct VHDRecipe: CustomStringConvertible, Sendable {
    /// 2: fixed, 3: dynamic, 4: differencing.
    var kind: UInt32 = 3
    /// Of a block.
    var blockBits = 13
    /// Bytes of the disk, whole sectors.
    var size = 200 << 10
    /// Percent of the blocks that have something.
    var filled: UInt64 = 40
    /// Blocks of which only some sectors are the image's own; the others have anything, as XenServer leaves them.
    var hasPartial = false
    /// Data begin with a page, as XenServer has it; else wherever the block before ends, as QEMU has it.
    var isAligned = false
    /// Between the last block and the footer.
    var slack = 0
    /// A device, with the footer at its end.
    var isDevice = false
    /// The footer at the end is damaged.
    var losesFooter = false
    /// Sectors of what lies below.
    var lowerSectors: Int?
    var hasBatmap = false

    var blockSize: Int { 1 << blockBits }
    var bitmapSize: Int { (blockSize / sectorSize / 8 + 511) & ~511 }
    var blocks: Int { (size + blockSize - 1) / blockSize }

    var description: String {
        "type \(kind), \(size) bytes in blocks of \(blockSize)\(hasPartial ? ", partial" : "")\(isAligned ? ", aligned" : "")"
            + "\(isDevice ? ", device" : "")\(losesFooter ? ", no footer" : "")\(slack > 0 ? ", slack \(slack)" : "")"
            + (lowerSectors.map { ", above \($0) sectors" } ?? "")
    }

    /// One of very many.
    static func random(_ random: inout SplitMix64) -> VHDRecipe {
        var recipe = VHDRecipe()
        recipe.kind = random.pick([2, 3, 3, 3, 4, 4, 4])
        recipe.blockBits = random.pick([12, 13, 14, 16, 16, 21])
        recipe.size = random.pick([24, 40, 64]) << recipe.blockBits
        if recipe.blockBits == 16 { recipe.size = 24 << 16 }
        if recipe.blockBits == 21 { recipe.size = 3 << 21 }
        if random.onceIn(2) { recipe.size -= sectorSize * (1 + random.below(7)) }
        recipe.filled = random.pick([0, 40, 100])
        recipe.hasPartial = recipe.kind == 4 || random.onceIn(3)
        recipe.isAligned = random.onceIn(2)
        recipe.slack = random.onceIn(4) ? sectorSize * (1 + random.below(9)) : 0
        recipe.isDevice = recipe.kind != 2 && random.onceIn(6)
        recipe.losesFooter = recipe.kind != 2 && random.onceIn(6)
        recipe.hasBatmap = random.onceIn(4)
        let sectors = recipe.size / sectorSize
        if recipe.kind == 4 { recipe.lowerSectors = random.pick([sectors, sectors + 9, sectors / 2]) }
        return recipe
    }
}

/// A VHD that was made.
struct MadeVHD: Sendable {
    let recipe: VHDRecipe
    let image: ByteImage
    /// What each sector shows.
    let content: [UInt32]
    let lower: ByteImage?
}

extension VHDRecipe {
    /// A footer with its checksum.
    static func footer(kind: UInt32, size: Int) -> [UInt8] {
        let footer = ByteImage(count: 512)
        footer.write(Array("conectix".utf8), at: 0)
        footer.put32(2, at: 8)
        footer.put32(0x10000, at: 12)
        footer.put64(kind == 2 ? .max : 512, at: 16)
        footer.write(Array("tap\0".utf8), at: 28)
        footer.put32(0x10003, at: 32)
        footer.put64(UInt64(size), at: 40)
        footer.put64(UInt64(size), at: 48)
        footer.put32(kind, at: 60)
        footer.write((0..<16).map { UInt8(0x40 + $0) }, at: 68)
        checksum(footer, 0, 512, at: 64)
        return [UInt8](footer.all)
    }

    /// Puts the checksum of a structure.
    static func checksum(_ image: ByteImage, _ start: Int, _ count: Int, at place: Int) {
        image.put32(0, at: start + place)
        let sum = image.part(start, count).reduce(UInt32(0)) { $0 &+ UInt32($1) }
        image.put32(~sum, at: start + place)
    }

    /// Makes it.
    func make(seed: UInt64) -> MadeVHD {
        var random = SplitMix64(seed: seed)
        let sectors = size / sectorSize
        var content = [UInt32](repeating: 0, count: sectors)
        let image = ByteImage()
        let footer = Self.footer(kind: kind, size: size)
        if kind == 2 {
            image.resize(size)
            for sector in 0..<sectors where random.chance(filled) {
                content[sector] = UInt32(1 + random.below(900))
                put(image, sector * sectorSize, sector, content[sector])
            }
            image.write(footer, at: size)
            return MadeVHD(recipe: self, image: image, content: content, lower: nil)
        }
        let lower = lowerSectors.map { count in
            let lower = ByteImage(count: count * sectorSize)
            for sector in 0..<count where !random.onceIn(4) {
                let generation = UInt32(1 + random.below(900))
                put(lower, sector * sectorSize, sector, generation)
                if sector < sectors { content[sector] = generation }
            }
            return lower
        }
        image.write(footer, at: 0)
        putHeader(image)
        var end = 1536 + ((blocks * 4 + 511) & ~511)
        image.write([UInt8](repeating: 0xff, count: end - 1536), at: 1536)
        if hasBatmap {
            image.write(Array("tdbatmap".utf8), at: end)
            image.put64(UInt64(end + 512), at: end + 8)
            image.put32(1, at: end + 16)
            image.put32(0x10002, at: end + 20)
            image.put32(.max, at: end + 24)
            image.resize(end + 1024)
            end += 1024
        }
        for block in shuffled(&random) where random.chance(filled) {
            if isAligned { end = (end + bitmapSize + 4095) & ~4095 - bitmapSize }
            image.put32(UInt32(end / 512), at: 1536 + block * 4)
            image.resize(end + bitmapSize + blockSize)
            putBlock(image, block, at: end, &content, &random)
            end += bitmapSize + blockSize
        }
        image.write([UInt8](repeating: 0x5a, count: slack), at: end)
        end += slack
        if isDevice {
            let room = blocks * (bitmapSize + blockSize + 4096)
            image.write([UInt8](repeating: 0x77, count: room), at: end)
            end += room
        }
        image.write(losesFooter ? [UInt8](repeating: 0x33, count: 512) : footer, at: end)
        return MadeVHD(recipe: self, image: image, content: content, lower: lower)
    }

    private func shuffled(_ random: inout SplitMix64) -> [Int] {
        var order = Array(0..<blocks)
        for index in order.indices { order.swapAt(index, random.below(order.count)) }
        return order
    }

    private func putHeader(_ image: ByteImage) {
        let start = 512
        image.resize(1536)
        image.write(Array("cxsparse".utf8), at: start)
        image.put64(.max, at: start + 8)
        image.put64(1536, at: start + 16)
        image.put32(0x10000, at: start + 24)
        image.put32(UInt32(blocks), at: start + 28)
        image.put32(UInt32(blockSize), at: start + 32)
        if kind == 4 {
            let name = Array("base.vhd".utf16)
            for (index, unit) in name.enumerated() {
                image.write([UInt8(unit >> 8), UInt8(unit & 255)], at: start + 64 + index * 2)
            }
            image.write((0..<16).map { UInt8(0x20 + $0) }, at: start + 40)
        }
        Self.checksum(image, start, 1024, at: 36)
    }

    private func put(_ image: ByteImage, _ offset: Int, _ sector: Int, _ generation: UInt32) {
        image.write(SectorPattern.bytes(first: sector, count: 1, generation: generation), at: offset)
    }

    private func putBlock(
        _ image: ByteImage, _ block: Int, at offset: Int, _ content: inout [UInt32], _ random: inout SplitMix64
    ) {
        var bits = [UInt8](repeating: 0, count: bitmapSize)
        let isPartial = hasPartial && !random.onceIn(4)
        for index in 0..<blockSize / sectorSize {
            let sector = block * blockSize / sectorSize + index
            let place = offset + bitmapSize + index * sectorSize
            if isPartial, random.onceIn(2) {
                image.write([UInt8](repeating: 0xab, count: sectorSize), at: place)
                continue
            }
            bits[index / 8] |= 0x80 >> UInt8(index % 8)
            let generation = UInt32(random.below(900))
            put(image, place, sector, generation)
            if sector < content.count { content[sector] = generation }
        }
        image.write(bits, at: offset)
    }
}
