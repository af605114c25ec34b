// SPDX-License-Identifier: BSD-2-Clause
// Changes a ring's slots while the backend reads them (XSA-155).
public import Blkif
public import Memory
import Support
import Synchronization

/// A thread that writes to the slots of a ring as fast as it can. It switches operations, segment counts, sectors,
/// references and sector numbers between a harmless and a harmful value.
///
/// The indices are left alone. Stop it before the ring's frames are freed.
public final class RingFlipper: Sendable {
    private final class Flag: Sendable {
        let stop = Atomic<Bool>(false)
        let count = Atomic<Int>(0)
    }

    private let flag = Flag()
    private let thread: FrontThread

    /// Starts the thread.
    public init(_ pages: SharedPages, layout: RingLayout, seed: UInt64) throws(BlkfrontError) {
        thread = try FrontThread(name: "flipper") { [flag] in
            Self.run(pages, layout, seed, flag)
        }
    }

    /// Words written so far.
    public var count: Int { flag.count.load(ordering: .relaxed) }

    /// Ends the thread.
    public func stop() {
        flag.stop.store(true, ordering: .releasing)
        thread.join()
    }

    private static func run(_ pages: SharedPages, _ layout: RingLayout, _ seed: UInt64, _ flag: Flag) {
        var random = SplitMix64(seed: seed)
        let slots = layout.entryCount(pages: pages.byteCount / 4096)
        while !flag.stop.load(ordering: .relaxed) {
            let slot = RingLayout.ringHeaderSize + Int(random.below(UInt64(slots))) * layout.slotSize
            let (offset, value) = target(layout, &random)
            let old = pages.load(at: slot + offset)
            pages.store(value, at: slot + offset)
            pages.store(old, at: slot + offset)
            flag.count.add(1, ordering: .relaxed)
        }
    }

    /// An aligned word of a slot, and a harmful value for it.
    private static func target(_ layout: RingLayout, _ random: inout SplitMix64) -> (offset: Int, value: UInt32) {
        let word = UInt32(truncatingIfNeeded: random.next())
        switch random.below(6) {
        case 0: return (0, 0xff00 | word & 1)  // 255 segments
        case 1: return (0, word)
        case 2: return (layout.sectorOffset, word)
        case 3: return (layout.sectorOffset + 4, word)
        case 4: return (layout.segmentsOffset + Int(random.below(11)) * 8, word)
        default: return (layout.segmentsOffset + Int(random.below(11)) * 8 + 4, 0x0000_ff00 | word & 0xff)
        }
    }
}
