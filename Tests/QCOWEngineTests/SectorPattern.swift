// SPDX-License-Identifier: BSD-2-Clause
// Sectors that say where they belong and when they were written.
import Foundation

/// A sector's content: the sector of the disk and the generation of the write. Generation 0 is zeroes.
enum SectorPattern {
    static let magic: UInt32 = 0x5ec7_0a7e

    /// Fills whole sectors of memory, the first of which is sector `first` of the disk.
    static func fill(_ target: UnsafeMutableRawBufferPointer, first: Int, generation: UInt32) {
        guard let base = target.baseAddress else { return }
        if generation == 0 {
            memset(base, 0, target.count)
            return
        }
        for index in 0..<target.count / sectorSize {
            let sector = base + index * sectorSize
            sector.storeBytes(of: UInt32(truncatingIfNeeded: first + index), as: UInt32.self)
            sector.storeBytes(of: generation, toByteOffset: 4, as: UInt32.self)
            sector.storeBytes(of: magic, toByteOffset: 8, as: UInt32.self)
            sector.storeBytes(of: generation &* 0x9e37_79b9, toByteOffset: 12, as: UInt32.self)
            var done = 16
            while done < sectorSize {
                memcpy(sector + done, sector, done)
                done *= 2
            }
        }
    }

    /// Sectors of one generation in an array.
    static func bytes(first: Int, count: Int, generation: UInt32) -> [UInt8] {
        var bytes = [UInt8](repeating: 0, count: count * sectorSize)
        bytes.withUnsafeMutableBytes { fill($0, first: first, generation: generation) }
        return bytes
    }

    /// The generation of a sector's content; nil: not a whole sector that was ever written at this place.
    static func generation(_ base: UnsafeRawPointer, sector: Int) -> UInt32? {
        guard memcmp(base, base + 16, sectorSize - 16) == 0 else { return nil }
        let generation = base.loadUnaligned(fromByteOffset: 4, as: UInt32.self)
        let place = base.loadUnaligned(as: UInt32.self)
        let mark = base.loadUnaligned(fromByteOffset: 8, as: UInt32.self)
        let check = base.loadUnaligned(fromByteOffset: 12, as: UInt32.self)
        if generation == 0 { return place == 0 && mark == 0 && check == 0 ? 0 : nil }
        guard place == UInt32(truncatingIfNeeded: sector), mark == magic, check == generation &* 0x9e37_79b9 else {
            return nil
        }
        return generation
    }

    /// Words for a sector that is not what it should be.
    static func describe(_ base: UnsafeRawPointer) -> String {
        let (place, generation) = (
            base.loadUnaligned(as: UInt32.self), base.loadUnaligned(fromByteOffset: 4, as: UInt32.self)
        )
        let mark = base.loadUnaligned(fromByteOffset: 8, as: UInt32.self)
        if mark == magic { return "sector \(place) of write \(generation)" }
        return "bytes \(String(place, radix: 16)) \(String(generation, radix: 16)) \(String(mark, radix: 16))"
    }
}

/// The generations of all sectors of a disk: what a reader found. Unreadable or foreign content is noted beside.
struct DiskContent {
    /// One for each sector.
    var generations: [UInt32]
    /// Sectors whose content is nothing that was written there, with words.
    var foreign: [(sector: Int, what: String)] = []

    /// All zeroes.
    init(sectors: Int) { generations = [UInt32](repeating: 0, count: sectors) }

    /// Of a raw image.
    init(raw image: ByteImage) {
        self.init(sectors: image.count / sectorSize)
        withExtendedLifetime(image) { note(image.all, first: 0) }
    }

    /// Takes whole sectors that stand at sector `first`.
    mutating func note(_ raw: UnsafeRawBufferPointer, first: Int) {
        guard let base = raw.baseAddress else { return }
        for index in 0..<min(raw.count / sectorSize, generations.count - first) {
            let place = base + index * sectorSize
            if let found = SectorPattern.generation(place, sector: first + index) {
                generations[first + index] = found
            } else {
                foreign.append((first + index, SectorPattern.describe(place)))
            }
        }
    }
}
