// SPDX-License-Identifier: BSD-2-Clause
// The types that hold memory: what they read and write, and that they trap instead of leaving their bounds.
import CRing
import Glibc
import Memory
import TestSupport
import Testing

@testable import Blkif

@Suite("Memory")
struct MemoryTests {
    // MARK: A private slot

    @Test("A slot reads and writes integers at any offset, little-endian")
    func slotBytes() {
        #expect(MemoryLayout<SlotBytes>.size == SlotBytes.byteCount && SlotBytes.byteCount == 112)
        var slot = SlotBytes()
        #expect(slot.prefix(112).allSatisfy { $0 == 0 })
        for offset in 0...104 {
            slot = SlotBytes()
            slot.store(0x0123_4567_89AB_CDEF as UInt64, at: offset)
            #expect(slot.load(UInt64.self, at: offset) == 0x0123_4567_89AB_CDEF)
            #expect(slot.load(UInt8.self, at: offset) == 0xEF && slot.load(UInt8.self, at: offset + 7) == 0x01)
            #expect(slot.load(UInt16.self, at: offset + 1) == 0xABCD)
            #expect(slot.load(Int32.self, at: offset + 4) == 0x0123_4567)
            let bytes = slot.prefix(112)
            #expect(bytes.enumerated().allSatisfy { (offset..<offset + 8).contains($0.offset) || $0.element == 0 })
        }
        slot.store(UInt8(9), at: 111)
        #expect(slot.load(UInt8.self, at: 111) == 9)
    }

