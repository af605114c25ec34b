// SPDX-License-Identifier: BSD-2-Clause
// The content of a disk through its tables, read by the tests' own reader.
import Foundation
import ImageCore

/// A cluster that QEMU deflated. Nobody else writes such ones, so what it has never changes while it is referred to.
struct DeflatedCluster: Sendable {
    /// The sector of the disk that it begins with.
    let first: Int
    /// What its sectors have.
    let generations: [UInt32]
    /// The deflated bytes.
    let bytes: [UInt8]
}

/// Reads disks of one image through all its states.
struct ImageContent: Sendable {
    /// By offset in the file.
    let deflated: [Int: DeflatedCluster]
    /// What lies below.
    let lower: ByteImage?

    /// A reader for an image whose content is known from elsewhere.
    init(of image: ByteImage, content: DiskContent, lower: ByteImage?) {
        self.lower = lower
        var found: [Int: DeflatedCluster] = [:]
        if let layout = ImageLayout(image) {
            for cluster in 0..<layout.guestClusters {
                guard case .compressed(let offset, let length) = layout.describe(layout.entry(cluster)) else {
                    continue
                }
                let first = cluster * layout.clusterSize / sectorSize
                let end = min(first + layout.clusterSize / sectorSize, content.generations.count)
                found[offset] = DeflatedCluster(
                    first: first, generations: Array(content.generations[first..<end]),
                    bytes: [UInt8](image.part(offset, length)))
            }
        }
        deflated = found
    }

    /// The content of an image; nil of what is no image.
    func read(_ image: ByteImage) -> DiskContent? {
        guard let layout = ImageLayout(image) else { return nil }
        var content = DiskContent(sectors: layout.size / sectorSize)
        for cluster in 0..<layout.guestClusters {
            for part in layout.parts(cluster) { read(part, of: cluster, image, layout, &content) }
        }
        return content
    }

    private func read(
        _ part: (start: Int, length: Int, what: GuestCluster), of cluster: Int, _ image: ByteImage,
        _ layout: ImageLayout,
        _ content: inout DiskContent
    ) {
        let start = cluster << layout.clusterBits + part.start
        let length = min(part.length, layout.size - start)
        let first = start / sectorSize
        guard length > 0 else { return }
        switch part.what {
        case .zeroes: break
        case .hole:
            if let lower { content.note(lower.part(start, length), first: first) }
        case .data(let offset):
            let part = image.part(offset, length)
            content.note(part, first: first)
            if part.count < length {
                content.foreign.append((first, "data at \(offset), which is not in the file"))
            }
        case .compressed(let offset, _):
            guard let known = deflated[offset], known.isIntact(image, offset) else {
                content.foreign.append((first, "a deflated cluster at \(offset) that is damaged"))
                return
            }
            for (index, generation) in known.generations.enumerated() {
                content.generations[first + index] = generation
            }
        }
    }

    /// What the engine asks for a deflated cluster: its bytes from `start` on, without inflating anything.
    func expand(_ buffer: inout MutableRawSpan, _ start: Int, _ offset: Int, in storage: any ImageReader) -> Int32 {
        guard let known = deflated[offset],
            let now = try? storage.bytes(at: UInt64(offset), count: known.bytes.count), now == known.bytes
        else { return -EIO }
        var whole: [UInt8] = []
        for (index, generation) in known.generations.enumerated() {
            whole += SectorPattern.bytes(first: known.first + index, count: 1, generation: generation)
        }
        buffer.withUnsafeMutableBytes { target in
            for index in 0..<target.count { target[index] = start + index < whole.count ? whole[start + index] : 0 }
        }
        return 0
    }
}

extension DeflatedCluster {
    /// Its bytes are still there.
    func isIntact(_ image: ByteImage, _ offset: Int) -> Bool {
        let now = image.part(offset, bytes.count)
        guard now.count == bytes.count, let base = now.baseAddress else { return false }
        return bytes.withUnsafeBytes { $0.baseAddress.map { memcmp($0, base, now.count) == 0 } ?? false }
    }
}
