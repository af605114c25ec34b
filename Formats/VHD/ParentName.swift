// SPDX-License-Identifier: BSD-2-Clause
// The names that a differencing image has for its parent, as paths. The host judges them: `..` stays in them.
import ImageCore

/// A name of a parent.
public enum ParentName {
    /// Bytes of a name at most; a longer one is none.
    static let most: UInt64 = 4096

    /// The path that a locator of this form gives; nil: it is none that can be one here.
    ///
    /// - W2ru: UTF-16, little-endian, from the image's directory: `.\base.vhd`.
    /// - W2ku: the same from a drive: `C:\dir\base.vhd`. XenServer writes `/dir/base.vhd` so.
    /// - MacX: a URL in UTF-8: `file://./base.vhd`, `file:///dir/base.vhd`.
    public static func path(code: [UInt8], _ bytes: [UInt8]) -> [UInt8]? {
        switch code {
        case Array("W2ru".utf8), Array("W2ku".utf8): utf16(bytes, isLittle: true).flatMap { path(ofWindows: $0) }
        case Array("MacX".utf8): path(ofURL: bytes)
        default: nil
        }
    }

    /// The last part of the name that the header has, which says no directory that could be relied on.
    static func path(ofHeader bytes: [UInt8]) -> [UInt8]? {
        guard let name = utf16(bytes, isLittle: false), let path = path(ofWindows: name) else { return nil }
        guard let last = path.split(separator: UInt8(ascii: "/")).last else { return nil }
        return Array(last)
    }

    /// Text up to the first NUL; nil: it is no UTF-16, or there is none.
    private static func utf16(_ bytes: [UInt8], isLittle: Bool) -> String? {
        var units: [UInt16] = []
        for index in stride(from: 0, to: bytes.count - 1, by: 2) {
            let (first, second) = (UInt16(bytes[index]), UInt16(bytes[index + 1]))
            let unit = isLittle ? second << 8 | first : first << 8 | second
            if unit == 0 { break }
            units.append(unit)
        }
        return units.isEmpty ? nil : String(validating: units, as: UTF16.self)
    }

    private static func path(ofWindows name: String) -> [UInt8]? {
        var path = Array(name.utf8).map { $0 == UInt8(ascii: "\\") ? UInt8(ascii: "/") : $0 }
        // A drive.
        if path.count > 2, path[1] == UInt8(ascii: ":"), path[2] == UInt8(ascii: "/") { path.removeFirst(2) }
        return withoutDot(path)
    }

    private static func path(ofURL bytes: [UInt8]) -> [UInt8]? {
        var path = Array(bytes.prefix { $0 != 0 })
        let (scheme, local) = (Array("file://".utf8), Array("localhost/".utf8))
        guard path.starts(with: scheme) else { return nil }
        path.removeFirst(scheme.count)
        if path.starts(with: local) { path.removeFirst(local.count - 1) }
        guard String(validating: path, as: UTF8.self) != nil else { return nil }
        return withoutDot(path)
    }

    private static func withoutDot(_ path: [UInt8]) -> [UInt8]? {
        let rest = path.starts(with: Array("./".utf8)) ? Array(path.dropFirst(2)) : path
        return rest.isEmpty ? nil : rest
    }
}

extension VHDHeader {
    /// The parent's names in the order in which they are tried, each once: those from the image's directory first, as an image and its
    /// parent are moved together. A name that cannot be read is left out.
    func parents(_ reader: some ImageReader) throws(ImageError) -> [ImageReference] {
        var (near, far): ([[UInt8]], [[UInt8]]) = ([], [])
        for locator in locators where locator.length > 0 && locator.length <= ParentName.most {
            let bytes = try reader.bytes(at: locator.offset, count: Int(locator.length))
            guard let path = ParentName.path(code: locator.code, bytes) else { continue }
            if path.first == UInt8(ascii: "/") { far.append(path) } else { near.append(path) }
        }
        var names = near + far
        if names.isEmpty, let name = ParentName.path(ofHeader: parentName) { names = [name] }
        var found: [ImageReference] = []
        // XenServer gives a raw parent no identifier.
        let format = parentIdentifier.allSatisfy { $0 == 0 } ? "raw" : "vhd"
        for name in names where !found.contains(where: { $0.name == name }) {
            found.append(ImageReference(.backing, name: name, format: Array(format.utf8)))
        }
        return found
    }
}
