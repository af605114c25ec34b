// SPDX-License-Identifier: BSD-2-Clause
// Lets plugins examine an untrusted image, in a process that has access to nothing else and soon ends.
import ProcessConfinement
import PluginHost
import Base
import CLinux
import Glibc
import PluginAPI
import Support

/// What `xbb-vbd --probe` and `--inspect` do: answer one question about one image, in a process of its own.
public struct ImageExamination {
    /// The most memory that an examination may use, in bytes beyond what the process has with its plugins loaded.
    static let memoryLimit: UInt64 = 64 << 20
    /// The most processor time, in seconds.
    static let cpuSeconds: UInt64 = 2

    let path: String
    private let catalog: PluginCatalog
    private let directories: [String]
    private let records: FormatRecords?

    /// An image to examine. With a state directory, the format recorded for it counts.
    public init(path: String, pluginDirectories: [String], stateDirectory: String?) {
        self.path = path
        directories = pluginDirectories
        catalog = PluginCatalog(directories: pluginDirectories)
        records = stateDirectory.map { FormatRecords(stateDirectory: $0) }
    }

    /// The formats that the plugins recognise, and what `format=auto` would choose. Confines this process.
    public func probe() throws(OperationError) -> JSON {
        let image = try OpenImage(path)
        let recorded = recordedFormat()
        let libraries = try load { $0.probes }
        try confine()
        let matches = try image.matches(libraries)
        var verdict: JSON = .null
        var reason: JSON = .null
        do throws(OperationError) {
            let format =
                if let known = try recorded.get() { known } else { try choose(matches, image).format }
            verdict = .string(format)
        } catch {
            reason = .string(error.description)
        }
        return .object([
            ("image", .string(path)), ("file_size", .integer(image.byteCount)),
            ("served_as", .text(try? recorded.get())),
            (
                "matches",
                .array(
                    matches.map {
                        .object([
                            ("format", .string($0.format)), ("plugin", .string($0.plugin)),
                            ("score", .integer($0.score)),
                        ])
                    })
            ), ("looks_like", .text(try image.signature()?.name)), ("auto", verdict), ("reason", reason),
        ])
    }

    /// The content of the image as `format`, else as the format that it was served as, else as the one it looks like.
    /// Confines this process.
    public func inspect(format asked: String?) throws(OperationError) -> JSON {
        let image = try OpenImage(path)
        let recorded = recordedFormat()
        // With an explicit format, a contradictory record is no error.
        let remembered = asked == nil ? try recorded.get() : try? recorded.get()
        let known = asked ?? remembered
        let libraries: [PluginLibrary]
        if let known {
            libraries = known == "raw" ? [] : [try library(for: known)]
        } else {
            libraries = try load { $0.probes || $0.inspects }
        }
        try confine()
        let format: String
        if let known {
            format = known
        } else {
            format = try choose(image.matches(libraries), image).format
        }
        var members: [JSON.Member] = [
            ("image", .string(path)), ("format", .string(format)), ("served_as", .text(remembered)),
            ("file_size", .integer(image.byteCount)), ("allocated", .integer(image.allocatedByteCount)),
        ]
        var warnings: [String] = []
        if let remembered, remembered != format {
            warnings.append("it was served as \(remembered): a guest may have written all that is told here")
        }
        if format == "raw" {
            members.append(("virtual_size", .integer(image.byteCount)))
        } else if let library = libraries.first(where: { $0.formats.contains(format) && $0.canInspect }) {
            let description = try ImageDescription(library, image, format: format)
            members += description.members
            warnings += description.warnings
        } else {
            warnings.append("the plugin for \(format) cannot tell what is in an image")
        }
        return .object(members + [("warnings", .array(warnings.map { .string($0) }))])
    }

    func choose(_ matches: [FormatMatch], _ image: borrowing OpenImage) throws(OperationError) -> FormatMatch {
        try FormatChoice.only(matches, image: path, signature: image.signature())
    }

    /// The format recorded for the image, or why the records give no answer.
    func recordedFormat() -> Result<String?, OperationError> {
        guard let records, let identity = ImageIdentity(of: path) else { return .success(nil) }
        return Result { () throws(OperationError) in try records.format(of: identity) }
    }

    /// The plugin that would serve a format, if several could.
    func library(for format: String) throws(OperationError) -> PluginLibrary {
        try PluginLibrary.load(name: catalog.plugin(serving: format), directories: directories)
    }

    func load(_ isWanted: (PluginDescription) -> Bool) throws(OperationError) -> [PluginLibrary] {
        var libraries: [PluginLibrary] = []
        for entry in catalog.entries {
            guard let description = entry.description, isWanted(description) else { continue }
            libraries.append(try PluginLibrary.load(name: entry.name, directories: directories))
        }
        return libraries
    }

    /// From here on, the process can only read the image and write its answer.
    func confine(memory: UInt64 = memoryLimit, seconds: UInt64 = cpuSeconds) throws(OperationError) {
        if clinux_limit_resources(memory, seconds) != 0 {
            throw OperationError(.open, "cannot limit this process", .errno(errno))
        }
        var settings = ConfinementSettings()
        settings.user = try ConfinementUser(named: ConfinementUser.usual)
        try Confinement.enter(settings, network: false, log: Log(name: "xbb-vbd", level: .error))
    }
}
