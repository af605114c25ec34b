// SPDX-License-Identifier: BSD-2-Clause
// Whose journal it is: what a process that goes on with it must find unchanged.
import CLinux
import Glibc
import Memory
import Xen
import XenBus

/// The file or device behind a disk, by numbers that a name cannot be exchanged under.
struct StorageIdentity: Equatable, Sendable {
    /// st_dev of a file, 0 of a block device.
    var device: UInt64 = 0
    /// st_ino of a file, st_rdev of a block device; 0 where the plugin opens no file.
    var number: UInt64 = 0

    /// Nothing that could change.
    init() {}

    /// What is open; nothing for -1.
    init(file: Int32) {
        var status = stat()
        guard file >= 0, unsafe fstat(file, &status) == 0 else { return }
        if status.st_mode & S_IFMT == S_IFBLK {
            number = UInt64(status.st_rdev)
        } else {
            device = UInt64(status.st_dev)
            number = UInt64(status.st_ino)
        }
    }
}

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
    var image: StorageIdentity
    var format: String
    var plugin: String

    var ringPages: Int { rings.first?.pageReferences.count ?? 0 }

    /// Writes the first page and the fixed part of each queue's, all but the state.
    func write(to pages: SharedPages) {
        let queueSize = JournalLayout.queueSize(entries: entries)
        pages.store64(JournalLayout.magic, at: JournalLayout.magicOffset)
        pages.store(JournalLayout.version, at: JournalLayout.versionOffset)
        pages.store64(UInt64(pages.byteCount), at: JournalLayout.fileSizeOffset)
        pages.store(UInt32(rings.count), at: JournalLayout.queueCountOffset)
        pages.store(UInt32(ringPages), at: JournalLayout.ringPagesOffset)
        pages.store(UInt32(entries), at: JournalLayout.entriesOffset)
        pages.store(UInt32(JournalLayout.slotSize), at: JournalLayout.slotSizeOffset)
        pages.store64(UInt64(queueSize), at: JournalLayout.queueSizeOffset)
        pages.store(UInt32(domain), at: JournalLayout.domainOffset)
        pages.store(isNarrow ? 1 : 0, at: JournalLayout.protocolOffset)
        pages.store(isReadOnly ? 1 : 0, at: JournalLayout.flagsOffset)
        pages.store64(image.device, at: JournalLayout.imageDeviceOffset)
        pages.store64(image.number, at: JournalLayout.imageNumberOffset)
        Self.write(format, to: pages, at: JournalLayout.formatOffset)
        Self.write(plugin, to: pages, at: JournalLayout.pluginOffset)
        for (index, ring) in rings.enumerated() {
            let base = JournalLayout.pageSize + index * queueSize
            pages.store(ring.eventChannel, at: base + JournalLayout.channelOffset)
            for (page, reference) in ring.pageReferences.prefix(JournalLayout.mostRingPages).enumerated() {
                pages.store(reference, at: base + JournalLayout.referencesOffset + page * 4)
            }
        }
    }

    /// Throws what is not as it was. Every number that is read is compared before it is used.
    func compare(with pages: SharedPages) throws(JournalProblem) {
        guard pages.byteCount >= JournalLayout.pageSize else { throw JournalProblem("it is empty or cut off") }
        guard pages.load64(at: JournalLayout.magicOffset) == JournalLayout.magic else {
            throw JournalProblem("it is no journal")
        }
        let version = pages.load(at: JournalLayout.versionOffset)
        guard version == JournalLayout.version else { throw JournalProblem("its version \(version) is not known") }
        guard pages.load(at: JournalLayout.stateOffset) == 1 else { throw JournalProblem("it was not completed") }
        let queueSize = JournalLayout.queueSize(entries: entries)
        guard pages.load(at: JournalLayout.queueCountOffset) == UInt32(rings.count),
            pages.load(at: JournalLayout.ringPagesOffset) == UInt32(ringPages),
            pages.load(at: JournalLayout.entriesOffset) == UInt32(entries),
            pages.load(at: JournalLayout.domainOffset) == UInt32(domain),
            pages.load(at: JournalLayout.protocolOffset) == (isNarrow ? 1 : 0)
        else { throw JournalProblem("it is of another connection") }
        guard pages.load(at: JournalLayout.slotSizeOffset) == UInt32(JournalLayout.slotSize),
            pages.load64(at: JournalLayout.queueSizeOffset) == UInt64(queueSize),
            pages.load64(at: JournalLayout.fileSizeOffset) == UInt64(pages.byteCount),
            pages.byteCount == JournalLayout.fileSize(queues: rings.count, entries: entries)
        else { throw JournalProblem("its size is not what it says") }
        for (index, ring) in rings.enumerated() {
            let base = JournalLayout.pageSize + index * queueSize
            var isSame = pages.load(at: base + JournalLayout.channelOffset) == ring.eventChannel
            for (page, reference) in ring.pageReferences.prefix(JournalLayout.mostRingPages).enumerated() {
                isSame = isSame && pages.load(at: base + JournalLayout.referencesOffset + page * 4) == reference
            }
            guard isSame else { throw JournalProblem("it is of another ring") }
        }
        guard pages.load64(at: JournalLayout.imageDeviceOffset) == image.device,
            pages.load64(at: JournalLayout.imageNumberOffset) == image.number
        else { throw JournalProblem("another image stands in the place of the one that was served") }
        guard Self.name(format, isAt: JournalLayout.formatOffset, of: pages),
            Self.name(plugin, isAt: JournalLayout.pluginOffset, of: pages)
        else { throw JournalProblem("the image was served as another format, or by another plugin") }
        guard pages.load(at: JournalLayout.flagsOffset) & 1 == (isReadOnly ? 1 : 0) else {
            throw JournalProblem(isReadOnly ? "the disk was writable" : "the disk was read-only")
        }
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
