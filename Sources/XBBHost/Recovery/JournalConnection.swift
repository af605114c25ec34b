// SPDX-License-Identifier: BSD-2-Clause
// Whose journal it is: what a process that goes on with it must find unchanged.
import StorageKeeping
import BlockQueue
import PluginHost
import Base
import CLinux
import Glibc
import Memory
import Xen
import XenBus

/// What was agreed on with a frontend, and which image is served.
struct JournalConnection: Equatable, Sendable {
    var domain: DomainID
    /// The 32-bit x86 ABI.
    var isNarrow: Bool
    var isReadOnly: Bool
    /// At least one, with as many pages each.
    var rings: [FrontendRing]
    /// Requests that a ring holds.
    var entries: Int
    /// The attached image and all below it, from the top down; empty where the plugin opens no file.
    var storage: [StorageIdentity]
    var format: String
    var plugin: String

    var ringPages: Int { rings.first?.pageReferences.count ?? 0 }

    /// Writes the first page and the fixed part of each queue's, all but the state.
    func write(to pages: SharedPages) {
        writeFirstPage(to: pages)
        for (index, ring) in rings.enumerated() {
            let base = JournalLayout.pageSize + index * JournalLayout.queueSize(entries: entries)
            pages.store(ring.eventChannel, at: base + JournalLayout.channelOffset)
            for (page, reference) in ring.pageReferences.prefix(JournalLayout.mostRingPages).enumerated() {
                pages.store(reference, at: base + JournalLayout.referencesOffset + page * 4)
            }
        }
    }

    /// Writes the first page, all but the state.
    func writeFirstPage(to pages: SharedPages) {
        let queueSize = JournalLayout.queueSize(entries: entries)
        pages.store64(JournalLayout.magic, at: JournalLayout.magicOffset)
        pages.store(JournalLayout.version, at: JournalLayout.versionOffset)
        let fileSize = JournalLayout.fileSize(queues: rings.count, entries: entries)
        pages.store64(UInt64(fileSize), at: JournalLayout.fileSizeOffset)
        pages.store(UInt32(rings.count), at: JournalLayout.queueCountOffset)
        pages.store(UInt32(ringPages), at: JournalLayout.ringPagesOffset)
        pages.store(UInt32(entries), at: JournalLayout.entriesOffset)
        pages.store(UInt32(JournalLayout.slotSize), at: JournalLayout.slotSizeOffset)
        pages.store64(UInt64(queueSize), at: JournalLayout.queueSizeOffset)
        pages.store(UInt32(domain), at: JournalLayout.domainOffset)
        pages.store(isNarrow ? 1 : 0, at: JournalLayout.protocolOffset)
        pages.store(isReadOnly ? 1 : 0, at: JournalLayout.flagsOffset)
        write(storage: storage, to: pages)
        Self.write(format, to: pages, at: JournalLayout.formatOffset)
        Self.write(plugin, to: pages, at: JournalLayout.pluginOffset)
    }

    /// Another image is served now, by the same rings: says so in the first page of their journal.
    func rename(in pages: SharedPages) {
        write(storage: storage, to: pages)
        Self.write(format, to: pages, at: JournalLayout.formatOffset)
        Self.write(plugin, to: pages, at: JournalLayout.pluginOffset)
    }

