// SPDX-License-Identifier: BSD-2-Clause
// Inspects an image and the images below it, as far as a worker would open them. Each is examined by a process of its
// own.
import PluginHost
import Base
import Glibc
import Support

/// What `xbb-vbd --inspect IMAGE --chain` does.
public struct ChainExamination {
    private let path: String
    private let policy: BackingPolicy
    private let process: ExaminationProcess

    /// The chain of the image at `path`. With a state directory, the format recorded for that image counts.
    public init(path: String, pluginDirectories: [String], stateDirectory: String?, backing: BackingPolicy) {
        self.path = path
        policy = backing
        process = ExaminationProcess(pluginDirectories: pluginDirectories, stateDirectory: stateDirectory)
    }

    /// The content of the image, with a member "chain": the content of each image below it, from the top down. If the
    /// chain ends before its base, the last element has only "image" and "error".
    public func inspect(format: String?) throws(OperationError) -> JSON {
        let top = try examine(path, format)
        if let error = top["error"]?.string { throw OperationError(.open, error) }
        var below: [JSON] = []
        var above = (path: Self.absolute(path), answer: top)
        let seen = ImageChain(policy: policy, pluginDirectories: process.pluginDirectories)
        do throws(OperationError) {
            try enter(above.path, top["format"]?.string ?? "", seen)
        } catch {
            throw OperationError(.open, "\(path): \(error)")
        }
        while let reference = above.answer["references"]?.elements.first(where: { $0["kind"]?.string == "backing" }) {
            let name = reference["name"]?.string ?? ""
            do throws(OperationError) {
                // An unknown format is already among the warnings about the image above.
                guard let format = reference["format"]?.string else { break }
                let catalog = PluginCatalog(directories: process.pluginDirectories)
                let upper = above.answer["format"]?.string ?? ""
                let next = try BackingName([UInt8](name.utf8), in: above.path, allowed: policy)
                if let problem = try catalog.problem(of: format, below: upper, next.path) {
                    throw OperationError(.open, problem)
                }
                let file = try next.open()
                defer { close(file) }
                try seen.enter(next.path, format: format, file: file)
                let answer = try examine(next.path, format)
                below.append(answer)
                if answer["error"] != nil { break }
                above = (next.path, answer)
            } catch {
                below.append(.object([("image", .string(name)), ("error", .string(error.description))]))
                break
            }
        }
        return .object(top.members + [("chain", .array(below))])
    }

    private func enter(_ path: String, _ format: String, _ chain: ImageChain) throws(OperationError) {
        let file = try DiskFile(path: path, readOnly: true, direct: false)
        try chain.enter(path, format: format, file: file.descriptor)
    }

    private func examine(_ image: String, _ format: String?) throws(OperationError) -> JSON {
        try process.ask("--inspect", about: image, format.map { ["--format", $0] } ?? [])
    }

    /// An absolute path: a relative name in an image starts from that image's folder.
    private static func absolute(_ path: String) -> String {
        guard !path.hasPrefix("/"), let raw = unsafe getcwd(nil, 0) else { return path }
        defer { unsafe free(raw) }
        return unsafe String(cString: raw) + "/" + path
    }
}
