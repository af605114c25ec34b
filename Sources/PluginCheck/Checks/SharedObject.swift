// SPDX-License-Identifier: BSD-2-Clause
// The parts of a shared library that the plugin rules are about, as the dynamic linker reads them. The file is
// untrusted.
import PluginHost
import CLinux
import Glibc

/// A 64-bit ELF file.
struct SharedObject {
    /// A dynamic symbol.
    struct Symbol {
        let name: String
        let isDefined: Bool
        let isWeak: Bool
    }

    private let bytes: [UInt8]
    /// Segments: type, flags.
    private(set) var segments: [(type: UInt64, flags: UInt64)] = []
    /// Dynamic entries: tag, value.
    private(set) var dynamic: [(tag: UInt64, value: UInt64)] = []
    /// Global dynamic symbols.
    private(set) var symbols: [Symbol] = []
    /// Libraries that it depends on (DT_NEEDED).
    private(set) var needed: [String] = []

    init(path: String) throws(Failure) {
        let file = unsafe clinux_open(path, O_RDONLY | O_CLOEXEC, 0)
        guard file >= 0 else { throw Failure("cannot open \(path): \(unsafe String(cString: strerror(errno)))") }
        defer { close(file) }
        var content: [UInt8] = []
        var chunk = [UInt8](repeating: 0, count: 1 << 20)
        while case let count = unsafe read(file, &chunk, chunk.count), count > 0 { content += chunk[..<count] }
        bytes = content
        guard bytes.starts(with: [0x7f, 0x45, 0x4c, 0x46, 2, 1]), bytes.count >= 64 else {
            throw Failure("\(path) is no 64-bit ELF file: a plugin is a shared library")
        }
        guard number(16, 2) == 3 else { throw Failure("\(path) is no shared library: link with -shared") }
        for index in 0..<number(56, 2) {
            let entry = number(32, 8) &+ index &* 56
            segments.append((number(entry, 4), number(entry &+ 4, 4)))
        }
        readSections()
    }

    private func number(_ offset: UInt64, _ size: UInt64) -> UInt64 {
        guard offset <= UInt64(bytes.count), size <= UInt64(bytes.count) - offset else { return 0 }
        return bytes[Int(offset)..<Int(offset + size)].reversed().reduce(0) { $0 << 8 | UInt64($1) }
    }

    private func text(_ offset: UInt64) -> String {
        guard offset < UInt64(bytes.count) else { return "" }
        return String(decoding: bytes[Int(offset)...].prefix { $0 != 0 }, as: UTF8.self)
    }

    private mutating func readSections() {
        let (table, size, count) = (number(40, 8), number(58, 2), number(60, 2))
        func field(_ index: UInt64, _ offset: UInt64, _ width: UInt64) -> UInt64 {
            number(table &+ index &* size &+ offset, width)
        }
        for index in 0..<count {
            let (type, place, length) = (field(index, 4, 4), field(index, 24, 8), field(index, 32, 8))
            let strings = field(field(index, 40, 4), 24, 8)
            guard length <= UInt64(bytes.count) else { continue }
            if type == 6 {  // SHT_DYNAMIC
                for entry in stride(from: place, to: place &+ length, by: 16) {
                    let (tag, value) = (number(entry, 8), number(entry &+ 8, 8))
                    if tag == 0 { break }
                    dynamic.append((tag, value))
                    if tag == 1 { needed.append(text(strings &+ value)) }
                }
            } else if type == 11 {  // SHT_DYNSYM
                for entry in stride(from: place &+ 24, to: place &+ length, by: 24) {
                    let binding = number(entry &+ 4, 1) >> 4
                    if binding == 0 { continue }
                    symbols.append(
                        Symbol(
                            name: text(strings &+ number(entry, 4)), isDefined: number(entry &+ 6, 2) != 0,
                            isWeak: binding == 2))
                }
            }
        }
    }
}
