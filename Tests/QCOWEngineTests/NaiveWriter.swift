// SPDX-License-Identifier: BSD-2-Clause
// A small slow writer of qcow2 that keeps the rules, and forgets one of them on demand: the judges are judged by it.
import Foundation
import ImageCore
import ImageWriting
import QCOWEngine

/// A rule of order.
enum WritingRule: CaseIterable, Sendable {
    /// R1: a cluster is counted durably before something refers to it.
    case ownThenPublish
    /// R2: an L2 table is initialised durably before its L1 entry.
    case tableThenL1
    /// R3: the L2 entry is in the file before the answer.
    case entryThenAnswer
    /// R3: copied data are durable before the entry.
    case copyThenEntry
    /// R4: a new cluster reads as zeroes.
    case zeroesInside
    /// R5: the removal of an entry is durable before its cluster is used again.
    case removeThenReuse
    /// R6: no live data are punched.
    case punchOnlyTheDead
    /// R7: what failed is undone; nothing live gets into the free list.
    case undoInReverse
}

/// Writes images of version 3 with 16-bit refcounts in one refcount block, without snapshots and deflated clusters.
/// One thread; every step is synced.
final class NaiveWriter: WritingEngine, @unchecked Sendable {
    private let storage: any ImageStorage
    private let below: (any LowerLayer)?
    private let forgotten: WritingRule?
    private let layout: ImageLayout
    private var refcountBlock = 0
    private var free: [Int] = []
    private var entries: [Int: UInt64] = [:]
    private var lazyEntries: [Int: UInt64] = [:]
    private(set) var hasFailed = false
    let needsCommit = false

    init(_ storage: any ImageStorage, below: (any LowerLayer)?, forgets forgotten: WritingRule?) throws {
        (self.storage, self.below, self.forgotten) = (storage, below, forgotten)
        let image = ByteImage()
        image.write(try storage.bytes(at: 0, count: Int(storage.size)), at: 0)
        guard let layout = ImageLayout(image) else { throw SimulationError("no image") }
        self.layout = layout
        refcountBlock = layout.refcountBlocks.first ?? 0
        guard layout.refcountOrder == 4, refcountBlock != 0, layout.snapshotCount == 0 else {
            throw SimulationError("the naive writer does not know this")
        }
        for index in 0..<layout.l1Count {
            entries[layout.l1Offset + index * 8] = image.u64(layout.l1Offset + index * 8)
        }
        for cluster in 0..<layout.guestClusters {
            if let place = place(cluster) { entries[place] = image.u64(place) }
        }
        // What a crash leaked is free again, and what was free in the middle stays so.
        var used = Set([0, layout.refcountOffset, refcountBlock])
        for place in stride(from: layout.l1Offset, to: layout.l1Offset + layout.l1Count * 8, by: layout.clusterSize) {
            used.insert(place)
        }
        for entry in entries.values { used.insert(Int(truncatingIfNeeded: entry) & ImageLayout.offsetMask) }
        for cluster in 0..<layout.fileClusters where !used.contains(cluster << layout.clusterBits) {
            if layout.refcount(cluster, blocks: [refcountBlock]) > 0 { try check(setCount(cluster, 0)) }
            try check(storage.zero(UInt64(cluster << layout.clusterBits), UInt64(layout.clusterSize)))
            free.append(cluster << layout.clusterBits)
        }
        try check(storage.sync())
    }

    private func check(_ code: Int32) throws { if code != 0 { throw Failure(code: code) } }
    private struct Failure: Error { let code: Int32 }

    var size: UInt64 { UInt64(layout.size) }
    func commit() -> Bool { false }
    func placeOfRead(_ offset: UInt64, _ length: UInt64) -> DataPlace { .engine }
    func placeOfWrite(_ offset: UInt64, _ length: UInt64) -> DataPlace { .engine }
    func begin() -> () -> Void { {} }
    func fail(_ code: Int32) { hasFailed = true }
    func grow(to size: UInt64) throws { throw SimulationError("the naive writer's disks do not grow") }

    func close() {
        publishLazy()
        for cluster in free.sorted() where !entries.values.contains(where: { Int(truncatingIfNeeded: $0) == cluster }) {
            _ = setCount(cluster >> layout.clusterBits, 0)
        }
        _ = storage.sync()
    }

    func perform(_ operation: any EngineOperation) -> OperationProgress {
        do {
            var offset = Int(operation.offset)
            let end = offset + Int(operation.length)
            while offset < end {
                let length = min(layout.clusterSize - offset % layout.clusterSize, end - offset)
                try part(operation, offset, length)
                offset += length
            }
            operation.finish(0)
        } catch {
            operation.finish((error as? Failure)?.code ?? -EIO)
        }
        return .finished
    }

