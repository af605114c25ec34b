// SPDX-License-Identifier: BSD-2-Clause
// Sectors that identify their write, and whose every byte shows whether the sector is whole.
import Support

/// Fills and recognises the sectors of a run. A sector of zeroes is write 0.
///
/// ```
///  0  number of the write      8  sector      16  run      24  random numbers that depend on all three
/// ```
///
/// Unsafe code here reads and writes within the sectors that it is given.
public struct SectorContent: Sendable {
    /// Bytes of a sector.
    public static let size = 512
    /// Distinguishes this run's sectors from those of other runs.
    public let run: UInt64

    /// The sectors of a run.
    public init(run: UInt64) {
        self.run = run
    }

    private func words(_ sector: Int, _ number: WriteNumber) -> SplitMix64 {
        SplitMix64(
            seed: run ^ UInt64(bitPattern: Int64(sector)) &* 0x9e37_79b9_7f4a_7c15 ^ number &* 0xd6e8_feb8_6659_fd93)
    }

    /// Fills whole sectors, beginning with `sector`, with the content of a write.
    @unsafe public func fill(_ bytes: UnsafeMutableRawBufferPointer, sector: Int, number: WriteNumber) {
        for index in 0..<bytes.count / Self.size {
            var random = words(sector + index, number)
            for position in stride(from: 0, to: Self.size, by: 8) {
                let word =
                    switch position {
                    case 0: number
                    case 8: UInt64(bitPattern: Int64(sector + index))
                    case 16: run
                    default: random.next()
                    }
                unsafe bytes.storeBytes(of: word, toByteOffset: index * Self.size + position, as: UInt64.self)
            }
        }
    }

    /// What sector `index` of `bytes`, which is `sector` of the disk, contains.
    @unsafe public func find(in bytes: UnsafeRawBufferPointer, at index: Int, sector: Int) -> SectorFinding {
        func word(_ position: Int) -> UInt64 {
            unsafe bytes.loadUnaligned(fromByteOffset: index * Self.size + position, as: UInt64.self)
        }
        let positions = stride(from: 0, to: Self.size, by: 8)
        let number = word(0)
        if number == 0 {
            guard let first = positions.first(where: { word($0) != 0 }) else { return .write(0) }
            return .mangled("8 zeroes at first, other bytes from byte \(first) on")
        }
        if word(16) != run { return .mangled("a sector of another run, 0x\(String(word(16), radix: 16))") }
        if word(8) != UInt64(bitPattern: Int64(sector)) { return .mangled("write \(number) of sector \(word(8))") }
        var random = words(sector, number)
        for position in positions where position >= 24 && word(position) != random.next() {
            return .mangled("write \(number), but not from byte \(position) on")
        }
        return .write(number)
    }

    /// True if each byte of the sector matches one of the writes `numbers` at its place: a read through a page cache
    /// may see a concurrent write begin or end at any byte.
    @unsafe public func isMixture(
        of numbers: [WriteNumber], in bytes: UnsafeRawBufferPointer, at index: Int, sector: Int
    ) -> Bool {
        var candidate = [UInt8](repeating: 0, count: Self.size)
        var isExplained = [Bool](repeating: false, count: Self.size)
        for number in numbers {
            if number == 0 {
                for position in 0..<Self.size { candidate[position] = 0 }
            } else {
                unsafe candidate.withUnsafeMutableBytes { unsafe fill($0, sector: sector, number: number) }
            }
            for position in 0..<Self.size where unsafe bytes[index * Self.size + position] == candidate[position] {
                isExplained[position] = true
            }
        }
        return isExplained.allSatisfy { $0 }
    }
}
