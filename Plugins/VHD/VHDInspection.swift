// SPDX-License-Identifier: BSD-2-Clause
// Looking at an image without opening what it names.
import ImageCore
import ImageKit
import PluginKit
import VHD

/// Answers about images that nobody serves yet.
enum VHDInspector: ImageInspector {
    static func score(_ head: ImageHead) -> Int { VHDImage.score(head: head.first(512), tail: head.last(512)) }

    static func inspect(_ opening: Opening) throws(PluginError) -> ImageDescription {
        let file = try ImageFile(fd: opening.fd)
        defer { file.finish() }
        let image = try examining { () throws(ImageError) in try VHDImage(file) }
        // The table twice, and what is known of each block.
        let table = UInt64(image.table.count) * 16
        let memory =
            table + (image.header == nil ? 0 : min(try opening[VHDOption.cache], UInt64(image.table.count) * 512))
        return ImageDescription(
            diskSize: image.size, memory: memory + (2 << 20), traits: image.hasWholeFooter ? [] : .dirty,
            files: image.parents.prefix(1).map {
                ImageFileName(.backing, name: $0.name, format: $0.format ?? [])
            })
    }

    static func examine(_ opening: Opening, _ report: (ImageFact) -> Bool) throws(PluginError) {
        let file = try ImageFile(fd: opening.fd)
        defer { file.finish() }
        let image = try examining { () throws(ImageError) in try VHDImage(file) }
        for fact in facts(image) where !report(fact) { return }
    }

    private static func facts(_ image: VHDImage) -> [ImageFact] {
        let kind =
            switch image.footer.kind {
            case .fixed: "fixed"
            case .dynamic: "dynamic"
            case .differencing: "differencing"
            }
        var facts = [ImageFact("type", kind), ImageFact("creator", shown(image.footer.creator))]
        if !image.hasWholeFooter {
            facts.append(ImageFact("footer", "damaged or missing at the end; the copy is used"))
        }
        if image.footer.hasSavedState { facts.append(ImageFact("feature", "saved state")) }
        guard let header = image.header else { return facts }
        facts.append(ImageFact("block-size", header.blockSize))
        facts.append(ImageFact("data-blocks", UInt64(image.table.count { $0 != VHDImage.noBlock })))
        if image.hasBatmap { facts.append(ImageFact("feature", "batmap")) }
        facts += image.parents.map { ImageFact("parent-name", String(decoding: $0.name, as: UTF8.self)) }
        return facts
    }

    private static func shown(_ letters: [UInt8]) -> String {
        String(decoding: letters.filter { $0 > 0x20 && $0 < 0x7f }, as: UTF8.self)
    }
}
