// SPDX-License-Identifier: BSD-2-Clause
// Our layout of the ring against sizeof, offsetof and the constants of Xen's headers.
import CBlkifOracle
import Memory
import Testing

@testable import Blkif

@Suite("Layout of the ring")
struct LayoutTests {
    @Test("Offsets and sizes are those of blkif.h", arguments: RingABI.allCases)
    func offsets(abi: RingABI) {
        let ours = RingLayout(abi)
        let theirs = abi.oracle.pointee.layout

        #expect(ours.slotSize == theirs.sring_entry_size)
        #expect(ours.slotSize == theirs.request_size)
        #expect(ours.responseSize == theirs.response_size)
        #expect(ours.idOffset == theirs.request_id)
        #expect(ours.sectorOffset == theirs.request_sector_number)
        #expect(ours.segmentsOffset == theirs.request_seg)

        // The discard is read with the offsets of the request; its count of sectors stands where segments begin.
        #expect(ours.idOffset == theirs.discard_id)
        #expect(ours.sectorOffset == theirs.discard_sector_number)
        #expect(ours.segmentsOffset == theirs.discard_nr_sectors)
        #expect(theirs.discard_size <= ours.slotSize)
        // Unknown operations are answered with the id, so it must stand at the same place in all of them.
        #expect(ours.idOffset == theirs.indirect_id)
        #expect(theirs.indirect_size <= ours.slotSize)

        // What parsing takes as given in all ABIs.
        #expect(theirs.request_operation == 0 && theirs.discard_operation == 0)
        #expect(theirs.request_nr_segments == 1 && theirs.discard_flag == 1 && theirs.indirect_op == 1)
        #expect(theirs.request_handle == 2 && theirs.discard_handle == 2)
        #expect(theirs.segment_size == 8)
        #expect(theirs.segment_gref == 0 && theirs.segment_first_sect == 4 && theirs.segment_last_sect == 5)
        #expect(theirs.response_id == 0 && theirs.response_operation == 8 && theirs.response_status == 10)

        #expect(RingLayout.ringHeaderSize == theirs.sring_ring)
        #expect(RingLayout.requestProducer == theirs.sring_req_prod)
        #expect(RingLayout.requestEvent == theirs.sring_req_event)
        #expect(RingLayout.responseProducer == theirs.sring_rsp_prod)
        #expect(RingLayout.responseEvent == theirs.sring_rsp_event)
        #expect(ours.slotSize <= SlotBytes.byteCount)
        #expect(ours.slotSize % 4 == 0 && RingLayout.ringHeaderSize % 8 == 0)
    }

    /// The oracle of the 32-bit ABI is compiled for a 64-bit machine; these numbers are what i386 compilers gave.
    @Test("The oracle itself gives the numbers that are known")
    func knownNumbers() {
        let wide = oracle_x86_64().pointee.layout
        #expect((wide.request_size, wide.response_size) == (112, 16))
        #expect((wide.request_id, wide.request_sector_number, wide.request_seg) == (8, 16, 24))
        #expect((wide.discard_size, wide.discard_nr_sectors) == (32, 24))
        #expect(wide.sring_ring == 64)
        let narrow = oracle_x86_32().pointee.layout
        #expect((narrow.request_size, narrow.response_size) == (108, 12))
        #expect((narrow.request_id, narrow.request_sector_number, narrow.request_seg) == (4, 12, 20))
        #expect((narrow.discard_size, narrow.discard_nr_sectors) == (28, 20))
        #expect((narrow.indirect_size, narrow.indirect_grefs) == (64, 24))
        #expect(narrow.sring_ring == 64)
    }

    @Test("The native ABI is that of the host")
    func native() {
        let hostIsNarrow = MemoryLayout<Int>.size == 4
        #expect(RingLayout(.native) == RingLayout(hostIsNarrow ? .x86_32 : .x86_64))
        #expect(RingLayout(.x86_32) != RingLayout(.x86_64))
    }

