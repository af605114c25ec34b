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
        /// Where it is.
        let directory: String
        /// nil where there is no description file, or none that can be read.
        package let description: PluginDescription?
        /// The formats that it claims.
        var claims: [String] { description?.formats ?? [name] }
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
            entries.append(
                Entry(
                    name: name, path: "\(directory)/xbb-\(name).so", directory: directory, description: description))
        }
        self.entries = entries
    }

    /// The plugin that serves a format, where others claim it too.
    package struct Choice: Sendable, Equatable {
        /// The plugin.
        package let name: String
        /// The others that claim the format.
        package let others: [String]
        /// Why it is this one.
        package let reason: String

        /// For operators; nil where nobody else claims the format.
        package func note(_ format: String) -> String? {
            if others.isEmpty { return nil }
            return "format '\(format)' is served by plugin '\(name)', \(reason), and not by "
                + others.map { "'\($0)'" }.joined(separator: ", ")
        }
    }

    /// The plugin for a format: the one whose description names it. A plugin without a description file is taken for the
    /// format that it is called after. See ``choice(for:)``.
    public func plugin(serving format: String) throws(OperationError) -> String { try choice(for: format).name }

    /// The plugin for a format. Of several that claim it, the first of these that there is: one that came with XBB, one that
    /// is called after the format, the only one in the first directory that has one. So a plugin that claims another's format
    /// takes nothing away from it.
    package func choice(for format: String) throws(OperationError) -> Choice {
        guard PluginLibrary.isValidName(format) else {
            throw OperationError(
                .missing, "'\(format)' is no format: it begins with a letter and takes a-z, 0-9 and '-'")
        }
        let claiming = entries.filter { $0.claims.contains(format) }
        let serving = claiming.map(\.name)
        func chosen(_ name: String, _ reason: String) -> Choice {
            Choice(name: name, others: serving.filter { $0 != name }, reason: reason)
        }
        if serving.count == 1 { return chosen(serving[0], "the only one") }
        if let own = claiming.first(where: { $0.description?.isOwn == true }) {
            return chosen(own.name, "which came with XBB")
        }
        if serving.contains(format) { return chosen(format, "which is called after it") }
        for directory in directories {
            let here = claiming.filter { $0.directory == directory }
            if here.count == 1 {
                return chosen(here[0].name, "which is in \(directory), the first directory that has one")
            }
            if here.count > 1 { break }
        }
        guard serving.isEmpty else {
            throw OperationError(
                .missing,
                "format '\(format)' is served by more than one plugin: \(serving.joined(separator: ", ")); remove all "
                    + "but one from \(directories.joined(separator: ", ")), or move the one that is to serve it to a "
                    + "directory of its own and name that first (plugin-dir)")
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

    /// A description of each, with its path and the formats that it claims and another one serves. One without a description
    /// file is described by a process of its own, `program` with `--describe-plugin`, which may crash or hang; one that
    /// cannot be described is listed with its error.
    public func dump(program: String) -> JSON {
        let deadline = clinux_monotonic_ns() &+ Self.longestDump
        return .array(entries.map { describe($0, program, until: deadline) })
    }

    /// Seconds for one plugin to describe itself, and ns for all of them together.
    private static let patience: UInt64 = 3
    private static let longestDump: UInt64 = 6_000_000_000

    private func describe(_ entry: Entry, _ program: String, until deadline: UInt64) -> JSON {
        do throws(OperationError) {
            let json =
                if let known = entry.description { known.json } else { try Self.ask(entry, program, until: deadline) }
            return .object(json.members + [("path", .string(entry.path)), ("yields", .array(yields(entry)))])
        } catch {
            return .object([("name", .string(entry.name)), ("error", .string(error.description))])
        }
    }

    /// What the operator has to know of the formats that the plugin claims and does not serve.
    private func yields(_ entry: Entry) -> [JSON] {
        entry.claims.compactMap { format in
            do throws(OperationError) {
                let choice = try choice(for: format)
                return choice.name == entry.name ? nil : choice.note(format).map { .string($0) }
            } catch {
                return .string(error.description)
            }
        }
    }

    private static func ask(_ entry: Entry, _ program: String, until deadline: UInt64) throws(OperationError) -> JSON {
        if clinux_monotonic_ns() > deadline {
            throw OperationError(.open, "not described: the others took too long; it has no xbb-\(entry.name).plugin")
        }
        let result: ChildProgram.Result
        do throws(ChildProgram.StartError) {
            result = try ChildProgram.run([program, "--describe-plugin", entry.path], seconds: patience)
        } catch {
            throw OperationError(error.code, "start \(program)")
        }
        if let problem = result.problem {
            throw OperationError(.open, "the process that described it \(problem): install another version of it")
        }
        guard result.status == 0, let json = try? JSON(parsing: result.output) else {
            throw OperationError(.open, "it gives no description; 'xbb-vbd --describe-plugin \(entry.path)' says why")
        }
        return json
    }
}
