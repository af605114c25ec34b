// SPDX-License-Identifier: BSD-2-Clause
// Which requests are answered, found by trying each place and each cut: slowly, and without the code that is tested.

enum AnswerOracle {
    /// The cookies whose headers end a reply in the buffer, in the stream, or begin anywhere in the one and end as the other begins.
    static func answered(_ cookies: [UInt64], buffer: [UInt8], stream: [UInt8]) -> Set<UInt64> {
        var found = Set<UInt64>()
        for bytes in [buffer, stream] where bytes.count >= 16 {
            for start in 0...bytes.count - 16 { note(Array(bytes[start..<start + 16]), &found) }
        }
        for count in 1...15 where buffer.count >= count && stream.count >= 16 - count {
            for start in 0...buffer.count - count {
                note(Array(buffer[start..<start + count]) + stream.prefix(16 - count), &found)
            }
        }
        return found.intersection(cookies)
    }

    private static func note(_ header: [UInt8], _ found: inout Set<UInt64>) {
        let isLast = header[5] & 1 == 1
        let isEmptyOrError = header[6] >= 128 || (header[6] == 0 && header[7] == 0)
        let isSimple = Array(header.prefix(4)) == [0x67, 0x44, 0x66, 0x98]
        let isChunk = Array(header.prefix(4)) == [0x66, 0x8e, 0x33, 0xef] && isLast && isEmptyOrError
        guard isSimple || isChunk else { return }
        found.insert(header.suffix(8).reduce(0) { $0 << 8 | UInt64($1) })
    }
}
