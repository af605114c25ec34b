// SPDX-License-Identifier: BSD-2-Clause
// Lets plugins look at an image that nobody trusts, in a process that has nothing but the image and soon ends.
import ProcessConfinement
import PluginHost
import Base
import CLinux
import Glibc
import PluginAPI
import Support

/// What `xbb-vbd --probe` and `--inspect` do: one question about one image, answered once by a process of its own.
public struct ImageExamination {
    /// The most memory that looking may take, in bytes beyond what the process has with its plugins loaded.
    static let memoryLimit: UInt64 = 64 << 20
    /// The most seconds of a processor.
    static let cpuSeconds: UInt64 = 2

    private let path: String
    private let catalog: PluginCatalog
    private let directories: [String]
    private let records: FormatRecords?

    /// An image to look at. With a state directory what is remembered of it counts.
    public init(path: String, pluginDirectories: [String], stateDirectory: String?) {
        self.path = path
        directories = pluginDirectories
        catalog = PluginCatalog(directories: pluginDirectories)
        records = stateDirectory.map { FormatRecords(stateDirectory: $0) }
    }

    /// What the content looks like to each plugin, and what `format=auto` would make of it. Confines this process.
    public func probe() throws(OperationError) -> JSON {
        let image = try OpenImage(path)
        let memory = memory()
        let libraries = try load { $0.probes }
        try confine()
        let matches = try image.matches(libraries)
        var verdict: JSON = .null
        var reason: JSON = .null
        do throws(OperationError) {
            let format =
                if let known = try memory.get() { known } else { try FormatChoice.only(matches, image: path).format }
            verdict = .string(format)
        } catch {
            reason = .string(error.description)
        }
        return .object([
            ("image", .string(path)), ("file_size", .integer(image.byteCount)),
            ("served_as", .text(try? memory.get())),
            (
                "matches",
                .array(
                    matches.map {
                        .object([
                            ("format", .string($0.format)), ("plugin", .string($0.plugin)),
                            ("score", .integer($0.score)),
                        ])
                    })
            ), ("auto", verdict), ("reason", reason),
        ])
    }

    /// What is in the image. Its format is `format`, else what it was served as, else what it looks like.
    /// Confines this process.
    public func inspect(format asked: String?) throws(OperationError) -> JSON {
        let image = try OpenImage(path)
        let memory = memory()
        // Whoever says the format needs no memory of it.
        let remembered = asked == nil ? try memory.get() : try? memory.get()
        let known = asked ?? remembered
        let libraries: [PluginLibrary]
        if let known {
            // The one that would serve it, where several could.
            libraries =
                known == "raw"
                ? [] : [try PluginLibrary.load(name: catalog.plugin(serving: known), directories: directories)]
        } else {
            libraries = try load { $0.probes || $0.inspects }
        }
        try confine()
        let format: String
        if let known {
            format = known
        } else {
            format = try FormatChoice.only(image.matches(libraries), image: path).format
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

    /// What the image was served as, or why that is no answer.
    private func memory() -> Result<String?, OperationError> {
        guard let records, let identity = ImageIdentity(of: path) else { return .success(nil) }
        return Result { () throws(OperationError) in try records.format(of: identity) }
    }

    private func load(_ isWanted: (PluginDescription) -> Bool) throws(OperationError) -> [PluginLibrary] {
        var libraries: [PluginLibrary] = []
        for entry in catalog.entries {
            guard let description = entry.description, isWanted(description) else { continue }
            libraries.append(try PluginLibrary.load(name: entry.name, directories: directories))
        }
        return libraries
    }

    /// From here on the process can read the image and write its answer.
    private func confine() throws(OperationError) {
        if clinux_limit_resources(Self.memoryLimit, Self.cpuSeconds) != 0 {
            throw OperationError(.open, "cannot limit this process", .errno(errno))
        }
        var settings = ConfinementSettings()
        settings.user = try ConfinementUser(named: ConfinementUser.usual)
        try Confinement.enter(settings, network: false, log: Log(name: "xbb-vbd", level: .error))
    }
}
