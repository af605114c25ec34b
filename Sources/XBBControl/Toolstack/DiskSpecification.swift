// SPDX-License-Identifier: BSD-2-Clause
// The disk that is to be attached, as the user says it.
import Glibc
public import XenBus

/// "FORMAT:PATH" or "FORMAT,KEY=VALUE...:PATH", as in the target of block-xbb(8).
public struct DiskSpecification: Equatable, Sendable {
    /// The format; never guessed.
    public let format: ImageFormat
    /// Absolute path; empty where the format needs none ("null:").
    public let path: String
    /// "KEY=VALUE" each, for the plugin.
    public let options: [String]

    /// Reads "FORMAT:PATH" or "FORMAT,KEY=VALUE...:PATH". What stands behind the first ':' is the path with all further ':';
    /// a relative path begins in `workingDirectory`.
    public init(parsing text: String, workingDirectory: String) throws(ControlError) {
        let parts = text.split(separator: ":", maxSplits: 1, omittingEmptySubsequences: false)
        guard parts.count == 2 else {
            throw ControlError(
                "'\(text)' is no disk: expected FORMAT:PATH, such as raw:/dev/vg/disk or qcow2:/disk.qcow2")
        }
        let words = parts[0].split(separator: ",", omittingEmptySubsequences: false).map(String.init)
        options = Array(words.dropFirst())
        do throws(NegotiationError) {
            format = try ImageFormat(parsing: words[0], key: "FORMAT")
        } catch {
            throw ControlError("'\(text)' is no disk: \(error)")
        }
        let name = String(parts[1])
        guard name.utf8.count <= 1024, name.utf8.allSatisfy({ $0 >= 0x20 && $0 != 0x7f }) else {
            throw ControlError("a path has at most 1024 bytes and no control characters")
        }
        path = name.isEmpty || name.hasPrefix("/") ? name : workingDirectory + "/" + name
    }

    /// The working directory of this process, without '/' at its end.
    public static var currentDirectory: String {
        guard let raw = unsafe getcwd(nil, 0) else { return "" }
        defer { unsafe free(raw) }
        let path = unsafe String(cString: raw)
        return path == "/" ? "" : path
    }

    /// As libxl writes it to `params`.
    public var target: String { "\(format):\(path)" }

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
                parts[1].utf8.allSatisfy({ $0 >= 0x20 && $0 != 0x7f && $0 != UInt8(ascii: ",") })
            else { throw ControlError("'\(option)' is no option: expected KEY=VALUE without ','") }
        }
        text = options.joined(separator: ",")
        guard text.utf8.count <= 2048 else { throw ControlError("all options together have at most 2048 bytes") }
    }

    private static func isKeyByte(_ byte: UInt8) -> Bool {
        (UInt8(ascii: "a")...UInt8(ascii: "z")).contains(byte | 0x20)
            || (UInt8(ascii: "-")...UInt8(ascii: "9")).contains(byte) && byte != UInt8(ascii: "/")
            || byte == UInt8(ascii: "_")
    }
}
