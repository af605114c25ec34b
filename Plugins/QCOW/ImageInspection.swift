// SPDX-License-Identifier: BSD-2-Clause
// Looking at an image without opening what it names, and the names in it on their way to the host.
import ImageCore
import PluginKit
import QCOW2

/// Answers about images that nobody serves yet.
enum QCOWInspector: ImageInspector {
    static func score(_ head: ImageHead) -> Int { QCOWProbe.score(head.first(8), format: head.format) }

    static func inspect(_ opening: Opening) throws(PluginError) -> ImageDescription {
        let file = try ImageFile(fd: opening.fd)
        defer { file.finish() }
        let check = try examining { () throws(ImageError) in try QCOWCheck(examining: file) }
        let header = check.header
        guard opening.format == header.format else {
            throw .invalid("the image is \(header.format) (version \(header.version)), not \(opening.format)")
        }
        var traits: ImageDescription.Traits = []
        if check.isEncrypted { traits.insert(.encrypted) }
        if check.isDirty { traits.insert(.dirty) }
        if check.isCorrupt { traits.insert(.corrupt) }
        if check.hasUnknownFeatures { traits.insert(.unknownFeatures) }
        return ImageDescription(
            diskSize: header.size, memory: QCOWProbe.memory(check), traits: traits,
            files: header.references.map { ImageFileName($0) })
    }
}

extension ImageFileName {
    /// The name as the host gets it; `format` where the image says none.
    init(_ reference: ImageReference, format: [UInt8] = []) {
        self.init(
            reference.kind == .backing ? .backing : .data, name: reference.name, format: reference.format ?? format)
    }
}