    private func part(_ operation: any EngineOperation, _ offset: Int, _ length: Int) throws {
        let position = UInt64(offset) - operation.offset
        let (cluster, within) = (offset >> layout.clusterBits, offset % layout.clusterSize)
        if operation.kind == .read {
            let old = try content(cluster)
            return operation.takeData(old.span.bytes.extracting(within..<within + length), at: position)
        }
        let isWhole = length == layout.clusterSize
        if operation.kind == .discard {
            if isWhole { try discard(cluster) }
            return
        }
        var data = [UInt8](repeating: 0, count: length)
        if operation.kind == .write {
            var span = data.mutableSpan
            var raw = span.mutableBytes
            operation.copyData(to: &raw, from: position)
        }
        if case .data(let host) = layout.describe(entry(cluster)) { return try put(data, host + within) }
        let host = try allocate()
        if below == nil && forgotten != .copyThenEntry {
            try publish(cluster, host)
            return try put(data, host + within)
        }
        var whole = try content(cluster)
        whole.replaceSubrange(within..<within + length, with: data)
        do {
            if forgotten == .undoInReverse {
                free.append(host)
                try publish(cluster, host)
                try put(whole, host)
                free.removeAll { $0 == host }
            } else {
                try put(whole, host)
                if forgotten != .copyThenEntry { try check(storage.sync()) }
                try publish(cluster, host)
            }
        } catch {
            // It was not published, or the next one must not have it.
            throw error
        }
    }

    /// All bytes of a cluster of the disk.
    private func content(_ cluster: Int) throws -> [UInt8] {
        var bytes = [UInt8](repeating: 0, count: layout.clusterSize)
        var span = bytes.mutableSpan
        var raw = span.mutableBytes
        switch layout.describe(entry(cluster)) {
        case .data(let host): try check(storage.read(into: &raw, at: UInt64(host)))
        case .hole: if let below { try check(below.read(into: &raw, at: UInt64(cluster << layout.clusterBits))) }
        default: break
        }
        return bytes
    }

    // MARK: Tables

    private func place(_ cluster: Int) -> Int? {
        let table = entries[layout.l1Offset + cluster / layout.l2Count * 8] ?? 0
        return table == 0
            ? nil : Int(truncatingIfNeeded: table) & ImageLayout.offsetMask + cluster % layout.l2Count * 8
    }

    private func entry(_ cluster: Int) -> UInt64 { place(cluster).flatMap { entries[$0] } ?? 0 }

    private func put(_ bytes: [UInt8], _ offset: Int) throws {
        try check(storage.write(bytes.span.bytes, at: UInt64(offset)))
    }

    private func put64(_ value: UInt64, _ offset: Int) throws {
        try put(withUnsafeBytes(of: value.bigEndian) { [UInt8]($0) }, offset)
        entries[offset] = value
    }

    private func publish(_ cluster: Int, _ host: Int) throws {
        if place(cluster) == nil {
            let l1 = layout.l1Offset + cluster / layout.l2Count * 8
            if forgotten == .tableThenL1 {
                // Who asked for it has old data there, which are removed later.
                let table = try allocate(dirty: true)
                try put64(UInt64(table) | 1 << 63, l1)
                try check(storage.sync())
                try check(storage.zero(UInt64(table), UInt64(layout.clusterSize)))
            } else {
                try put64(UInt64(try allocate()) | 1 << 63, l1)
            }
        }
        guard let place = place(cluster) else { throw Failure(code: -EIO) }
        if forgotten == .entryThenAnswer {
            entries[place] = UInt64(host) | 1 << 63
            lazyEntries[place] = UInt64(host) | 1 << 63
            if lazyEntries.count > 8 { publishLazy() }
        } else {
            try put64(UInt64(host) | 1 << 63, place)
        }
    }

    private func publishLazy() {
        for (place, entry) in lazyEntries { try? put64(entry, place) }
        lazyEntries = [:]
    }

    private func setCount(_ cluster: Int, _ count: UInt16) -> Int32 {
        guard cluster < layout.blockCount else { return -ENOSPC }
        let bytes = withUnsafeBytes(of: count.bigEndian) { [UInt8]($0) }
        return storage.write(bytes.span.bytes, at: UInt64(refcountBlock + cluster * 2))
    }

    private func allocate(dirty: Bool = false) throws -> Int {
        let host: Int
        if let found = free.popLast() {
            host = found
        } else {
            host = (Int(storage.size) + layout.clusterSize - 1) & ~(layout.clusterSize - 1)
            try check(storage.setSize(UInt64(host + layout.clusterSize)))
        }
        if dirty { try put([UInt8](repeating: 0x80, count: layout.clusterSize), host) }
        try check(setCount(host >> layout.clusterBits, 1))
        if forgotten != .ownThenPublish { try check(storage.sync()) }
        return host
    }

    private func discard(_ cluster: Int) throws {
        guard case .data(let host) = layout.describe(entry(cluster)), let place = place(cluster) else {
            // Zeroes over what lies below.
            if below != nil, let place = self.place(cluster) { try put64(1, place) }
            if below != nil, self.place(cluster) == nil {
                let host = try allocate()
                try put([UInt8](repeating: 0, count: layout.clusterSize), host)
                try check(storage.sync())
                try publish(cluster, host)
            }
            return
        }
        try put64(below == nil ? 0 : 1, place)
        lazyEntries[place] = nil
        if forgotten != .removeThenReuse { try check(storage.sync()) }
        try check(setCount(host >> layout.clusterBits, 0))
        let reach = forgotten == .punchOnlyTheDead ? 2 : 1
        if forgotten != .zeroesInside { try check(storage.zero(UInt64(host), UInt64(reach * layout.clusterSize))) }
        if forgotten != .removeThenReuse { try check(storage.sync()) }
        free.append(host)
    }
}
