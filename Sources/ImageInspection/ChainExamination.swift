// SPDX-License-Identifier: BSD-2-Clause
// Looks at an image and at all below it, as far as a worker would open them. Each is looked at by a process of its own.
import PluginHost
import Base
import Glibc
import Support

/// What `xbb-vbd --inspect IMAGE --chain` does.
public struct ChainExamination {
    private let path: String
    private let policy: BackingPolicy
    private let process: OwnProcess

    /// The chain of the image at `path`. With a state directory what is remembered of that image counts.
    public init(path: String, pluginDirectories: [String], stateDirectory: String?, backing: BackingPolicy) {
        self.path = path
        policy = backing
        process = OwnProcess(pluginDirectories: pluginDirectories, stateDirectory: stateDirectory)
    }

    /// What is in the image, with the member "chain": what is in those below it, from the top down. Where the chain ends
    /// before its base, the last element is an "image" with an "error".
    public func inspect(format: String?) throws(OperationError) -> JSON {
        let top = try look(path, format)
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
                // That it is of no known format is among the warnings about the image above.
                guard let format = reference["format"]?.string else { break }
                let next = try BackingName([UInt8](name.utf8), in: above.path, allowed: policy)
                let file = try next.open()
                defer { close(file) }
                try seen.enter(next.path, format: format, file: file)
                let answer = try look(next.path, format)
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

    private func look(_ image: String, _ format: String?) throws(OperationError) -> JSON {
        try process.ask("--inspect", about: image, format.map { ["--format", $0] } ?? [])
    }

    /// Names in an image begin in the folder of that image.
    private static func absolute(_ path: String) -> String {
        guard !path.hasPrefix("/"), let raw = unsafe getcwd(nil, 0) else { return path }
        defer { unsafe free(raw) }
        return unsafe String(cString: raw) + "/" + path
    }
}
