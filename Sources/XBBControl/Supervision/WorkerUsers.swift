// SPDX-License-Identifier: BSD-2-Clause
// A user for each disk: what a worker that was taken over may do to processes of its user, and what the kernel counts by user,
// ends at its own disk.
import Base

/// The numbers from which each disk has one.
public struct WorkerUsers: Sendable, Equatable {
    private let numbers: ClosedRange<UInt32>

    /// These numbers, if every one of them can be a user here: `map` is /proc/self/uid_map, which says so for a container.
    public init?(_ numbers: ClosedRange<UInt32>, map: [UInt8]? = SmallFile.contents("/proc/self/uid_map", limit: 4096))
    {
        let lines = String(decoding: map ?? [], as: UTF8.self).split(separator: "\n")
        let isMapped = lines.contains { line in
            let words = line.split(separator: " ").compactMap { UInt64($0) }
            return words.count == 3 && words[0] <= UInt64(numbers.lowerBound)
                && UInt64(numbers.upperBound) < words[0] + words[2]
        }
        guard isMapped else { return nil }
        self.numbers = numbers
    }

    /// The number of a disk: from its name, so that the next xbbd comes to the same one, and the next one that is free where
    /// another disk has it. nil where none is free.
    func number(of address: VBDAddress, taken: Set<UInt32>) -> UInt32? {
        var hash: UInt64 = 0xcbf2_9ce4_8422_2325
        for byte in address.fileName.utf8 { hash = (hash ^ UInt64(byte)) &* 0x100_0000_01b3 }
        let count = UInt64(numbers.count)
        for step in 0..<count {
            let number = numbers.lowerBound + UInt32((hash % count + step) % count)
            if !taken.contains(number) { return number }
        }
        return nil
    }
}
