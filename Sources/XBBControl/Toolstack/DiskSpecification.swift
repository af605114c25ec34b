// SPDX-License-Identifier: BSD-2-Clause
// The disk that is to be attached, as the user says it.
import Base
import Glibc
public import XenBus

/// "FORMAT:LOCATION" or "FORMAT,KEY=VALUE...:LOCATION", as in the target of block-xbb(8).
public struct DiskSpecification: Equatable, Sendable {
    /// The format; never guessed.
    public let format: ImageFormat
    /// Absolute path, or what the format's plugin alone understands; empty where the format needs none ("null:").
    public let path: String
    /// "KEY=VALUE" each, for the plugin.
    public let options: [String]
    /// As libxl writes it to `params`.
    public let target: String

    /// Reads "FORMAT:LOCATION" or "FORMAT,KEY=VALUE...:LOCATION", where the location has all further ':', and
    /// "FORMAT://REST", of which all is the location (``ImageLocation/split(_:_:)``).
    ///
    /// A relative path begins in `workingDirectory`. What looks like one, or like a URI, is opaque where `isOpaque` says so of
    /// the format; it is asked only then.
    public init(
        parsing text: String, workingDirectory: String, isOpaque: (_ format: String) -> Bool = { _ in false }
    ) throws(ControlError) {
        let parts = text.split(separator: ":", maxSplits: 1, omittingEmptySubsequences: false)
        guard parts.count == 2 else {
            throw ControlError(
                "'\(text)' is no disk: expected FORMAT:PATH, such as raw:/dev/vg/disk or qcow2:/disk.qcow2",
                status: .usage)
        }
        let words = parts[0].split(separator: ",", omittingEmptySubsequences: false).map(String.init)
        options = Array(words.dropFirst())
        let rest = String(parts[1])
        let (formatName, location) = ImageLocation.split(words[0], rest)
        do throws(NegotiationError) {
            format = try ImageFormat(parsing: formatName, key: "FORMAT")
        } catch {
            throw ControlError("'\(text)' is no disk: \(error)", status: .usage)
        }
        guard location.utf8.count <= ImageLocation.opaqueByteLimit, !location.hasControlCharacters else {
            throw ControlError(
                "a location has at most \(ImageLocation.opaqueByteLimit) bytes and no control characters",
                status: .usage)
        }
        let mayBeOpaque = location != rest || !rest.isEmpty && !rest.hasPrefix("/")
        // No format has a '+' in its name: "nbd+unix:" is a URI, also while nobody knows a plugin for it.
        if mayBeOpaque && format != .raw && (words[0].contains("+") || isOpaque(formatName)) {
            path = location
            target = location == rest ? "\(format):\(location)" : location
            return
        }
        path = rest.isEmpty || rest.hasPrefix("/") ? rest : workingDirectory + "/" + rest
        target = "\(format):\(path)"
    }

    /// The format of a drive without a medium.
    public static let emptyDrive = ImageFormat.empty.name

    /// True for what can be the name of a format, whether or not a plugin serves it.
    public static func isFormat(_ name: String) -> Bool {
        do throws(NegotiationError) {
            _ = try ImageFormat(parsing: name, key: "")
            return true
        } catch {
            return false
        }
    }

    /// The working directory of this process, without '/' at its end.
    public static var currentDirectory: String {
        guard let raw = unsafe getcwd(nil, 0) else { return "" }
        defer { unsafe free(raw) }
        let path = unsafe String(cString: raw)
        return path == "/" ? "" : path
    }

    /// Its name in messages.
    public var name: String { path.isEmpty ? "a disk of format \(format)" : target }
}

/// Options for the plugin: "key=value" each.
public struct PluginOptions: Equatable, Sendable {
    /// "key=value,key=value"; empty for none.
    public let text: String

    /// Joins options. A key has letters, digits, '-', '_' and '.'; a value has no ',' and no control characters.
    public init(_ options: [String]) throws(ControlError) {
        for option in options {
            let parts = option.split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false)
            guard parts.count == 2, !parts[0].isEmpty, parts[0].utf8.allSatisfy(Self.isKeyByte),
                !String(parts[1]).hasControlCharacters, !parts[1].utf8.contains(UInt8(ascii: ","))
            else { throw ControlError("'\(option)' is no option: expected KEY=VALUE without ','", status: .usage) }
        }
        text = options.joined(separator: ",")
        guard text.utf8.count <= 2048 else {
            throw ControlError("all options together have at most 2048 bytes", status: .usage)
        }
    }

    private static func isKeyByte(_ byte: UInt8) -> Bool {
        (UInt8(ascii: "a")...UInt8(ascii: "z")).contains(byte | 0x20)
            || (UInt8(ascii: "-")...UInt8(ascii: "9")).contains(byte) && byte != UInt8(ascii: "/")
            || byte == UInt8(ascii: "_")
    }
}