    @Test("Ring sizes of 1 to 32 pages are those of __CONST_RING_SIZE", arguments: RingABI.allCases)
    func ringSizes(abi: RingABI) {
        let layout = RingLayout(abi)
        for pages in 1...BlkifLimits.ringPages {
            let count = layout.entryCount(pages: pages)
            #expect(count == Int(abi.oracle.pointee.const_ring_size(pages * 4096)), "\(pages) pages")
            #expect(count.nonzeroBitCount == 1)
            #expect(RingLayout.ringHeaderSize + count * layout.slotSize <= pages * 4096)
            #expect(count <= BlkifLimits.ringEntries)
        }
        #expect(layout.entryCount(pages: 0) == 0)
        #expect(layout.entryCount(pages: 1) == 32)
        #expect(layout.entryCount(pages: BlkifLimits.ringPages) == BlkifLimits.ringEntries)
    }

    @Test("Both ends find the size that the macros find", arguments: RingABI.allCases)
    func sizesOfEnds(abi: RingABI) {
        for pages in 1...BlkifLimits.ringPages {
            let memory = TestPages(pages: pages)
            let front = OurFront(memory, abi: abi, start: 0)
            let back = OurBack(memory, abi: abi)
            let other = TestPages(pages: pages)
            #expect(front.entryCount == MacroFront(other, abi: abi, start: 0).entryCount)
            #expect(back.entryCount == MacroBack(other, abi: abi, fresh: true).entryCount)
            #expect(memory.firstDifference(from: other) == nil)
        }
    }

    @Test("Constants are those of the headers")
    func constants() {
        var count = 0
        let table = UnsafeBufferPointer(start: oracle_constants(&count), count: count)
        var named: [String: Int64] = [:]
        for constant in table { named[String(cString: constant.name)] = constant.value }
        #expect(named.count == count)

        #expect(named["BLKIF_OP_READ"] == Int64(BlockOperation.read.rawValue))
        #expect(named["BLKIF_OP_WRITE"] == Int64(BlockOperation.write.rawValue))
        #expect(named["BLKIF_OP_WRITE_BARRIER"] == Int64(BlockOperation.writeBarrier.rawValue))
        #expect(named["BLKIF_OP_FLUSH_DISKCACHE"] == Int64(BlockOperation.flush.rawValue))
        #expect(named["BLKIF_OP_DISCARD"] == Int64(BlockOperation.discard.rawValue))
        #expect(BlockOperation.allCases.count == 5)
        for name in ["BLKIF_OP_RESERVED_1", "BLKIF_OP_INDIRECT"] {
            let value = named[name].map { BlockOperation(rawValue: UInt8($0)) }
            #expect(value == .some(nil), "\(name) exists and is no operation of ours")
        }

        #expect(named["BLKIF_RSP_OKAY"] == Int64(BlockStatus.okay.rawValue))
        #expect(named["BLKIF_RSP_ERROR"] == Int64(BlockStatus.error.rawValue))
        #expect(named["BLKIF_RSP_EOPNOTSUPP"] == Int64(BlockStatus.notSupported.rawValue))
        #expect(named["BLKIF_MAX_SEGMENTS_PER_REQUEST"] == Int64(BlkifLimits.segmentsPerRequest))
        #expect(named["BLKIF_DISCARD_SECURE"] == 1)
        #expect(named["XEN_PAGE_SHIFT"] == 12)
        #expect(BlkifLimits.sectorsPerPage * BlkifLimits.sectorSize == 1 << 12)

        // What XenStore's "info" and "protocol" say; their readers live elsewhere and use these numbers.
        #expect(named["VDISK_CDROM"] == 1)
        #expect(named["VDISK_REMOVABLE"] == 2)
        #expect(named["VDISK_READONLY"] == 4)
        #expect(String(cString: oracle_protocol_x86_32()) == "x86_32-abi")
        #expect(String(cString: oracle_protocol_x86_64()) == "x86_64-abi")
        #if arch(x86_64)
            #expect(String(cString: oracle_protocol_native()) == "x86_64-abi")
        #endif
    }

    @Test("Each error has its status and its own words")
    func errors() {
        for error in RequestError.allCases {
            #expect(error.status == (error == .unknownOperation ? .notSupported : .error))
            #expect(!error.text.isEmpty)
        }
        #expect(Set(RequestError.allCases.map(\.text)).count == RequestError.allCases.count)
        #expect(BlockOperation.allCases.filter(\.isWriting) == [.write, .writeBarrier, .discard])
    }
}
