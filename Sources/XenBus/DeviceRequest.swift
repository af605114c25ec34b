// SPDX-License-Identifier: BSD-2-Clause
// Which storage is to be opened, and how: the answer of the toolstack's and the hotplug script's keys.
public import Base

/// The format of an image; it is always told and never guessed, and is raw unless told otherwise.
public struct ImageFormat: Hashable, Sendable, CustomStringConvertible {
    /// The name under which a plugin offers the format.
    public let name: String

    /// Plain sectors, on a block device or in a file.
    public static let raw = ImageFormat(known: "raw")
    /// A drive without a medium.
    public static let empty = ImageFormat(known: "empty")
    /// QEMU's versions 2 and 3.
    public static let qcow2 = ImageFormat(known: "qcow2")

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

/// Where an image is and of what format it is.
public struct ImageLocation: Equatable, Sendable {
    /// An absolute path, or what stands behind the format where that is none: whether it has to be a path is for the
    /// format's plugin to say, and of "raw" alone known here.
    public let path: String
    /// Told by the prefix; raw without one.
    public let format: ImageFormat

    /// The image at `path`.
    public init(path: String, format: ImageFormat) {
        self.path = path
        self.format = format
    }

    /// What an empty drive is served from: the plugin for it opens nothing.
    public static let emptyDrive = ImageLocation(path: "/", format: .empty)

    /// Whether `params` of a drive name no medium: nothing at all, as libxl_cdrom_insert writes it, or nothing behind the format,
    /// as device_disk_add does (libxl_disk.c).
    static func isEmptyDrive(_ params: String) -> Bool {
        params.isEmpty || params.last == ":" && !params.hasPrefix("/") && params.count { $0 == ":" } == 1
    }

    /// Other words for raw, which toolstacks write.
    static let aliases = ["file", "phy", "aio"]

    /// The most bytes of a location that is no path.
    public static let opaqueByteLimit = 1024

    /// Reads `params`.
    ///
    /// A value that begins with '/' is a path and nothing else, however many ':' stand in it. Otherwise a format stands
    /// before the first ':' and the location behind it, with further ':'; see ``split(_:_:)``. The location of "raw", and
    /// of the other words for it, is a path; after "phy:" a name without '/' in front is one below /dev, as in xl. Throws
    /// `.unknownFormatPrefix`, `.noImage`, `.notAnImagePath`, and what ``checkOpaque(_:key:)`` does.
    public init(parsing text: String, key: String = BackendKey.params) throws(NegotiationError) {
        let value = [UInt8](text.utf8)
        guard !text.isEmpty else { throw NegotiationError(.noImage, key: key, value: value) }
        if text.utf8.first == UInt8(ascii: "/") {
            path = text
            format = .raw
            return
        }
        let parts = text.split(separator: ":", maxSplits: 1, omittingEmptySubsequences: false).map(String.init)
        guard parts.count == 2 else { throw NegotiationError(.unknownFormatPrefix, key: key, value: value) }
        let isEmpty = parts[1].isEmpty
        if parts[0] == ImageFormat.raw.name || Self.aliases.contains(parts[0]) {
            guard !isEmpty else { throw NegotiationError(.noImage, key: key, value: value) }
            path = try Self.absolutePath(parts[1], key: key, value: value, mayBeBelowDev: parts[0] == "phy")
            format = .raw
            return
        }
        let (name, location) = Self.split(parts[0], parts[1])
        do throws(NegotiationError) {
            format = try ImageFormat(parsing: name, key: key)
        } catch {
            throw NegotiationError(.unknownFormatPrefix, key: key, value: value)
        }
        guard !isEmpty else { throw NegotiationError(.noImage, key: key, value: value) }
        try Self.checkOpaque(location, key: key)
        path = location
    }

    /// The format and the location that `prefix`, in front of a ':', and `rest` behind it say.
    ///
    /// With "//" in front of the rest both are one URI, such as nbd+unix:///export: it stays whole as the location, and its
    /// scheme up to the first '+' is the format. The name may be none; a scheme may have no other characters than RFC 3986
    /// allows, and is small.
    public static func split(_ prefix: String, _ rest: String) -> (format: String, location: String) {
        guard rest.hasPrefix("//") else { return (prefix, rest) }
        let isScheme = prefix.utf8.allSatisfy {
            switch $0 {
            case UInt8(ascii: "a")...UInt8(ascii: "z"), UInt8(ascii: "0")...UInt8(ascii: "9"), UInt8(ascii: "+"),
                UInt8(ascii: "-"), UInt8(ascii: "."):
                true
            default: false
            }
        }
        let format = isScheme ? prefix.prefix { $0 != "+" } : prefix[...]
        return (String(format), "\(prefix):\(rest)")
    }

    /// What goes to a plugin as it is: UTF-8 of at most 1024 bytes without control characters; paths may be longer. Throws
    /// `.tooLong` and `.notText`.
    static func checkOpaque(_ location: String, key: String) throws(NegotiationError) {
        guard location.utf8.first != UInt8(ascii: "/") else { return }
        let value = [UInt8](location.utf8)
        guard value.count <= opaqueByteLimit else {
            throw NegotiationError(.tooLong(maximum: opaqueByteLimit), key: key, value: value)
        }
        guard !location.hasControlCharacters else { throw NegotiationError(.notText, key: key, value: value) }
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
    /// Location and format.
    public var image: ImageLocation
    /// What a device node at the path must be, where the hotplug script said so; a reused name is found out by it.
    public var deviceNumber: DeviceNumber?
    /// Writes must be refused.
    public var isReadOnly: Bool
    /// Disk or CD.
    public var deviceType: DeviceType
    /// The medium can be taken out.
    public var isRemovable: Bool
    /// Discard may be offered where the storage can.
    public var mayDiscard: Bool
    /// The guest expects other media, of any size, or none.
    public var isDrive: Bool { deviceType == .cdrom || isRemovable }

    /// The image to open.
    public init(
        image: ImageLocation, deviceNumber: DeviceNumber? = nil, isReadOnly: Bool, deviceType: DeviceType = .disk,
        isRemovable: Bool = false, mayDiscard: Bool = true
    ) {
        self.image = image
        self.deviceNumber = deviceNumber
        self.isReadOnly = isReadOnly
        self.deviceType = deviceType
        self.isRemovable = isRemovable
        self.mayDiscard = mayDiscard
    }
}
