// SPDX-License-Identifier: BSD-2-Clause
// Splits a stream of bytes into lines of bounded length.

/// Collects the bytes of a stream and returns its lines.
struct LineBuffer {
    /// The longest line in bytes, without its line end.
    let limit: Int
    private var bytes: [UInt8] = []
    /// So many bytes have been looked at, and none of them is a line end: a line that comes in parts is looked through once.
    private var searched = 0
    /// A line was too long; no more lines are returned.
    private(set) var isOverlong = false

    init(limit: Int) {
        self.limit = limit
    }

    mutating func append(_ more: some Collection<UInt8>) {
        if !isOverlong { bytes += more }
    }

    /// The next complete line without "\n" or "\r\n"; nil if there is none.
    mutating func next() -> [UInt8]? {
        guard !isOverlong else { return nil }
        guard let end = bytes[searched...].firstIndex(of: UInt8(ascii: "\n")) else {
            searched = bytes.count
            if bytes.count > limit { overflow() }
            return nil
        }
        searched = 0
        guard end <= limit else {
            overflow()
            return nil
        }
        var line = Array(bytes[..<end])
        bytes.removeSubrange(...end)
        if line.last == UInt8(ascii: "\r") { line.removeLast() }
        return line
    }

    private mutating func overflow() {
        isOverlong = true
        searched = 0
        bytes = []
    }
}
