// SPDX-License-Identifier: BSD-2-Clause
// Ways in which a VHD lies about where its parts are.
import TestSupport

/// A way to make a VHD a trap.
enum VHDMutation: String, CaseIterable, Sendable {
    case blockIsTheFooter, blockIsTheHeader, blockIsTheTable, blockIsTheEndFooter, blockBehindTheEnd,
        blockBehindTwoTebibytes
    case twoEntriesForOneBlock, blocksThatOverlapByASector, blockInTheBatmap
    case blockSizeZero, blockSizeOdd, blockSizeHuge, entriesHuge, entriesFew, entriesNone
    case tableInTheFooter, tableInTheHeader, tableBehindTheEnd, tableAtTheEndOfNumbers, tableOffSector
    case headerBehindTheEnd, headerOffSector, headerInTheTable
    case sizeZero, sizeHuge, typeUnknown, versionUnknown, checksumWrong
    case locatorInTheTable, locatorAtTheEndOfNumbers, randomBits
    case randomTable

    /// Does it to an image of dynamic or differencing kind. Checksums are put right where that is not what is wrong.
    func apply(_ made: MadeVHD, _ image: ByteImage, _ random: inout SplitMix64) {
        let (recipe, table, header) = (made.recipe, 1536, 512)
        func entry(_ block: Int, _ sector: UInt32) { image.put32(sector, at: table + block * 4) }
        let there = (0..<recipe.blocks).filter { image.u32(table + $0 * 4) != .max }
        let block = there.isEmpty ? 0 : random.pick(there)
        let other = (block + 1) % recipe.blocks
        let fileSectors = image.count / 512
        switch self {
        case .blockIsTheFooter: entry(block, 0)
        case .blockIsTheHeader: entry(block, 1)
        case .blockIsTheTable: entry(block, 3)
        case .blockIsTheEndFooter: entry(block, UInt32(fileSectors - 1))
        case .blockBehindTheEnd: entry(block, UInt32(fileSectors + 9))
        case .blockBehindTwoTebibytes: entry(block, .max - 1)
        case .twoEntriesForOneBlock: entry(other, image.u32(table + block * 4))
        case .blocksThatOverlapByASector: entry(other, image.u32(table + block * 4) &+ 1)
        case .blockInTheBatmap: entry(block, UInt32((table + ((recipe.blocks * 4 + 511) & ~511)) / 512))
        case .blockSizeZero: image.put32(0, at: header + 32)
        case .blockSizeOdd: image.put32(UInt32(recipe.blockSize - 512), at: header + 32)
        case .blockSizeHuge: image.put32(1 << 31, at: header + 32)
        case .entriesHuge: image.put32(.max, at: header + 28)
        case .entriesFew: image.put32(UInt32(recipe.blocks - 1), at: header + 28)
        case .entriesNone: image.put32(0, at: header + 28)
        case .tableInTheFooter: image.put64(0, at: header + 16)
        case .tableInTheHeader: image.put64(1024, at: header + 16)
        case .tableBehindTheEnd: image.put64(UInt64(image.count), at: header + 16)
        case .tableAtTheEndOfNumbers: image.put64(.max & ~511, at: header + 16)
        case .tableOffSector: image.put64(1537, at: header + 16)
        case .headerBehindTheEnd: image.put64(UInt64(image.count), at: 16)
        case .headerOffSector: image.put64(513, at: 16)
        case .headerInTheTable: image.put64(1536, at: 16)
        case .sizeZero: image.put64(0, at: 48)
        case .sizeHuge: image.put64(.max, at: 48)
        case .typeUnknown: image.put32(7, at: 60)
        case .versionUnknown: image.put32(0x20000, at: 12)
        case .checksumWrong: break
        case .locatorInTheTable, .locatorAtTheEndOfNumbers:
            image.write(Array("W2ru".utf8), at: header + 576)
            image.put32(512, at: header + 580)
            image.put32(40, at: header + 584)
            image.put64(self == .locatorInTheTable ? 1536 : .max - 20, at: header + 592)
        case .randomBits:
            for _ in 0..<1 + random.below(4) {
                let place = random.below(min(image.count, 4096))
                image.write([image.u8(place) ^ (1 << UInt8(random.below(8)))], at: place)
            }
            if random.onceIn(2) { return }
        case .randomTable:
            for _ in 0..<1 + random.below(3) { entry(random.below(recipe.blocks), UInt32(random.below(fileSectors))) }
        }
        VHDRecipe.checksum(image, 0, 512, at: 64)
        VHDRecipe.checksum(image, 512, 1024, at: 36)
        if self == .checksumWrong { image.put32(1, at: 64) }
        // Both footers say the same.
        image.write([UInt8](image.part(0, 512)), at: image.count - 512)
    }
}
