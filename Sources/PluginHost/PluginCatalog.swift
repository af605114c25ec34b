// SPDX-License-Identifier: BSD-2-Clause
// Which plugin serves a format, by the description files of all that are installed; none is loaded for that.
import Base
import CLinux
import Glibc
import Support

/// The installed plugins.
public struct PluginCatalog: Sendable {
    /// One plugin that is there.
    package struct Entry: Sendable {
        package let name: String
        /// The shared library.
        let path: String
        /// nil where there is no description file, or none that can be read.
        package let description: PluginDescription?
    }

    /// A description file has no more bytes.
    static let byteLimit = 64 << 10
    package let entries: [Entry]
    private let directories: [String]

    /// Reads the directories; of two plugins of one name the first counts.
    public init(directories: [String]) {
        self.directories = directories
        var entries: [Entry] = []
        for name in PluginLibrary.names(in: directories) {
            guard let directory = directories.first(where: { unsafe access("\($0)/xbb-\(name).so", F_OK) == 0 }) else {
                continue
            }
            let description = SmallFile.contents("\(directory)/xbb-\(name).plugin", limit: Self.byteLimit)
                .flatMap { PluginDescription(parsing: $0, name: name) }
            entries.append(Entry(name: name, path: "\(directory)/xbb-\(name).so", description: description))
        }
        self.entries = entries
    }

    /// The plugin for a format: the one whose description names it. A plugin without a description file is taken for the
    /// format that it is called after.
    public func plugin(serving format: String) throws(OperationError) -> String {
        guard PluginLibrary.isValidName(format) else {
            throw OperationError(
                .missing, "'\(format)' is no format: it begins with a letter and takes a-z, 0-9 and '-'")
        }
        let serving = entries.filter { $0.description?.formats.contains(format) ?? ($0.name == format) }.map(\.name)
        if serving.count == 1 { return serving[0] }
        if serving.contains(format) { return format }
        guard serving.isEmpty else {
            throw OperationError(
                .missing,
                "format '\(format)' is served by more than one plugin: \(serving.joined(separator: ", ")); remove all "
                    + "but one from \(directories.joined(separator: ", "))")
        }
        let known = Set(entries.flatMap { $0.description?.formats ?? [$0.name] }).sorted()
        throw OperationError(
            .missing,
            "no plugin serves format '\(format)': those in \(directories.joined(separator: ", ")) serve "
                + "\(known.isEmpty ? "nothing" : known.joined(separator: ", ")); install the plugin for it "
                + "(Debian: xbb-plugin-NAME, xbb-plugin-qcow for qcow and qcow2)")
    }

    /// The formats whose locations are no paths.
    public var opaqueFormats: Set<String> {
        let formats = entries.flatMap { entry in
            entry.description.map { description in description.formats.filter { _ in description.location == .opaque } }
                ?? []
        }
        // Of two plugins for a format the one that is called after it counts.
        return Set(formats).filter { format in
            entries.first { $0.name == format }?.description.map { $0.location == .opaque } ?? true
        }
    }

    /// A description of each, with its path. One without a description file is loaded for it; one that cannot be loaded is
    /// listed with its error. For a process that may be lost.
    public func dump() -> JSON {
        .array(entries.map(Self.describe))
    }

    private static func describe(_ entry: Entry) -> JSON {
        do throws(OperationError) {
            let description =
                if let known = entry.description { known } else { try PluginDescription.describe(plugin: entry.path) }
            return .object(description.json.members + [("path", .string(entry.path))])
        } catch {
            return .object([("name", .string(entry.name)), ("error", .string(error.description))])
        }
    }
}
