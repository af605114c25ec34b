// SPDX-License-Identifier: BSD-2-Clause
// Which storage is to be opened, and how: the answer of the toolstack's and the hotplug script's keys.
public import Base

/// The format of an image; it is always told and never guessed, and is raw unless told otherwise.
public struct ImageFormat: Hashable, Sendable, CustomStringConvertible {
    /// The name under which a plugin offers the format.
    public let name: String

    /// Plain sectors, on a block device or in a file.
    public static let raw = ImageFormat(known: "raw")
    /// QEMU's version 1.
    public static let qcow = ImageFormat(known: "qcow")
    /// QEMU's versions 2 and 3.
    public static let qcow2 = ImageFormat(known: "qcow2")
    /// Microsoft's first format.
    public static let vhd = ImageFormat(known: "vhd")
    /// Microsoft's second format.
    public static let vhdx = ImageFormat(known: "vhdx")
    /// QEMU's enhanced disk.
    public static let qed = ImageFormat(known: "qed")

    private init(known name: String) {
        self.name = name
    }

    /// A format named in a key: small letters, digits and '-', 1 to 32. Throws `.notAFormatName`.
    public init(parsing text: String, key: String) throws(NegotiationError) {
        let isName =
            (1...32).contains(text.utf8.count)
            && text.utf8.allSatisfy {
                (UInt8(ascii: "a")...UInt8(ascii: "z")).contains($0)
                    || (UInt8(ascii: "0")...UInt8(ascii: "9")).contains($0) || $0 == UInt8(ascii: "-")
            }
        guard isName else { throw NegotiationError(.notAFormatName, key: key, value: [UInt8](text.utf8)) }
        name = text
    }

    /// The name.
    public var description: String { name }
}

/// Where an image stands and of what format it is.
public struct ImageLocation: Equatable, Sendable {
    /// Absolute path.
    public let path: String
    /// Told by the prefix; raw without one.
    public let format: ImageFormat

    /// The image at `path`.
    public init(path: String, format: ImageFormat) {
        self.path = path
        self.format = format
    }

    static let prefixes: [(name: String, format: ImageFormat)] = [
        ("raw", .raw), ("file", .raw), ("phy", .raw), ("aio", .raw), ("qcow", .qcow), ("qcow2", .qcow2),
        ("vhd", .vhd), ("vhdx", .vhdx), ("qed", .qed),
    ]

    static var prefixList: String { prefixes.map { $0.name + ":" }.joined(separator: " ") }

    /// Reads `params`.
    ///
    /// A value that begins with '/' is a path and nothing else, however many ':' stand in it. Otherwise the text before
    /// the first ':' must be a known format and the rest, with further ':', is the path. After "phy:" a name without
    /// '/' in front is one below /dev, as in xl. Throws `.unknownFormatPrefix`, `.noImage` or `.notAnImagePath`.
    public init(parsing text: String, key: String = BackendKey.params) throws(NegotiationError) {
        let value = [UInt8](text.utf8)
        guard !text.isEmpty else { throw NegotiationError(.noImage, key: key, value: value) }
        if text.utf8.first == UInt8(ascii: "/") {
            path = text
            format = .raw
            return
        }
        let parts = text.split(separator: ":", maxSplits: 1, omittingEmptySubsequences: false)
        guard parts.count == 2, let prefix = Self.prefixes.first(where: { $0.name == parts[0] })
        else { throw NegotiationError(.unknownFormatPrefix, key: key, value: value) }
        guard !parts[1].isEmpty else { throw NegotiationError(.noImage, key: key, value: value) }
        let mayBeBelowDev = prefix.name == "phy"
        path = try Self.absolutePath(String(parts[1]), key: key, value: value, mayBeBelowDev: mayBeBelowDev)
        format = prefix.format
    }

    /// `name` where it is absolute, the device of that name where a relative one is allowed.
    static func absolutePath(
        _ name: String, key: String, value: [UInt8], mayBeBelowDev: Bool
    ) throws(NegotiationError) -> String {
        if name.utf8.first == UInt8(ascii: "/") { return name }
        let isClean = !name.split(separator: "/").contains("..") && !name.isEmpty
        guard mayBeBelowDev, isClean else { throw NegotiationError(.notAnImagePath, key: key, value: value) }
        return "/dev/" + name
    }
}

extension DeviceNumber {
    /// Reads `physical-device`: two hexadecimal numbers of at most 8 digits. Throws `.notADeviceNumber`.
    public init(parsing text: String, key: String = BackendKey.physicalDevice) throws(NegotiationError) {
        func number(_ digits: Substring) -> UInt32? {
            guard (1...8).contains(digits.utf8.count), digits.allSatisfy(\.isHexDigit) else { return nil }
            return UInt32(digits, radix: 16)
        }
        let parts = text.split(separator: ":", omittingEmptySubsequences: false)
        guard parts.count == 2, let major = number(parts[0]), let minor = number(parts[1])
        else { throw NegotiationError(.notADeviceNumber, key: key, value: [UInt8](text.utf8)) }
        self.init(major: major, minor: minor)
    }
}

/// What the guest is to see.
public enum DeviceType: Equatable, Sendable {
    /// A disk; also every type that is not named here.
    case disk
    /// A CD drive.
    case cdrom
}

/// All that is needed to open the storage of a VBD.
public struct DeviceRequest: Equatable, Sendable {
    /// Path and format.
    public var image: ImageLocation
    /// What a device node at the path must be, where the hotplug script said so; a reused name is found out by it.
    public var deviceNumber: DeviceNumber?
    /// Writes must be refused.
    public var isReadOnly: Bool
    /// Disk or CD.
    public var deviceType: DeviceType
    /// The medium can be taken out.
    public var isRemovable: Bool
    /// The toolstack says that O_DIRECT does no harm on this storage.
    public var isDirectIOSafe: Bool
    /// Discard may be offered where the storage can.
    public var mayDiscard: Bool

    /// The image to open.
    public init(
        image: ImageLocation, deviceNumber: DeviceNumber? = nil, isReadOnly: Bool, deviceType: DeviceType = .disk,
        isRemovable: Bool = false, isDirectIOSafe: Bool = false, mayDiscard: Bool = true
    ) {
        self.image = image
        self.deviceNumber = deviceNumber
        self.isReadOnly = isReadOnly
        self.deviceType = deviceType
        self.isRemovable = isRemovable
        self.isDirectIOSafe = isDirectIOSafe
        self.mayDiscard = mayDiscard
    }
}
