// SPDX-License-Identifier: BSD-2-Clause
import Base
import PluginHost
import Support
import TestSupport
import Testing

@testable import XBBControl

@Suite struct JSONTests {
    @Test(
        "what is JSON comes back as it was",
        arguments: [
            "null", "true", "false", "0", "-0", "18446744073709551615", "1e400", "-1.5E-7", "\"\"", "[]", "{}",
            "\"a\\\"b\\\\c\\nd\\te\\u0001\"", "[1,[2,[]],{\"a\":null}]", "{\"a\":1,\"a\":2}", "\"\u{e9}\u{1f600}\"",
        ])
    func roundTrip(_ text: String) throws {
        #expect(try JSON(parsing: text).serialized == text)
        #expect(throws: Never.self) { try JSON.check(Array(text.utf8)) }
    }

    @Test("white space and escapes") func escapes() throws {
        #expect(try JSON(parsing: " \t\r\n[ 1 , 2 ]\n").serialized == "[1,2]")
        #expect(try JSON(parsing: "\"\\u00e9\\ud83d\\ude00\\/\\b\\f\"") == .string("\u{e9}\u{1f600}/\u{8}\u{c}"))
    }

    @Test("no text is written with a character that moves a cursor or ends a line") func control() throws {
        for code in Array(UInt32(0)..<0x20) + Array(0x7f..<0xa0) + [0x2028, 0x2029] {
            let text = "é" + String(try #require(Unicode.Scalar(code)))
            let written = JSON.object([(text, .string(text))]).serialized
            #expect(!written.hasControlCharacters, "\(code)")
            #expect(try JSON(parsing: written) == .object([(text, .string(text))]))
        }
    }

    @Test(
        "what is no JSON",
        arguments: [
            "", " ", "nul", "truex", "01", "-", "1.", ".5", "1e", "+1", "[1,]", "[1 2]", "[", "{\"a\"}", "{\"a\":}",
            "{a:1}", "{\"a\":1,}", "\"", "\"\\x\"", "\"\\u12\"", "\"\\ud800\"", "\"\\ud800x\"", "\"\\ud800\\u0041\"",
            "\"\\udc00\"", "\"a\nb\"", "1 1", "[]]", "'a'", "NaN", "\"\u{1}\"",
        ])
    func refused(_ text: String) {
        #expect(throws: JSONError.self) { try JSON(parsing: text) }
        #expect(throws: JSONError.self) { try JSON.check(Array(text.utf8)) }
    }

    @Test("bytes that are no UTF-8 are no string") func notUTF8() {
        for bytes in [[0x22, 0xff, 0x22], [0x22, 0xc3, 0x22], [0x22, 0xed, 0xa0, 0x80, 0x22]] as [[UInt8]] {
            #expect(throws: JSONError.self) { try JSON(parsing: bytes) }
            #expect(throws: JSONError.self) { try JSON.check(bytes) }
        }
    }

    @Test("depth is bounded") func depth() throws {
        func nested(_ depth: Int) -> String {
            String(repeating: "[", count: depth) + String(repeating: "]", count: depth)
        }
        #expect(throws: Never.self) { try JSON(parsing: nested(JSON.maximumDepth)) }
        #expect(throws: JSONError.self) { try JSON(parsing: nested(JSON.maximumDepth + 2)) }
        #expect(throws: JSONError.self) { try JSON(parsing: String(repeating: "[", count: 1_000_000)) }
        #expect(throws: JSONError.self) { try JSON(parsing: String(repeating: "{\"a\":", count: 1_000_000)) }
    }

    @Test("random damage is an error or a value, and what is a value comes back", arguments: [UInt64(1), 2, 3])
    func damage(seed: UInt64) throws {
        var random = SplitMix64(seed: seed)
        let whole = Array("{\"a\":[1,-2.5e3,\"x\\u00e9\\n\"],\"b\":{\"c\":null,\"d\":true},\"e\":\"\u{1f600}\"}".utf8)
        var accepted = 0
        for _ in 0..<20000 {
            var bytes = whole
            for _ in 0..<Int.random(in: 1...3, using: &random) {
                let index = Int.random(in: 0..<bytes.count, using: &random)
                switch Int.random(in: 0..<3, using: &random) {
                case 0: bytes[index] = UInt8.random(in: 0...255, using: &random)
                case 1: bytes.remove(at: index)
                default: bytes.insert(whole[Int.random(in: 0..<whole.count, using: &random)], at: index)
                }
            }
            guard let value = try? JSON(parsing: bytes) else { continue }
            accepted += 1
            #expect(try JSON(parsing: value.serialized) == value, "seed \(seed)")
        }
        #expect(accepted > 0)
    }

    @Test("lines of a stream, however it is cut") func lines() {
        var random = SplitMix64(seed: 4)
        let text = Array("ping\r\n\nlist\nshow 1/2\nrest".utf8)
        for _ in 0..<200 {
            var buffer = LineBuffer(limit: 8)
            var found: [String] = []
            var offset = 0
            while offset < text.count {
                let count = Int.random(in: 1...text.count - offset, using: &random)
                buffer.append(text[offset..<offset + count])
                offset += count
                while let line = buffer.next() { found.append(String(decoding: line, as: UTF8.self)) }
            }
            #expect(found == ["ping", "", "list", "show 1/2"] && !buffer.isOverlong)
        }
    }

    @Test("a line that is too long ends the stream") func overlong() {
        var open = LineBuffer(limit: 8)
        open.append(Array("123456789".utf8))
        #expect(open.next() == nil && open.isOverlong)
        var closed = LineBuffer(limit: 8)
        closed.append(Array("123456789\nping\n".utf8))
        #expect(closed.next() == nil && closed.isOverlong)
        closed.append(Array("ping\n".utf8))
        #expect(closed.next() == nil)
        var exact = LineBuffer(limit: 8)
        exact.append(Array("12345678\n".utf8))
        #expect(exact.next()?.count == 8)
    }

    @Test(
        "requests",
        arguments: [
            "ping", "list", "plugins", "show 1/51712", "stats vbd/1/51712", "set 1/2 poll_us 10", "pause 1/2 60.0",
            "pause 1/2 60.0 release", "resume 1/2", "resize 1/2 1024", "resize 1/2 - force", "extents 1/2 0",
            "swap 1/2 10.0 raw fd:1 a=b /dev/x", "swap 1/2 10.0 qcow2 - % /a%20b%25%c3%a9",
        ])
    func request(_ line: String) throws {
        #expect(try ControlRequest(parsing: Array(line.utf8)).line == line)
    }

    @Test(
        "lines that are no request",
        arguments: [
            "", "help", "ping 1", "show", "show 1", "show 1/2 3", "show ../1/2", "set 1/2 a", "set 1/2 a b c",
            "stats 1/x", "pause 1/2", "pause 1/2 1 x",
            "resize 1/2 1G", "resize 1/2 -1", "swap 1/2 1 raw - %", "swap 1/2 1 raw - % /a b", "swap 1/2 1 RAW - % /a",
            "swap 1/2 1 raw x % /a", "swap 1/2 1 raw - % /a%0", "swap 1/2 1 raw - % /a%zz", "swap 1/2 1 raw - % /a%00",
            "swap 1/2 1 raw - a /a", "show 1/2\u{7f}", "show\t1/2", "show 1/é",
        ])
    func refusedRequest(_ line: String) {
        #expect(throws: ControlError.self) { try ControlRequest(parsing: Array(line.utf8)) }
    }

    @Test("sizes are read as qemu-img reads them") func sizes() throws {
        for (text, bytes) in [
            ("20G", 20 << 30), ("+1G", 9 << 30), ("-1G", 7 << 30), ("1", 512), ("513", 1024), ("1k", 1024),
            ("4M", 4 << 20), ("1T", 1 << 40), ("1P", 1 << 50), ("1E", 1 << 60),
        ] as [(String, UInt64)] {
            #expect(try ByteSize(parsing: text).applied(to: 8 << 30) == bytes, "\(text)")
        }
        for text in [
            "", "+", "-", "0", "+0", "G", "1.5G", "1g", "1GB", " 1", "--1", "8E", "9223372036854775807", "1e3", "é",
        ] {
            #expect(throws: ControlError.self, "\(text)") { try ByteSize(parsing: text).applied(to: 8 << 30) }
        }
        for text in ["-2G", "-9G", "+7E"] {
            let size: UInt64 = text == "+7E" ? 2 << 60 : 2 << 30
            #expect(throws: ControlError.self, "\(text)") { try ByteSize(parsing: text).applied(to: size) }
        }
    }

    @Test("settings") func settings() throws {
        let setting = try TunableSetting(parsing: "flush_interval=1=2")
        #expect(setting.key == "flush_interval" && setting.value == "1=2")
        for text in ["", "=", "a=", "=1", "a", "A=1", "a b=1", "a=1 2", "a=é", "a=1\n", "a\n=1"] {
            #expect(throws: ControlError.self, "\(text)") { try TunableSetting(parsing: text) }
        }
    }
}
