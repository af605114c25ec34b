// SPDX-License-Identifier: BSD-2-Clause
// Subcommands that examine an image without serving it. They do not need xbbd.
import ArgumentParser
import Settings
import Support
import XBBControl

/// The image, and the plugins to use.
struct ImageArguments: ParsableArguments {
    @Argument(help: ArgumentHelp("The image or block device.", valueName: "path"), completion: .file())
    var path: String

    @Option(
        help: ArgumentHelp("Where plugins are; may be given more than once.", valueName: "dir"), completion: .directory)
    var pluginDir: [String] = []

    @Option(
        help: ArgumentHelp(
            "Where it is remembered as what images were served. (default: \(SettingsSchema.usualStateDirectory))",
            valueName: "dir"), completion: .directory)
    var stateDir: String?

    /// Asks the question that `question` makes from the configuration.
    func ask(_ question: (DaemonConfiguration) -> ImageQuestion) throws(ControlError) -> ControlAnswer {
        let file = try DaemonConfiguration.read(DaemonConfiguration.usualPath, isOptional: true)
        let values = file.values
        let plugins =
            pluginDir.isEmpty ? values[SettingsSchema.pluginDirectories] ?? [InstallPaths.plugins()] : pluginDir
        return try question(file).ask(
            about: path, worker: values[SettingsSchema.program] ?? InstallPaths.worker(),
            pluginDirectories: plugins,
            stateDirectory: stateDir ?? values[SettingsSchema.stateDirectory] ?? SettingsSchema.usualStateDirectory)
    }
}

extension XBBCtl {
    struct Probe: ParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Says which formats an image looks like, and what format=auto would make of it.")
        @OptionGroup var image: ImageArguments
        @OptionGroup var format: Format

        func run() throws {
            try perform { () throws(ControlError) in format.print(try image.ask { _ in .probe }, Reports.probe) }
        }
    }

    struct Inspect: ParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Says what is in an image and in those below it: sizes, features, the files that they name.")
        @OptionGroup var image: ImageArguments
        @Option(
            name: .customLong("format"),
            help: ArgumentHelp(
                "Its format. (default: what it was served as, else what it looks like)", valueName: "format"))
        var imageFormat: String?

        @Option(
            help: ArgumentHelp(
                "Where backing files may be; may be given more than once. (default: those of xbb.conf)",
                valueName: "dir"), completion: .directory)
        var backingDir: [String] = []
        @Flag(
            help: ArgumentHelp(
                "Read all of the image through both readers of its plugin, and name every difference."))
        var compare = false
        @OptionGroup var format: Format

        /// The readers differ: EX_DATAERR.
        private static let differs: Int32 = 65

        func run() throws {
            var status: Int32 = 0
            try perform { () throws(ControlError) in
                if let imageFormat, !DiskSpecification.isFormat(imageFormat) {
                    throw ControlError("--format '\(imageFormat)': expected the name of a format", status: .usage)
                }
                if compare {
                    let answer = try image.ask { _ in .compare(format: imageFormat) }
                    format.print(answer, Reports.compare)
                    switch answer.value["comparison"]?["verdict"]?.string {
                    case "same", "known-faults": break
                    case "unreadable": status = ControlStatus.failed.rawValue
                    default: status = Self.differs
                    }
                    return
                }
                let answer = try image.ask { file in
                    .inspect(
                        format: imageFormat,
                        backingDirectories: backingDir.isEmpty
                            ? file.values.value(of: SettingsSchema.backingDirectories) : backingDir)
                }
                format.print(answer, Reports.inspect)
            }
            if status != 0 { throw ExitCode(status) }
        }
    }
}
