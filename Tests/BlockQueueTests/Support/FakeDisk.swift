// SPDX-License-Identifier: BSD-2-Clause
// The storage of a fake plugin: sectors, some of them bad, behind a volatile cache.
import Glibc
import PluginAPI

@testable import BlockQueue

/// A disk of sectors with tags.
final class FakeDisk {
    let sectorCount: Int
    private let base: UnsafeMutableRawPointer
    /// Reading or writing these fails.
    var badSectors: Set<Int> = []
    /// Counts writes that completed.
    private(set) var writes: UInt64 = 0
    /// For each sector that is not on stable storage, the number of the write.
    private var dirty: [Int: UInt64] = [:]

    init(sectorCount: Int) {
        self.sectorCount = sectorCount
        base = .allocate(byteCount: sectorCount * 512, alignment: 4096)
        for sector in 0..<sectorCount { SectorTag.fill(base + sector * 512, Self.firstTag(sector)) }
    }

    deinit { base.deallocate() }

    /// What stands in a sector of a new disk.
    static func firstTag(_ sector: Int) -> UInt64 { 0x1000_0000 + UInt64(sector) }

    func tag(_ sector: Int) -> UInt64 { SectorTag.read(base + sector * 512) }
    func tags(_ sector: Int, _ count: Int) -> [UInt64] { (sector..<(sector + count)).map(tag) }
    func isDirty(_ sector: Int) -> Bool { dirty[sector] != nil }

    /// True if a sector was written by write number `last` or before, and is not on stable storage.
    func hasDirty(upTo last: UInt64) -> Bool { dirty.values.contains { $0 <= last } }

    private func sectors(_ offset: UInt64, _ length: UInt64) -> Range<Int> {
        Int(offset / 512)..<Int((offset + length) / 512)
    }

    func touchesBad(_ offset: UInt64, _ length: UInt64) -> Bool {
        !badSectors.isEmpty && sectors(offset, length).contains { badSectors.contains($0) }
    }

    func read(_ offset: UInt64, _ length: UInt64, _ buffer: UnsafeMutableRawPointer) {
        memcpy(buffer, base + Int(offset), Int(length))
    }

    func write(_ offset: UInt64, _ length: UInt64, _ buffer: UnsafeRawPointer, durable: Bool) {
        memcpy(base + Int(offset), buffer, Int(length))
        writes += 1
        for sector in sectors(offset, length) { dirty[sector] = durable ? nil : writes }
    }

    func discard(_ offset: UInt64, _ length: UInt64) {
        for sector in sectors(offset, length) { SectorTag.fill(base + sector * 512, 0) }
    }

    /// Everything that write number `last` and those before it wrote is on stable storage.
    func flush(upTo last: UInt64) {
        dirty = dirty.filter { $0.value > last }
    }
}