    /// Throws what is not as it was. Every number that is read is compared before it is used.
    func compare(with pages: SharedPages) throws(OperationError) {
        guard pages.byteCount >= JournalLayout.pageSize else {
            throw OperationError(.journal, "it is empty or cut off")
        }
        guard pages.load64(at: JournalLayout.magicOffset) == JournalLayout.magic else {
            throw OperationError(.journal, "it is no journal")
        }
        let version = pages.load(at: JournalLayout.versionOffset)
        guard version == JournalLayout.version else {
            throw OperationError(.journal, "its version \(version) is not known")
        }
        guard pages.load(at: JournalLayout.stateOffset) == 1 else {
            throw OperationError(.journal, "it was not completed")
        }
        let queueSize = JournalLayout.queueSize(entries: entries)
        guard pages.load(at: JournalLayout.queueCountOffset) == UInt32(rings.count),
            pages.load(at: JournalLayout.ringPagesOffset) == UInt32(ringPages),
            pages.load(at: JournalLayout.entriesOffset) == UInt32(entries),
            pages.load(at: JournalLayout.domainOffset) == UInt32(domain),
            pages.load(at: JournalLayout.protocolOffset) == (isNarrow ? 1 : 0)
        else { throw OperationError(.journal, "it is of another connection") }
        guard pages.load(at: JournalLayout.slotSizeOffset) == UInt32(JournalLayout.slotSize),
            pages.load64(at: JournalLayout.queueSizeOffset) == UInt64(queueSize),
            pages.load64(at: JournalLayout.fileSizeOffset) == UInt64(pages.byteCount),
            pages.byteCount == JournalLayout.fileSize(queues: rings.count, entries: entries)
        else { throw OperationError(.journal, "its size is not what it says") }
        for (index, ring) in rings.enumerated() {
            let base = JournalLayout.pageSize + index * queueSize
            var isSame = pages.load(at: base + JournalLayout.channelOffset) == ring.eventChannel
            for (page, reference) in ring.pageReferences.prefix(JournalLayout.mostRingPages).enumerated() {
                isSame = isSame && pages.load(at: base + JournalLayout.referencesOffset + page * 4) == reference
            }
            guard isSame else { throw OperationError(.journal, "it is of another ring") }
        }
        try compareStorage(with: pages)
        guard Self.name(format, isAt: JournalLayout.formatOffset, of: pages),
            Self.name(plugin, isAt: JournalLayout.pluginOffset, of: pages)
        else { throw OperationError(.journal, "the image was served as another format, or by another plugin") }
        guard pages.load(at: JournalLayout.flagsOffset) & 1 == (isReadOnly ? 1 : 0) else {
            throw OperationError(.journal, isReadOnly ? "the disk was writable" : "the disk was read-only")
        }
    }

    /// The attached image stands where it always stood; all images of the chain, itself first, behind the names.
    private func write(storage: [StorageIdentity], to pages: SharedPages) {
        let top = storage.first ?? .nothing
        pages.store64(top.device, at: JournalLayout.imageDeviceOffset)
        pages.store64(top.number, at: JournalLayout.imageNumberOffset)
        let chain = storage.prefix(JournalLayout.mostImages)
        for (index, image) in chain.enumerated() {
            let offset = JournalLayout.chainOffset + index * JournalLayout.identitySize
            pages.store64(image.device, at: offset)
            pages.store64(image.number, at: offset + 8)
        }
        pages.store(UInt32(chain.count), at: JournalLayout.chainCountOffset)
    }

    /// Throws if another image than the ones that are open now was served, anywhere in the chain.
    ///
    /// This holds whatever else the journal says, so it is asked before anything else. A journal of an earlier version
    /// names the attached image alone. What is no journal names none: false, and nothing was compared.
    @discardableResult
    func compareStorage(with pages: SharedPages) throws(OperationError) -> Bool {
        guard pages.byteCount >= JournalLayout.pageSize,
            pages.load64(at: JournalLayout.magicOffset) == JournalLayout.magic,
            pages.load(at: JournalLayout.versionOffset) == JournalLayout.version
        else { return false }
        let top = storage.first ?? .nothing
        var isSame =
            pages.load64(at: JournalLayout.imageDeviceOffset) == top.device
            && pages.load64(at: JournalLayout.imageNumberOffset) == top.number
        let count = pages.load(at: JournalLayout.chainCountOffset)
        if count > 0 {
            isSame = isSame && count == UInt32(min(storage.count, JournalLayout.mostImages))
            for (index, image) in storage.prefix(JournalLayout.mostImages).enumerated() {
                let offset = JournalLayout.chainOffset + index * JournalLayout.identitySize
                isSame = isSame && pages.load64(at: offset) == image.device
                isSame = isSame && pages.load64(at: offset + 8) == image.number
            }
        }
        if !isSame { throw StorageIdentity.exchanged(storage) }
        return true
    }

    private static func words(_ name: String) -> [UInt32] {
        var words = [UInt32](repeating: 0, count: JournalLayout.nameSize / 4)
        for (index, byte) in name.utf8.prefix(JournalLayout.nameSize).enumerated() {
            words[index / 4] |= UInt32(byte) << UInt32(index % 4 * 8)
        }
        return words
    }

    private static func write(_ name: String, to pages: SharedPages, at offset: Int) {
        for (index, word) in words(name).enumerated() { pages.store(word, at: offset + index * 4) }
    }

    private static func name(_ name: String, isAt offset: Int, of pages: SharedPages) -> Bool {
        words(name).enumerated().allSatisfy { pages.load(at: offset + $0 * 4) == $1 }
    }
}
