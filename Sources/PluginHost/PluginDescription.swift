// SPDX-License-Identifier: BSD-2-Clause
// What a plugin says of itself, in a form that is read without running its code: the file xbb-<name>.plugin beside it.
import Base
import CLinux
import Glibc
import PluginAPI
import Support

/// A plugin's own description, as JSON in a file and for `xbbctl plugins`.
public struct PluginDescription: Sendable, Equatable {
    /// The name in the file names.
    public let name: String
    /// The formats that it serves.
    public let formats: [String]
    /// It can tell its formats by an image's content.
    public let probes: Bool
    /// It can tell what is in an image.
    public let inspects: Bool
    /// What stands behind the format in a disk's configuration.
    public let location: Location
    /// Its submit() may sleep.
    public let isBlocking: Bool
    /// It came with XBB, whose build says so in the file: "origin" is "xbb".
    public let isOwn: Bool
    /// All of it, with what only people read.
    public let json: JSON

    /// How a plugin's disks are named.
    public enum Location: String, Sendable {
        /// By the path of a file or device, which the host opens.
        case file
        /// By text that only the plugin understands, or not at all.
        case opaque
    }

    /// Of a loaded plugin.
    package init(_ library: PluginLibrary) {
        name = library.name
        formats = library.formats
        probes = unsafe library.table.probe != nil
        inspects = unsafe library.table.inspect != nil
        location = library.hasNoFile ? .opaque : .file
        isBlocking = library.isBlocking
        isOwn = false
        json = .object([
            ("name", .string(library.name)), ("version", .string(library.version)),
            ("description", .string(library.summary)), ("abi", .string(library.abi)),
            ("formats", .array(library.formats.map { .string($0) })), ("probes", .bool(probes)),
            ("inspects", .bool(inspects)), ("thread_model", .string("\(library.threadModel)")),
            ("blocking", .bool(library.isBlocking)), ("network", .bool(library.isNetwork)),
            ("location", .string(location.rawValue)), ("needs_file", .bool(!library.hasNoFile)),
            ("read_only", .bool(library.isReadOnly)),
            ("options", .array(library.options.map(\.json))),
        ])
    }

    /// Reads the text of a description file; nil where it is no description of the plugin `name`.
    init?(parsing text: [UInt8], name: String) {
        guard let json = try? JSON(parsing: text), json["name"]?.string == name else { return nil }
        let formats = (json["formats"]?.elements ?? []).compactMap(\.string)
        guard !formats.isEmpty else { return nil }
        self.name = name
        self.formats = formats
        probes = json["probes"] == .bool(true)
        inspects = json["inspects"] == .bool(true)
        isBlocking = json["blocking"] == .bool(true)
        isOwn = json["origin"]?.string == "xbb"
        // One that was written before there was "location" says the same by "needs_file".
        location =
            json["location"]?.string.flatMap(Location.init(rawValue:))
            ?? (json["needs_file"] == .bool(false) ? .opaque : .file)
        self.json = json
    }

    /// Loads the plugin in the file `path`, "…/xbb-<name>.so", and describes it.
    public static func describe(plugin path: String) throws(OperationError) -> PluginDescription {
        let parts = path.split(separator: "/", omittingEmptySubsequences: false)
        let file = parts.last.map(String.init) ?? ""
        guard let name = PluginLibrary.name(inFile: file) else {
            throw OperationError(.missing, "'\(path)' is no plugin: expected a file called xbb-NAME.so")
        }
        let folder = parts.dropLast().joined(separator: "/")
        return PluginDescription(
            try PluginLibrary.load(name: name, directories: [parts.count > 1 ? folder : "."]))
    }
}

extension PluginOption {
    fileprivate var json: JSON {
        .object([
            ("name", .string(name)), ("type", .string(kind.word)), ("default", .text(defaultText)),
            ("help", .string(help)),
        ])
    }
}
