// SPDX-License-Identifier: BSD-2-Clause
// Looking at an image without opening what it names, and the names in it on their way to the host.
import ImageCore
import ImageKit
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
            diskSize: header.size, memory: QCOWProbe.memory(check, cache: try opening[QCOWOption.cache]),
            traits: traits,
            files: header.references.map { ImageFileName($0) })
    }

    static var canCompare: Bool { true }

    static func compare(_ opening: Opening, _ report: (ImageComparison) -> Bool) throws(PluginError) {
        let file = try ImageFile(fd: opening.fd)
        defer { file.finish() }
        let check = try examining { () throws(ImageError) in try QCOWCheck(examining: file) }
        if let feature = SecondReader.missing(check.header) {
            _ = report(.unreadable(feature))
            return
        }
        try ReaderComparison(file).run(report)
    }

    static func examine(_ opening: Opening, _ report: (ImageFact) -> Bool) throws(PluginError) {
        let file = try ImageFile(fd: opening.fd)
        defer { file.finish() }
        try examining { () throws(ImageError) in
            let image = try QCOWImage(file)
            let header = image.header
            var facts = [
                ImageFact("version", UInt64(header.version)), ImageFact("cluster-size", header.clusterSize),
            ]
            if header.version >= 2 { facts.append(ImageFact("refcount-bits", 1 << UInt64(header.refcountOrder))) }
            if header.compression == Compression.zstd.rawValue { facts.append(ImageFact("compression", "zstd")) }
            if header.hasExtendedL2 {
                facts.append(ImageFact("feature", "extended L2 entries"))
                facts.append(ImageFact("subcluster-size", header.clusterSize / 32))
            }
            if header.compatible & 1 != 0 { facts.append(ImageFact("feature", "lazy refcounts")) }
            let survey = try ImageSurvey(file, image)
            facts += [
                ImageFact("data-clusters", survey.data), ImageFact("shared-clusters", survey.shared),
                ImageFact("compressed-clusters", survey.compressed), ImageFact("zero-clusters", survey.zeroes),
            ]
            if let leaked = survey.leaked { facts.append(ImageFact("leaked-clusters", leaked)) }
            if survey.uncounted > 0 { facts.append(ImageFact("uncounted-clusters", survey.uncounted)) }
            if !survey.isComplete {
                facts.append(ImageFact("survey", "a part of the image: it is too large for all of it"))
            }
            facts += header.bitmaps.map { ImageFact("bitmaps", UInt64($0)) }.map { [$0] } ?? []
            facts += survey.snapshots.map { ImageFact("snapshot", String(decoding: $0, as: UTF8.self)) }
            for fact in facts where !report(fact) { return }
        }
    }
}

extension ImageFileName {
    /// The name as the host gets it; `format` where the image says none.
    init(_ reference: ImageReference, format: [UInt8] = []) {
        self.init(
            reference.kind == .backing ? .backing : .data, name: reference.name, format: reference.format ?? format)
    }
}
