// SPDX-License-Identifier: BSD-2-Clause
// Paths of nodes: absolute, and checked once when they are made.
import Xen

/// An absolute path of ASCII letters, digits and "-_@", with no empty and no trailing name; or a special "@name".
struct XenStorePath: Hashable, Sendable, CustomStringConvertible {
    /// XENSTORE_ABS_PATH_MAX.
    static let maximumLength = 3072
    /// The node that always exists.
    static let root = XenStorePath(verified: "/")
    /// Stands for domains that are introduced.
    static let introduceDomain = XenStorePath(verified: "@introduceDomain")
    /// Stands for domains that are released.
    static let releaseDomain = XenStorePath(verified: "@releaseDomain")

    let description: String

    private init(verified: String) {
        description = verified
    }

    /// The home of a domain.
    init(homeOf domain: DomainID) {
        description = "/local/domain/\(domain)"
    }

    /// Reads a client's path; a relative one starts at the home of the client's domain.
    ///
    /// `limit` is its maximum length without "/local/domain/<domid>/". Throws EINVAL.
    init(_ bytes: ArraySlice<UInt8>, from domain: DomainID, limit: Int, allowSpecial: Bool) throws(XenStoreFailure) {
        guard bytes.allSatisfy(Self.isAllowed) else { throw .invalid }
        var text = String(decoding: bytes, as: UTF8.self)
        if bytes.first == UInt8(ascii: "@") {
            guard allowSpecial else { throw .invalid }
        } else if bytes.first != UInt8(ascii: "/") {
            text = "/local/domain/\(domain)/\(text)"
        }
        let length = text.utf8.count
        guard length <= Self.maximumLength, length - Self.homeLength(text) <= limit else { throw .invalid }
        var previous: UInt8?
        for byte in text.utf8 {
            if byte == UInt8(ascii: "/") && previous == byte { throw .invalid }
            previous = byte
        }
        if previous == UInt8(ascii: "/") && text != "/" { throw .invalid }
        description = text
    }

    var isRoot: Bool { description == "/" }
    var isSpecial: Bool { description.utf8.first == UInt8(ascii: "@") }

    /// The path without its last name; root is its own parent and that of the special paths.
    var parent: XenStorePath {
        guard let slash = description.utf8.lastIndex(of: UInt8(ascii: "/")),
            slash != description.startIndex
        else { return .root }
        return XenStorePath(verified: String(description[..<slash]))
    }

    /// The last name.
    var name: String {
        guard let slash = description.utf8.lastIndex(of: UInt8(ascii: "/")) else { return description }
        return String(description[description.utf8.index(after: slash)...])
    }

    /// The path of a child, whose name comes from a checked path or from this program.
    func child(_ name: String) -> XenStorePath {
        XenStorePath(verified: isRoot ? "/\(name)" : "\(description)/\(name)")
    }

    /// The common prefix of all paths below it.
    var prefixBelow: String { isRoot ? "/" : "\(description)/" }

    private static func isAllowed(_ byte: UInt8) -> Bool {
        switch byte {
        case UInt8(ascii: "a")...UInt8(ascii: "z"), UInt8(ascii: "A")...UInt8(ascii: "Z"),
            UInt8(ascii: "0")...UInt8(ascii: "9"), UInt8(ascii: "-"), UInt8(ascii: "/"), UInt8(ascii: "_"),
            UInt8(ascii: "@"):
            true
        default: false
        }
    }

    /// The length of a leading "/local/domain/<domid>/", or 0.
    private static func homeLength(_ text: String) -> Int {
        let prefix = "/local/domain/"
        guard text.hasPrefix(prefix) else { return 0 }
        let rest = text.utf8.dropFirst(prefix.utf8.count)
        guard let slash = rest.firstIndex(of: UInt8(ascii: "/")) else { return 0 }
        let digits = rest[..<slash]
        guard (1...5).contains(digits.count),
            digits.allSatisfy({ (UInt8(ascii: "0")...UInt8(ascii: "9")).contains($0) })
        else { return 0 }
        return prefix.utf8.count + digits.count + 1
    }
}
