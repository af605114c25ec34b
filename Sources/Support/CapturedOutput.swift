// SPDX-License-Identifier: BSD-2-Clause
// What libraries in this process print: read by the process itself, line by line.
import CLinux
import Glibc

/// Standard output and error as a pipe that this process reads, so that what is printed there can be limited like any other line.
///
/// Printing never waits: what has no room in the pipe is lost to who prints it. What is in the pipe when the process crashes
/// is written to the old standard error as it is. Lines of ``Log`` go to the old one. Control thread only.
public final class CapturedOutput {
    /// Readable while there is something to take.
    public let descriptor: Int32
    private var rest: [UInt8] = []
    private static let longestLine = 1000

    /// Once in a process; nil where no pipe can be had, and everything stays as it is.
    public init?() {
        var saved: Int32 = -1
        // The journal is looked for while standard error is still the old one.
        let sink = LogSink.standardError
        // The call writes one number.
        descriptor = unsafe clinux_capture_stderr(&saved)
        if descriptor < 0 { return nil }
        sink.move(to: saved)
    }

    /// Hands over whole lines, and at most 64 KiB of them. `isLast`: also one that is not whole.
    public func take(isLast: Bool = false, _ body: (ArraySlice<UInt8>) -> Void) {
        var buffer = [UInt8](repeating: 0, count: 65536)
        // Within the closure the buffer is valid, and its size is passed on.
        let count = unsafe buffer.withUnsafeMutableBytes { unsafe read(descriptor, $0.baseAddress, $0.count) }
        if count > 0 { rest += buffer[..<count] }
        var start = 0
        for index in rest.indices {
            let isEnd = rest[index] == UInt8(ascii: "\n")
            if !isEnd && index - start < Self.longestLine { continue }
            if index > start { body(rest[start..<(isEnd ? index : index + 1)]) }
            start = index + 1
        }
        rest.removeFirst(start)
        if isLast && !rest.isEmpty {
            body(rest[...])
            rest = []
        }
    }
}
