// SPDX-License-Identifier: BSD-2-Clause
// Names of virtual disks and their numbers in XenStore (docs/man/xen-vbd-interface.7 of Xen).

/// A virtual disk as its guest names it.
///
/// The number is the last part of `device/vbd/<number>`; it encodes the kind of name, the disk and the partition.
public struct DeviceName: Sendable, Equatable, CustomStringConvertible {
    /// The number in XenStore: 51712 for xvda.
    public let number: UInt32

    /// A device by its number.
    public init(number: UInt32) {
        self.number = number
    }

    /// Parses "xvda", "xvdb3", "xvdaa", "sda", "hdc", "d16p2", "51712" or "0xca00"; nil for anything else.
    public init?(_ text: String) {
        let bytes = [UInt8](text.utf8)
        if let number = Self.plainNumber(text) {
            self.number = number
        } else if text.hasPrefix("xvd"), let (disk, partition) = Self.letters(bytes[3...]) {
            guard let number = Self.xvd(disk: disk, partition: partition) else { return nil }
            self.number = number
        } else if text.hasPrefix("sd"), let (disk, partition) = Self.letters(bytes[2...]), disk < 16, partition < 16 {
            number = 8 << 8 | disk << 4 | partition
        } else if text.hasPrefix("hd"), let (disk, partition) = Self.letters(bytes[2...]), disk < 4, partition < 64 {
            number = (disk < 2 ? 3 << 8 : 22 << 8) | (disk & 1) << 6 | partition
        } else if text.hasPrefix("d"), let (disk, partition) = Self.diskAndPartition(bytes[1...]) {
            guard let number = Self.xvd(disk: disk, partition: partition) else { return nil }
            self.number = number
        } else {
            return nil
        }
    }

    /// The name in the xvd scheme if the number has one, otherwise the number.
    public var description: String {
        let disk: UInt32
        let partition: UInt32
        if number >> 8 == 202 {
            (disk, partition) = (number >> 4 & 15, number & 15)
        } else if number >> 28 == 1 {
            (disk, partition) = (number >> 8 & 0xf_ffff, number & 255)
        } else {
            return String(number)
        }
        return "xvd" + Self.letters(of: disk) + (partition == 0 ? "" : String(partition))
    }

    /// Disks and partitions below 16 use the old numbers of major 202, all others the extended ones.
    private static func xvd(disk: UInt32, partition: UInt32) -> UInt32? {
        if disk < 16 && partition < 16 { return 202 << 8 | disk << 4 | partition }
        guard disk < 1 << 20, partition < 256 else { return nil }
        return 1 << 28 | disk << 8 | partition
    }

    private static func plainNumber(_ text: String) -> UInt32? {
        text.hasPrefix("0x") ? UInt32(text.dropFirst(2), radix: 16) : UInt32(text)
    }

    /// "a", "aa", "b3": letters count in base 26 without a zero, digits are the partition.
    private static func letters(_ bytes: ArraySlice<UInt8>) -> (disk: UInt32, partition: UInt32)? {
        var disk: UInt32 = 0
        var index = bytes.startIndex
        while index < bytes.endIndex, bytes[index] >= 97, bytes[index] <= 122 {
            guard disk < 1 << 20 else { return nil }
            disk = disk * 26 + UInt32(bytes[index] - 96)
            index += 1
        }
        guard disk > 0 else { return nil }
        guard index < bytes.endIndex else { return (disk - 1, 0) }
        guard let partition = number(bytes[index...]), partition > 0 else { return nil }
        return (disk - 1, partition)
    }

    /// "16" or "16p2".
    private static func diskAndPartition(_ bytes: ArraySlice<UInt8>) -> (disk: UInt32, partition: UInt32)? {
        guard let mark = bytes.firstIndex(of: 112) else {
            return number(bytes).map { ($0, 0) }
        }
        guard let disk = number(bytes[..<mark]), let partition = number(bytes[(mark + 1)...]) else { return nil }
        return (disk, partition)
    }

    private static func number(_ bytes: ArraySlice<UInt8>) -> UInt32? {
        guard !bytes.isEmpty, bytes.allSatisfy({ $0 >= 48 && $0 <= 57 }) else { return nil }
        return UInt32(String(decoding: bytes, as: UTF8.self))
    }

    private static func letters(of disk: UInt32) -> String {
        var rest = disk + 1
        var text: [UInt8] = []
        while rest > 0 {
            text.append(UInt8(97 + (rest - 1) % 26))
            rest = (rest - 1) / 26
        }
        return String(decoding: text.reversed(), as: UTF8.self)
    }
}
