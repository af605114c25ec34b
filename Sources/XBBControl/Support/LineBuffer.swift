// SPDX-License-Identifier: BSD-2-Clause
// Bytes from a stream to lines of bounded length.

/// Collects what a stream gives and hands out its lines.
struct LineBuffer {
    /// The most bytes of a line without its end.
    let limit: Int
    private var bytes: [UInt8] = []
    /// A line is longer than it may be; nothing more is handed out.
    private(set) var isOverlong = false

    init(limit: Int) {
        self.limit = limit
    }

    mutating func append(_ more: some Collection<UInt8>) {
        if !isOverlong { bytes += more }
    }

    /// The next whole line without "\n" or "\r\n"; nil when there is none.
    mutating func next() -> [UInt8]? {
        guard !isOverlong else { return nil }
        guard let end = bytes.firstIndex(of: UInt8(ascii: "\n")) else {
            if bytes.count > limit { overflow() }
            return nil
        }
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
        bytes = []
    }
}
