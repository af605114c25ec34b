// SPDX-License-Identifier: BSD-2-Clause
// The last lines of workers in files: bounded, and of any bytes.
import Base
import Glibc
import TestSupport
import Testing

@testable import Support

@Suite struct LogFileTests {
    private final class Place {
        let path: String
        init() {
            var template = Array("/tmp/xbb-log.XXXXXX".utf8CString)
            close(mkstemp(&template))
            path = String(decoding: template.dropLast().map { UInt8(bitPattern: $0) }, as: UTF8.self)
        }
        deinit { unlink(path) }
        var size: Int {
            var status = stat()
            return stat(path, &status) == 0 ? Int(status.st_size) : -1
        }
    }

    @Test("lines come back with their level and time, and the file stays small") func lines() throws {
        let place = Place()
        let file = try #require(LogFile(path: place.path))
        for number in 0..<3000 {
            file.add(number % 2 == 0 ? .error : .info, "line \(number) " + String(repeating: "x", count: number % 900))
            #expect(place.size <= LogFile.mostBytes)
        }
        let lines = LogFile.lines(place.path, about: (1, 51712))
        #expect(lines.last?.text.hasPrefix("line 2999 ") == true && lines.last?.level == .info)
        #expect(lines.count > 30)
        #expect(lines.allSatisfy { abs($0.time - Double(time(nil))) < 600 && $0.vbd?.device == 51712 })
        // A part of the file begins in the middle of a line, which is left out.
        let few = LogFile.lines(place.path, limit: 4096, about: (1, 51712))
        #expect(!few.isEmpty && few.allSatisfy { $0.text.hasPrefix("line ") })
    }

    @Test("any bytes are lines without control characters, or none") func anyBytes() throws {
        var random = SplitMix64(seed: 5)
        for round in 0..<200 {
            let place = Place()
            var bytes = (0..<2000).map { _ in UInt8.random(in: 0...255, using: &random) }
            let forged = Array(
                "1700000000.1500 error a\u{1b}[2J\u{7f}b\u{9b}\n99999999999999999999.1000 info late\n1.2 info x\n".utf8)
            if round % 2 == 0 { bytes = Array("x\n".utf8) + forged + bytes }
            // What it holds is what a worker says that it has written: the magic number, the bytes that were added, the ring.
            var content: [UInt8] = [0x01, 0x58, 0x42, 0x42, 0x4c, 0x4f, 0x47, 0x0a]
            content += (0..<8).map { UInt8(truncatingIfNeeded: bytes.count >> (8 * $0)) } + bytes
            if round % 4 == 1 {
                content[8..<16] = ArraySlice((0..<8).map { _ in UInt8.random(in: 0...255, using: &random) })
            }
            content += [UInt8](repeating: 0, count: LogFile.mostBytes - content.count)
            let file = open(place.path, O_WRONLY)
            write(file, content, content.count)
            close(file)
            let lines = LogFile.lines(place.path, about: (1, 1))
            for line in lines { #expect(!line.text.hasControlCharacters) }
            if round % 2 == 0 {
                #expect(lines.map(\.text).first == "a?[2J?b?" && !lines.contains { $0.text == "late" })
            }
        }
        #expect(LogFile.lines("/dev/zero", about: (1, 1)).isEmpty && LogFile.lines("/nowhere", about: (1, 1)).isEmpty)
    }
}
