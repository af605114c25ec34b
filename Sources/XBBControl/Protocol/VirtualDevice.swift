// SPDX-License-Identifier: BSD-2-Clause
// Names of virtual disks and their numbers, as docs/man/xen-vbd-interface.7 of Xen and libxl encode them.

/// A virtual disk's number and its name.
///
///     xvda..xvdp, partition 0..15     202 << 8 | disk << 4 | partition
///     beyond                          1 << 28  | disk << 8 | partition   (disk below 2^20, partition below 256)
///     sda..sdp, partition 0..15       8 << 8   | disk << 4 | partition
///     hda, hdb, partition 0..63       3 << 8   | disk << 6 | partition
///     hdc, hdd                        22 << 8  | (disk - 2) << 6 | partition
public enum VirtualDevice {
    /// The number of "xvda", "xvda1", "sda", "hda", "d0p1", or of a number in decimal, "0x" or "0" octal as in C.
    ///
    /// nil for everything that libxl_device.c (libxl__device_disk_dev_number) refuses.
    public static func number(of name: String) -> UInt32? {
        if let place = numbered(name) ?? lettered(name, "xvd", disks: 1 << 20, partitions: 256) {
            if place.disk < 16 && place.partition < 16 { return 202 << 8 | place.disk << 4 | place.partition }
            return 1 << 28 | place.disk << 8 | place.partition
        }
        if let number = plain(name) { return number }
        if let place = lettered(name, "hd", disks: 4, partitions: 64) {
            return (place.disk < 2 ? 3 : 22) << 8 | (place.disk & 1) << 6 | place.partition
        }
        if let place = lettered(name, "sd", disks: 16, partitions: 16) {
            return 8 << 8 | place.disk << 4 | place.partition
        }
        return nil
    }

    /// The usual name of a number; its digits where there is none.
    public static func name(of number: UInt32) -> String {
        func name(_ prefix: String, _ disk: UInt32, _ partition: UInt32) -> String {
            prefix + letters(disk) + (partition == 0 ? "" : String(partition))
        }
        switch number {
        case 202 << 8...202 << 8 | 0xff: return name("xvd", number >> 4 & 15, number & 15)
        case 1 << 28..<1 << 29:
            let disk = number >> 8 & 0xfffff
            let partition = number & 0xff
            // These use the short form.
            if disk < 16 && partition < 16 { return String(number) }
            return name("xvd", disk, partition)
        case 8 << 8...8 << 8 | 0xff: return name("sd", number >> 4 & 15, number & 15)
        case 3 << 8..<3 << 8 | 0x80: return name("hd", number >> 6 & 1, number & 63)
        case 22 << 8..<22 << 8 | 0x80: return name("hd", 2 + (number >> 6 & 1), number & 63)
        default: return String(number)
        }
    }

    private struct Place {
        let disk: UInt32
        let partition: UInt32
    }

    /// "d3p1".
    private static func numbered(_ name: String) -> Place? {
        guard name.utf8.first == UInt8(ascii: "d") else { return nil }
        let parts = name.dropFirst().split(separator: "p", omittingEmptySubsequences: false)
        guard parts.count == 2, let disk = DecimalText.number(parts[0]), let partition = DecimalText.number(parts[1]),
            disk < 1 << 20, partition < 256
        else { return nil }
        return Place(disk: UInt32(disk), partition: UInt32(partition))
    }

    /// Letters count in base 26 without a zero: a, b, ... z, aa, ab.
    private static func lettered(_ name: String, _ prefix: String, disks: UInt32, partitions: UInt32) -> Place? {
        guard name.hasPrefix(prefix) else { return nil }
        var rest = name.utf8.dropFirst(prefix.utf8.count)
        var next: UInt32 = 0
        while let letter = rest.first, (UInt8(ascii: "a")...UInt8(ascii: "z")).contains(letter) {
            rest = rest.dropFirst()
            next = next * 26 + UInt32(letter - UInt8(ascii: "a")) + 1
            if next > disks { return nil }
        }
        guard next > 0 else { return nil }
        guard !rest.isEmpty else { return Place(disk: next - 1, partition: 0) }
        guard let partition = DecimalText.number(String(decoding: rest, as: UTF8.self)), partition > 0,
            partition < partitions
        else { return nil }
        return Place(disk: next - 1, partition: UInt32(partition))
    }

    private static func plain(_ text: String) -> UInt32? {
        let value: UInt32?
        if text.hasPrefix("0x") || text.hasPrefix("0X") {
            value = digits(text.dropFirst(2), radix: 16)
        } else if text.hasPrefix("0") && text != "0" {
            value = digits(text.dropFirst(), radix: 8)
        } else {
            value = digits(text[...], radix: 10)
        }
        guard let value, value <= UInt32(Int32.max) else { return nil }
        return value
    }

    private static func digits(_ text: Substring, radix: Int) -> UInt32? {
        guard let first = text.utf8.first, first != UInt8(ascii: "+"), first != UInt8(ascii: "-") else { return nil }
        return UInt32(text, radix: radix)
    }

    private static func letters(_ disk: UInt32) -> String {
        var text = ""
        var left = disk + 1
        while left > 0 {
            left -= 1
            text = String(Character(Unicode.Scalar(UInt8(ascii: "a") + UInt8(left % 26)))) + text
            left /= 26
        }
        return text
    }
}
