// SPDX-License-Identifier: BSD-2-Clause
// CRC-32C (Castagnoli), eight bytes at a time.
import Memory

/// The checksum of iSCSI and of fio's `verify=crc32c`: polynomial 0x1EDC6F41, reflected, all bits inverted.
public enum CRC32C {
    /// Eight tables of 256 entries: entry n of table t is the effect of byte n followed by t zero bytes.
    struct Tables: ~Copyable, Sendable {
        var entries = FixedArray<UInt32>(zeroed: 8 * 256)

        init() {
            for byte in 0..<256 {
                var value = UInt32(byte)
                for _ in 0..<8 { value = value >> 1 ^ (value & 1 == 0 ? 0 : 0x82f6_3b78) }
                entries[byte] = value
            }
            for index in 256..<2048 {
                let previous = entries[index - 256]
                entries[index] = previous >> 8 ^ entries[Int(previous & 255)]
            }
        }
    }

    private static let tables = Tables()

    /// The checksum of `bytes`, continuing from `seed`, the checksum of the bytes before.
    public static func checksum(_ bytes: UnsafeRawBufferPointer, seed: UInt32 = 0) -> UInt32 {
        let table = unsafe UnsafePointer(tables.entries.address(of: 0))
        var crc = ~seed
        var offset = 0
        while offset + 8 <= bytes.count {
            let word = unsafe bytes.loadUnaligned(fromByteOffset: offset, as: UInt64.self) ^ UInt64(crc)
            let low =
                unsafe table[1792 + Int(word & 255)] ^ table[1536 + Int(word >> 8 & 255)]
                ^ table[1280 + Int(word >> 16 & 255)] ^ table[1024 + Int(word >> 24 & 255)]
            let high =
                unsafe table[768 + Int(word >> 32 & 255)] ^ table[512 + Int(word >> 40 & 255)]
                ^ table[256 + Int(word >> 48 & 255)] ^ table[Int(word >> 56)]
            crc = low ^ high
            offset += 8
        }
        while offset < bytes.count {
            crc = unsafe crc >> 8 ^ table[Int((crc ^ UInt32(bytes[offset])) & 255)]
            offset += 1
        }
        return ~crc
    }
}
