// SPDX-License-Identifier: BSD-2-Clause
// A frontend that misbehaves, for tests of what a backend survives.
//
// It uses only what tests can reach as well: the domain, the store, the device and its queues are the ordinary ones.
import Base
public import Blkif
import CLinux
public import Memory
public import Xen
import Support
import XenLoopback

/// Misuse of a device, step by step. Use from one thread, except for the ``RingFlipper``.
public final class HostileFrontend {
    /// The device that is misused; its own steps can be combined with those below.
    public let device: FrontDevice
    private var random: SplitMix64

    /// A hostile owner of a device; `seed` decides all random choices.
    public init(_ device: FrontDevice, seed: UInt64 = 1) {
        self.device = device
        random = SplitMix64(seed: seed)
    }

    private var domain: LoopbackDomain { device.domain }

    // MARK: XenStore

    /// Writes any bytes to a key of the frontend's directory.
    public func write(_ key: String, _ value: [UInt8]) throws(OperationError) {
        try device.store.write("\(device.path)/\(key)", value, in: .none)
    }

    /// Writes any text to a key of the frontend's directory: `write("ring-page-order", "32")`.
    public func write(_ key: String, _ value: String) throws(OperationError) {
        try write(key, [UInt8](value.utf8))
    }

    /// Removes a key of the frontend's directory.
    public func remove(_ key: String) throws(OperationError) {
        try device.store.remove("\(device.path)/\(key)", in: .none)
    }

    /// Writes any state at any time.
    public func writeState(_ state: Int) throws(OperationError) {
        try write("state", String(state))
    }

    /// Writes `count` random states, some of which do not exist, with `pause` microseconds between them. Returns what
    /// was written.
    public func writeRandomStates(_ count: Int, pause: UInt32 = 0) throws(OperationError) -> [String] {
        let junk = ["", "0", "9", "-1", "4294967300", "Connected", "4 ", "\u{7f}", "99999999999999999999"]
        var written: [String] = []
        for _ in 0..<count {
            let choice = Int(random.below(12))
            let state = choice < 8 ? String(choice + 1) : junk[Int(random.below(UInt64(junk.count)))]
            try write("state", state)
            written.append(state)
            if pause > 0 { usleep(pause) }
        }
        return written
    }

    /// Writes the keys of the device's rings like ``FrontDevice/publish()``, except for those in `changes`; nil removes
    /// a key. Leaves the state alone.
    public func publish(changing changes: [String: String?]) throws(OperationError) {
        let keys = device.keys().filter { changes[$0.key] == nil } + changes.map { ($0.key, $0.value) }
        try device.store.transaction { transaction throws(OperationError) in
            for (key, value) in keys {
                if let value {
                    try device.store.write("\(device.path)/\(key)", value, in: transaction)
                } else {
                    try device.store.remove("\(device.path)/\(key)", in: transaction)
                }
            }
        }
    }

    // MARK: Grants

    /// A reference without a grant: the last entry, which is practically never used.
    public func emptyReference() -> UInt32 { UInt32(domain.grantEntryCount - 1) }

    /// References beyond the grant table.
    public func absentReferences() -> [UInt32] {
        [UInt32(domain.grantEntryCount), 1 << 24, 0x7fff_ffff, 0x8000_0000, .max]
    }

    /// A grant of a new frame, optionally read-only. End it with `domain.endAccess`.
    public func grant(readOnly: Bool = false, to other: DomainID? = nil) throws(OperationError) -> UInt32 {
        try domain.grantAccess(
            to: other ?? device.backend, frame: domain.allocateFrames(1), readOnly: readOnly)
    }

    /// A reference whose grant was revoked.
    public func revokedReference() throws(OperationError) -> UInt32 {
        let reference = try grant()
        _ = domain.endAccess(reference)
        return reference
    }

    /// A grant whose frame lies beyond the domain's memory.
    public func referenceBeyondMemory() throws(OperationError) -> UInt32 {
        let reference = try grant()
        domain.setEntry(reference, flags: 1, domain: device.backend, frame: UInt32(domain.pageCount))
        return reference
    }

    // MARK: The ring

    /// A slot of random bytes.
    public func randomSlot() -> SlotBytes {
        var slot = SlotBytes()
        for offset in stride(from: 0, to: SlotBytes.byteCount, by: 8) { slot.store(random.next(), at: offset) }
        return slot
    }

    /// A slot that is almost correct: a read or write of the disk with one byte changed at random.
    public func nearlyRightSlot(layout: RingLayout, id: UInt64, sectors: UInt64, references: [UInt32]) -> SlotBytes {
        let count = min(1 + Int(random.below(11)), references.count)
        let segments = references.prefix(count).map { BlockSegment(reference: $0, firstSector: 0, lastSector: 7) }
        var slot = RequestEncoder(layout: layout).slot(
            operation: UInt8(random.below(2)), id: id, firstSector: random.below(max(sectors, 1)), segments: segments)
        slot.store(UInt8(truncatingIfNeeded: random.next()), at: Int(random.below(UInt64(layout.slotSize))))
        return slot
    }

    /// Fills the ring's pages, indices included, with random bytes.
    public func junk(_ pages: SharedPages) {
        for offset in stride(from: 0, to: pages.byteCount, by: 4) {
            pages.store(UInt32(truncatingIfNeeded: random.next()), at: offset)
        }
    }

    /// A thread that changes slots while the backend looks at them; see ``RingFlipper``.
    public func flip(_ pages: SharedPages, layout: RingLayout) throws(BlkfrontError) -> RingFlipper {
        try RingFlipper(pages, layout: layout, seed: random.next())
    }
}