    @Test("A slot traps outside its 112 bytes")
    func slotBounds() async {
        await #expect(processExitsWith: .failure) { _ = SlotBytes().load(UInt64.self, at: 105) }
        await #expect(processExitsWith: .failure) { _ = SlotBytes().load(UInt8.self, at: 112) }
        await #expect(processExitsWith: .failure) { _ = SlotBytes().load(UInt8.self, at: -1) }
        await #expect(processExitsWith: .failure) {
            var slot = SlotBytes()
            slot.store(UInt32(0), at: 109)
        }
    }

    // MARK: Shared pages

    @Test("Copying a slot takes its bytes and no others", arguments: Array(stride(from: 0, through: 112, by: 4)))
    func copySlot(byteCount: Int) {
        var random = SplitMix64(seed: UInt64(byteCount))
        let pages = TestPages(pages: 1)
        // Aligned to eight and not, and at the end of the pages.
        for offset in [0, 64, 68, 176, 172, 4096 - byteCount] {
            let source = SlotBytes.random(&random)
            var target = SlotBytes.random(&random)
            let before = target
            pages.shared.storeSlot(source, at: offset, byteCount: byteCount)
            pages.shared.copySlot(at: offset, byteCount: byteCount, into: &target)
            #expect(target.prefix(byteCount) == source.prefix(byteCount))
            #expect(Array(target.prefix(112).dropFirst(byteCount)) == Array(before.prefix(112).dropFirst(byteCount)))
        }
    }

    @Test("Storing a slot touches its bytes and no others")
    func storeSlot() {
        let slot = SlotBytes()
        for (offset, byteCount) in [(64, 108), (172, 108), (64, 112), (4096 - 112, 112)] {
            let pages = TestPages(pages: 1)
            pages.shared.storeSlot(slot, at: offset, byteCount: byteCount)
            let wrong = (0..<4096).first {
                pages.byte(at: $0) != ((offset..<offset + byteCount).contains($0) ? 0 : 0xA5)
            }
            #expect(wrong == nil)
        }
    }

    @Test("Words of shared pages")
    func words() {
        let pages = TestPages(pages: 2)
        let shared = pages.shared
        for (index, offset) in [0, 4, 64, 4092, 4096, 8188].enumerated() {
            let value = 0xC0FF_EE00 + UInt32(index)
            shared.store(value, at: offset)
            #expect(shared.load(at: offset) == value && shared.loadAcquire(at: offset) == value)
            shared.storeRelease(~value, at: offset)
            #expect(shared.load(at: offset) == ~value)
            #expect(pages.byte(at: offset) == UInt8(truncatingIfNeeded: ~value))
        }
    }

    @Test("Shared pages trap outside, and on offsets that are not multiples of four")
    func sharedBounds() async {
        await #expect(processExitsWith: .failure) { _ = TestPages(pages: 1).shared.load(at: 4096) }
        await #expect(processExitsWith: .failure) { _ = TestPages(pages: 1).shared.load(at: -4) }
        await #expect(processExitsWith: .failure) { _ = TestPages(pages: 1).shared.loadAcquire(at: 2) }
        await #expect(processExitsWith: .failure) { TestPages(pages: 1).shared.store(0, at: 4093) }
        await #expect(processExitsWith: .failure) { TestPages(pages: 1).shared.storeRelease(0, at: .max) }
        await #expect(processExitsWith: .failure) {
            var slot = SlotBytes()
            TestPages(pages: 1).shared.copySlot(at: 4096 - 108, byteCount: 112, into: &slot)
        }
        await #expect(processExitsWith: .failure) {
            var slot = SlotBytes()
            TestPages(pages: 1).shared.copySlot(at: 0, byteCount: 116, into: &slot)
        }
        await #expect(processExitsWith: .failure) {
            var slot = SlotBytes()
            TestPages(pages: 1).shared.copySlot(at: 0, byteCount: 110, into: &slot)
        }
        await #expect(processExitsWith: .failure) {
            TestPages(pages: 1).shared.storeSlot(SlotBytes(), at: 4096 - 64, byteCount: 108)
        }
    }

    @Test("A ring of no pages is a bug of ours")
    func noPages() async {
        await #expect(processExitsWith: .failure) { _ = OurBack(TestPages(pages: 0), abi: .x86_64) }
    }

    // MARK: Arrays

    @Test("A fixed array is zeroed, aligned, and stays where it is")
    func fixedArray() {
        var array = FixedArray<BlockRequest>(zeroed: 100)
        #expect(array.count == 100)
        #expect(UInt(bitPattern: array.address(of: 0)) % 64 == 0)
        #expect((0..<100).allSatisfy { array[$0].id == 0 && array[$0].segmentCount == 0 })
        let address = array.address(of: 42)
        array[42].id = 7
        array[99].firstSector = .max
        #expect(address.pointee.id == 7 && array.address(of: 42) == address)
        #expect(array[41].id == 0 && array[43].id == 0 && array[99].firstSector == .max)
        let paged = FixedArray<UInt8>(zeroed: 5, alignment: 4096)
        #expect(UInt(bitPattern: paged.address(of: 0)) % 4096 == 0)
        #expect(FixedArray<UInt64>(zeroed: 0).count == 0)
    }

    @Test("A fixed array traps outside")
    func fixedArrayBounds() async {
        await #expect(processExitsWith: .failure) { _ = FixedArray<UInt32>(zeroed: 8)[8] }
        await #expect(processExitsWith: .failure) { _ = FixedArray<UInt32>(zeroed: 8)[-1] }
        await #expect(processExitsWith: .failure) {
            var array = FixedArray<UInt32>(zeroed: 0)
            array[0] = 1
        }
        await #expect(processExitsWith: .failure) { _ = FixedArray<UInt32>(zeroed: 8).address(of: 8) }
    }

    // MARK: Host memory

    @Test("Host memory is whole pages of zeroes")
    func hostMemory() throws {
        let memory = try #require(HostMemory(byteCount: 5000))
        #expect(memory.byteCount == 8192)
        #expect(memory.bytes(at: 0, count: 8192).allSatisfy { $0 == 0 })
        #expect(UInt(bitPattern: memory.address(at: 0, count: 1)) % 4096 == 0)

        memory.store(Array(1...200), at: 4000)
        #expect(memory.bytes(at: 4000, count: 200) == Array(1...200))
        #expect(memory.bytes(at: 3999, count: 1) == [0] && memory.bytes(at: 4200, count: 1) == [0])
        memory.move(from: 4000, to: 4050, count: 200)
        #expect(memory.bytes(at: 4000, count: 250) == Array(1...50) + Array(1...200))
        memory.clear(at: 4010, count: 5)
        #expect(memory.bytes(at: 4009, count: 7) == [10, 0, 0, 0, 0, 0, 16])
        memory.store([], at: 8192)
        #expect(memory.bytes(at: 8192, count: 0).isEmpty)

        memory.discard(at: 4096, count: 4096)
        #expect(memory.bytes(at: 4090, count: 12) == [41, 42, 43, 44, 45, 46, 0, 0, 0, 0, 0, 0])
        #expect(HostMemory(byteCount: 0)?.byteCount == 4096)
    }

    @Test("Host memory that cannot be had is nil")
    func hostMemoryRefused() {
        #expect(HostMemory(byteCount: .max) == nil)
        #expect(HostMemory(byteCount: .max - 4095) == nil)
    }

    @Test("Host memory traps outside, and discards whole pages only")
    func hostMemoryBounds() async {
        await #expect(processExitsWith: .failure) { _ = HostMemory(byteCount: 4096)?.bytes(at: 4096, count: 1) }
        await #expect(processExitsWith: .failure) { _ = HostMemory(byteCount: 4096)?.bytes(at: -1, count: 1) }
        await #expect(processExitsWith: .failure) { _ = HostMemory(byteCount: 4096)?.bytes(at: 1, count: .max) }
        await #expect(processExitsWith: .failure) { HostMemory(byteCount: 4096)?.store([1, 2], at: 4095) }
        await #expect(processExitsWith: .failure) { HostMemory(byteCount: 4096)?.clear(at: 0, count: 4097) }
        await #expect(processExitsWith: .failure) { HostMemory(byteCount: 4096)?.move(from: 8, to: 0, count: 4090) }
        await #expect(processExitsWith: .failure) { HostMemory(byteCount: 8192)?.discard(at: 0, count: 100) }
        await #expect(processExitsWith: .failure) { HostMemory(byteCount: 8192)?.discard(at: 512, count: 4096) }
    }
}
