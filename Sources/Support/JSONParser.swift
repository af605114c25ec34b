// SPDX-License-Identifier: BSD-2-Clause
// Parses JSON text. The sender may be broken: depth is limited, and only RFC 8259 is accepted.

/// Text that is not JSON.
public struct JSONError: Error, Equatable, Sendable, CustomStringConvertible {
    /// What was expected.
    public let expectation: String
    /// The byte where it was not found.
    public let offset: Int

    /// What was expected, and where.
    public var description: String { "not JSON at byte \(offset): expected \(expectation)" }
}

extension JSON {
    /// The deepest nesting of arrays and objects.
    public static let maximumDepth = 32

    /// Parses one value with nothing but white space around it.
    public init(parsing bytes: some Sequence<UInt8>) throws(JSONError) {
        var parser = JSONParser(bytes: [UInt8](bytes))
        self = try parser.document()
    }

    /// Throws unless ``init(parsing:)`` would read `bytes`; makes no value, so that what is only passed on costs little.
    public static func check(_ bytes: [UInt8]) throws(JSONError) {
        var parser = JSONParser(bytes: bytes, keeps: false)
        _ = try parser.document()
    }

    /// Parses one value with nothing but white space around it.
    public init(parsing text: String) throws(JSONError) {
        try self.init(parsing: text.utf8)
    }
}

private struct JSONParser {
    let bytes: [UInt8]
    /// False: values are checked and not made.
    let keeps: Bool
    var offset = 0

    init(bytes: [UInt8], keeps: Bool = true) {
        self.bytes = bytes
        self.keeps = keeps
    }

    private var next: UInt8? { offset < bytes.count ? bytes[offset] : nil }

    private func failure(_ expectation: String) -> JSONError { JSONError(expectation: expectation, offset: offset) }

    private mutating func skipSpace() {
        while let byte = next, byte == 0x20 || byte == 0x09 || byte == 0x0a || byte == 0x0d { offset += 1 }
    }

    private mutating func take(_ byte: UInt8) -> Bool {
        guard next == byte else { return false }
        offset += 1
        return true
    }

    private mutating func expect(_ byte: UInt8, _ what: String) throws(JSONError) {
        if !take(byte) { throw failure(what) }
    }

    mutating func document() throws(JSONError) -> JSON {
        let value = try value(depth: 0)
        skipSpace()
        if next != nil { throw failure("the end") }
        return value
    }

    private mutating func value(depth: Int) throws(JSONError) -> JSON {
        guard depth <= JSON.maximumDepth else { throw failure("at most \(JSON.maximumDepth) levels") }
        skipSpace()
        switch next {
        case UInt8(ascii: "{"): return try object(depth: depth)
        case UInt8(ascii: "["): return try array(depth: depth)
        case UInt8(ascii: "\""): return .string(try string())
        case UInt8(ascii: "t"): return try word("true", .bool(true))
        case UInt8(ascii: "f"): return try word("false", .bool(false))
        case UInt8(ascii: "n"): return try word("null", .null)
        case .some(UInt8(ascii: "-")), .some(UInt8(ascii: "0")...UInt8(ascii: "9")): return .number(try number())
        default: throw failure("a value")
        }
    }

    private mutating func object(depth: Int) throws(JSONError) -> JSON {
        offset += 1
        var members: [JSON.Member] = []
        skipSpace()
        if take(UInt8(ascii: "}")) { return .object(members) }
        repeat {
            skipSpace()
            guard next == UInt8(ascii: "\"") else { throw failure("a name") }
            let name = try string()
            skipSpace()
            try expect(UInt8(ascii: ":"), "':'")
            let value = try value(depth: depth + 1)
            if keeps { members.append(JSON.Member(name, value)) }
            skipSpace()
        } while take(UInt8(ascii: ","))
        try expect(UInt8(ascii: "}"), "',' or '}'")
        return .object(members)
    }

