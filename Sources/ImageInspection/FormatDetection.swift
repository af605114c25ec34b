// SPDX-License-Identifier: BSD-2-Clause
// `format=auto`: decided once, by the recorded format of the image or by a process that examines it.
import PluginHost
import Base
import Support

/// Finds the format of a disk whose format is "auto".
package enum FormatDetection {
    /// The word that stands in place of a format.
    package static let word = "auto"

    /// The disk with its format filled in. A process of its own examines the image if no format is recorded for it.
    package static func resolve(
        _ source: DiskSource, pluginDirectories: [String], stateDirectory: String?, log: Log
    ) throws(OperationError) -> DiskSource {
        guard source.format == word else { return source }
        guard source.path.hasPrefix("/") else {
            throw OperationError(.open, "'\(source.path)' is no absolute path: only an image tells its format")
        }
        let process = ExaminationProcess(pluginDirectories: pluginDirectories, stateDirectory: stateDirectory)
        let answer: JSON
        do throws(OperationError) {
            answer = try process.ask("--probe", about: source.path)
        } catch {
            throw OperationError(.open, "\(error); say what the image is: FORMAT:\(source.path)")
        }
        if let error = answer["error"]?.string { throw OperationError(.open, error) }
        guard let format = answer["auto"]?.string else {
            throw OperationError(.open, answer["reason"]?.string ?? "\(source.path): nobody can tell its format")
        }
        let isRemembered = answer["served_as"]?.string != nil
        log.info(
            "format=auto: \(source.path) \(isRemembered ? "was served as" : "looks like") \(format); say so in the "
                + "configuration: \(format):\(source.path)")
        var resolved = source
        resolved.format = format
        return resolved
    }
}
