// SPDX-License-Identifier: BSD-2-Clause
// Images that their last writer did not close while their refcounts waited in its memory (lazy_refcounts): all refcounts are
// written anew, from what the tables refer to, before the first change.
//
// The image says that it is "dirty" until counts and flags are durable, so an end at any moment before leaves the same work to do. No
// reference is changed, and nothing is written but counts and flags in tables that overlap nothing.
import ImageCore
import ImageWriting
import QCOW2

extension ImageScan {
    /// One more reference to a cluster that has one already.
    mutating func noteAgain(_ cluster: UInt64) {
        references?[cluster, default: 1] += 1
        if references?.count ?? 0 > Self.mostReferences { references = nil }
    }

    /// What refers to a cluster in use.
    func rebuiltCount(_ cluster: UInt64) -> UInt64 { references?[cluster] ?? 1 }
}

extension ImageEngine {
    var isRebuilding: Bool { scan?.rebuilds == true }

    /// References that are too many to be counted are for QEMU.
    func noteAgain(_ cluster: UInt64) throws(ImageError) {
        scan?.noteAgain(cluster)
        guard let references = scan?.references else {
            throw .damaged("it was not closed, and more of its clusters are shared than are counted here")
        }
        guard references[cluster] ?? 1 <= geometry.largestRefcount else {
            throw .damaged("more entries point to cluster \(cluster) of the file than its refcount can say")
        }
    }

    /// With `metadataLock`, before any table is read.
    func beginRebuilding() throws(ImageError) {
        guard scan?.mayReclaim == true else {
            throw .damaged("it was not closed, and has extensions that may refer to clusters")
        }
    }

    /// Writes the refcounts of one block. With `metadataLock`.
    func rebuildBlock(_ block: Int) throws(ImageError) {
        if block == 0 { allocator.learnEnd() }
        let first = UInt64(block) << geometry.blockBits
        guard first < allocator.end || block < allocator.refcounts.table.count else {
            try allocator.refcounts.write()
            scan?.phase = .flags(0)
            return
        }
        if !allocator.refcounts.hasBlock(for: first) {
            let last = min(first + geometry.refcountsPerBlock, allocator.end)
            guard first < last, allocator.used.hasAny(in: first..<last) else {
                // Behind all that is in use only blocks that are there matter.
                let table = allocator.refcounts.table
                var next = block + 1
                while first >= allocator.end, next < table.count, table[next] == 0 { next += 1 }
                scan?.phase = .rebuild(next)
                return
            }
            try allocator.addMissingBlock(block)
        }
        for cluster in first..<first + geometry.refcountsPerBlock {
            let right = allocator.used.contains(cluster) ? scan?.rebuiltCount(cluster) ?? 1 : 0
            guard try allocator.refcounts.count(of: cluster) != right else { continue }
            try allocator.refcounts.set(cluster, to: right)
            scan?.excess += 1
        }
        try allocator.refcounts.write()
        scan?.phase = .rebuild(block + 1)
    }

    /// Writes the flags of one L1 entry and of the entries of its table where they do not say whether the refcount is 1. With
    /// `metadataLock`.
    func rebuildFlags(_ index: Int) throws(ImageError) {
        // Where each cluster has one reference and each entry says so, there is nothing to do.
        var index = scan?.sawShared == true || scan?.references?.isEmpty == false ? index : image.l1.count
        while index < image.l1.count, image.l1[index] == 0 { index += 1 }
        guard index < image.l1.count else { return try endRebuilding() }
        let table = image.l1[index] & L2Entry.offsetMask
        let isOwn = scan?.rebuiltCount(table >> geometry.clusterBits) == 1
        let entry = table | (isOwn ? L2Entry.copied : 0)
        if entry != image.l1[index] {
            scan?.excess += 1
            try check(storage.write(number: entry, at: l1Offset + UInt64(index) * 8), "cannot write the L1 table")
        }
        if !isOwn { disowned.insert(UInt64(index)) }
        for (number, entry) in try storage.entries(ofTable: table, geometry) {
            guard !entry.isCompressed, entry.place != 0 else { continue }
            let isOwn = scan?.rebuiltCount(entry.place >> geometry.clusterBits) == 1
            let flag = isOwn ? L2Entry.copied : 0
            guard entry.raw & L2Entry.copied != flag else { continue }
            scan?.excess += 1
            let place = table + UInt64(number) * geometry.entryBytes
            try check(storage.write(number: entry.raw ^ L2Entry.copied, at: place), "cannot write an L2 entry")
        }
        scan?.phase = .flags(index + 1)
    }

    /// All of it is durable before the image says that it is well.
    private func endRebuilding() throws(ImageError) {
        let changed = scan?.excess ?? 0
        try check(sync(), "cannot make the refcounts durable")
        let bits = image.header.incompatible & ~QCOWHeader.Incompatible.dirty
        try check(storage.write(number: bits, at: 72), "cannot write the header")
        try check(sync(), "cannot make the header durable")
        scan?.excess = 0
        scan?.phase = .rebuilt
        tell(.rebuilt(changes: changed))
    }

    /// The file is right; so is the cache then. Without locks, as a piece comes before the metadata.
    func believeRefcounts() {
        isDirty.store(false, ordering: .sequentiallyConsistent)
        // Pieces that were read before have no flags.
        for index in image.l1.indices where image.l1[index] != 0 { map.forgetTable(index) }
    }
}

extension QCOWImage {
    /// Its last writer did not close it, and its refcounts are not up to date.
    var isDirty: Bool { header.incompatible & QCOWHeader.Incompatible.dirty != 0 }
}