    private mutating func array(depth: Int) throws(JSONError) -> JSON {
        offset += 1
        var elements: [JSON] = []
        skipSpace()
        if take(UInt8(ascii: "]")) { return .array(elements) }
        repeat {
            let value = try value(depth: depth + 1)
            if keeps { elements.append(value) }
            skipSpace()
        } while take(UInt8(ascii: ","))
        try expect(UInt8(ascii: "]"), "',' or ']'")
        return .array(elements)
    }

    private mutating func word(_ word: String, _ value: JSON) throws(JSONError) -> JSON {
        guard bytes[offset...].starts(with: word.utf8) else { throw failure("a value") }
        offset += word.utf8.count
        return value
    }

    private mutating func digits() throws(JSONError) {
        let start = offset
        while let byte = next, (UInt8(ascii: "0")...UInt8(ascii: "9")).contains(byte) { offset += 1 }
        if offset == start { throw failure("a digit") }
    }

    private mutating func number() throws(JSONError) -> String {
        let start = offset
        _ = take(UInt8(ascii: "-"))
        if !take(UInt8(ascii: "0")) { try digits() }
        if take(UInt8(ascii: ".")) { try digits() }
        if take(UInt8(ascii: "e")) || take(UInt8(ascii: "E")) {
            if !take(UInt8(ascii: "+")) { _ = take(UInt8(ascii: "-")) }
            try digits()
        }
        return keeps ? String(decoding: bytes[start..<offset], as: UTF8.self) : ""
    }

    private mutating func string() throws(JSONError) -> String {
        offset += 1
        // Most have no escapes and are taken as they stand.
        let start = offset
        var isPlain = true
        while let byte = next, byte >= 0x20, byte != UInt8(ascii: "\""), byte != UInt8(ascii: "\\") {
            if byte >= 0x80 { isPlain = false }
            offset += 1
        }
        if !keeps, isPlain, take(UInt8(ascii: "\"")) { return "" }
        var text = bytes[start..<offset]
        while true {
            guard let byte = next, byte >= 0x20 else { throw failure("the end of the string") }
            offset += 1
            switch byte {
            case UInt8(ascii: "\""):
                guard let valid = String(validating: text, as: UTF8.self) else { throw failure("UTF-8 before") }
                return valid
            case UInt8(ascii: "\\"): try escape(into: &text)
            default: text.append(byte)
            }
        }
    }

    private mutating func escape(into text: inout ArraySlice<UInt8>) throws(JSONError) {
        guard let byte = next else { throw failure("an escape") }
        offset += 1
        switch byte {
        case UInt8(ascii: "\""), UInt8(ascii: "\\"), UInt8(ascii: "/"): text.append(byte)
        case UInt8(ascii: "b"): text.append(0x08)
        case UInt8(ascii: "f"): text.append(0x0c)
        case UInt8(ascii: "n"): text.append(0x0a)
        case UInt8(ascii: "r"): text.append(0x0d)
        case UInt8(ascii: "t"): text.append(0x09)
        case UInt8(ascii: "u"): text += try scalar().utf8
        default: throw failure("an escape")
        }
    }

    /// One "uXXXX", or two for a surrogate pair; the first 'u' was consumed already.
    private mutating func scalar() throws(JSONError) -> String {
        let first = try hexadecimal()
        var code = UInt32(first)
        if (0xd800...0xdbff).contains(first) {
            guard take(UInt8(ascii: "\\")), take(UInt8(ascii: "u")) else { throw failure("a second surrogate") }
            let second = try hexadecimal()
            guard (0xdc00...0xdfff).contains(second) else { throw failure("a second surrogate") }
            code = 0x10000 + ((UInt32(first) - 0xd800) << 10) + (UInt32(second) - 0xdc00)
        }
        guard let scalar = Unicode.Scalar(code) else { throw failure("a first surrogate") }
        return String(Character(scalar))
    }

    private mutating func hexadecimal() throws(JSONError) -> UInt16 {
        var value: UInt16 = 0
        for _ in 0..<4 {
            guard let byte = next, let digit = Character(Unicode.Scalar(byte)).hexDigitValue, byte < 0x80
            else { throw failure("4 hexadecimal digits") }
            value = value << 4 | UInt16(digit)
            offset += 1
        }
        return value
    }
}
