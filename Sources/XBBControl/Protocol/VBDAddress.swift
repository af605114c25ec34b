// SPDX-License-Identifier: BSD-2-Clause
// Identifies a VBD: by its place in XenStore, and in the form that people and xbbctl's requests use.
import Settings
public import Xen

/// Numbers as XenStore and libxl write them.
enum DecimalText {
    /// A decimal number without sign, spaces or leading zeros.
    static func number(_ text: some StringProtocol) -> UInt64? {
        guard (1...19).contains(text.utf8.count), text == "0" || text.utf8.first != UInt8(ascii: "0"),
            text.utf8.allSatisfy({ (UInt8(ascii: "0")...UInt8(ascii: "9")).contains($0) })
        else { return nil }
        return UInt64(text)
    }

    /// The number of a domain: below DOMID_FIRST_RESERVED (xen.h).
    static func domain(_ text: some StringProtocol) -> DomainID? {
        guard let value = number(text), value < 0x7ff0 else { return nil }
        return DomainID(value)
    }

    /// The number of a virtual device, which must fit into libxl's int.
    static func device(_ text: some StringProtocol) -> UInt32? {
        guard let value = number(text), value <= UInt64(Int32.max) else { return nil }
        return UInt32(value)
    }
}

/// The place of a VBD below "backend": kind, frontend's domain, virtual device.
public struct VBDAddress: Hashable, Comparable, Sendable, CustomStringConvertible {
    /// The directory below "backend": "vbd", "qdisk", "vbd3".
    public let kind: String
    /// The frontend's domain.
    public let domain: DomainID
    /// The virtual device's number: 51712 for xvda.
    public let device: UInt32

    /// The VBD `device` of `domain`; nil if `kind` is not a directory name (see ``isKind(_:)``).
    public init?(kind: String, domain: DomainID, device: UInt32) {
        guard Self.isKind(kind), device <= UInt32(Int32.max) else { return nil }
        self.kind = kind
        self.domain = domain
        self.device = device
    }

    /// The VBD of a path's three names; nil if one of them is not valid.
    public init?(kind: some StringProtocol, domain: some StringProtocol, device: some StringProtocol) {
        guard let domain = DecimalText.domain(domain), let device = DecimalText.device(device) else { return nil }
        self.init(kind: String(kind), domain: domain, device: device)
    }

    /// The VBD of a backend's node, whatever stands in front of "backend/".
    public init?(node: String) {
        let names = node.split(separator: "/")
        guard names.count >= 4, names[names.count - 4] == "backend" else { return nil }
        self.init(kind: names[names.count - 3], domain: names[names.count - 2], device: names[names.count - 1])
    }

    /// True for a name that is allowed below "backend": see `TextRule.backendKind`.
    public static func isKind(_ name: String) -> Bool { TextRule.backendKind.accepts(name) }

    /// The backend's node, for a backend in domain `own`.
    public func backendPath(own: DomainID) -> String {
        "/local/domain/\(own)/backend/\(kind)/\(domain)/\(device)"
    }

    /// The frontend's node. A guest sees every kind of disk as "vbd".
    public var frontendPath: String { "/local/domain/\(domain)/device/vbd/\(device)" }

    /// The toolstack's own copy, which no guest and no backend can write.
    public var toolstackPath: String { "/libxl/\(domain)/device/vbd/\(device)" }

    /// The node for the backend's errors.
    public func errorPath(own: DomainID) -> String {
        "/local/domain/\(own)/error/backend/\(kind)/\(domain)/\(device)"
    }

    /// "vbd/1/51712".
    public var description: String { "\(kind)/\(domain)/\(device)" }

    /// Without '/', for file names: "vbd-1-51712".
    public var fileName: String { "\(kind)-\(domain)-\(device)" }

    /// Reads a ``fileName``.
    init?(fileName: some StringProtocol) {
        let parts = fileName.split(separator: "-", omittingEmptySubsequences: false)
        guard parts.count == 3 else { return nil }
        self.init(kind: String(parts[0]), domain: String(parts[1]), device: String(parts[2]))
    }

    /// Reads a ``description``.
    public init?(parsing text: some StringProtocol) {
        let parts = text.split(separator: "/", omittingEmptySubsequences: false)
        guard parts.count == 3 else { return nil }
        self.init(kind: parts[0], domain: parts[1], device: parts[2])
    }

    /// Orders by domain, then device, then kind.
    public static func < (left: VBDAddress, right: VBDAddress) -> Bool {
        (left.domain, left.device, left.kind) < (right.domain, right.device, right.kind)
    }
}

/// A VBD in a request: "1/51712", or "vbd/1/51712" if two kinds have the same numbers.
public struct VBDReference: Equatable, Sendable, CustomStringConvertible {
    /// nil: any kind.
    public let kind: String?
    /// The frontend's domain.
    public let domain: DomainID
    /// The virtual device's number.
    public let device: UInt32

    /// A reference; nil where `kind` is no directory name.
    public init?(kind: String? = nil, domain: DomainID, device: UInt32) {
        if let kind, !VBDAddress.isKind(kind) { return nil }
        self.kind = kind
        self.domain = domain
        self.device = device
    }

    /// Reads "DOMID/DEVID" or "KIND/DOMID/DEVID".
    public init?(parsing text: some StringProtocol) {
        let parts = text.split(separator: "/", omittingEmptySubsequences: false)
        guard parts.count == 2 || parts.count == 3, let domain = DecimalText.domain(parts[parts.count - 2]),
            let device = DecimalText.device(parts[parts.count - 1])
        else { return nil }
        self.init(kind: parts.count == 3 ? String(parts[0]) : nil, domain: domain, device: device)
    }

    /// True if the reference can mean `address`.
    public func matches(_ address: VBDAddress) -> Bool {
        domain == address.domain && device == address.device && (kind ?? address.kind) == address.kind
    }

    /// The form that ``init(parsing:)`` reads.
    public var description: String { (kind.map { "\($0)/" } ?? "") + "\(domain)/\(device)" }
}
