// SPDX-License-Identifier: BSD-2-Clause
// The byte layout of the ring in each of the three ABIs of blkif.

/// The ABI of the frontend, from the key "protocol" (xen/io/protocols.h).
///
/// It decides how the C compiler of the guest laid out `struct blkif_request`: 64-bit members are aligned to eight
/// bytes in the 64-bit ABI and to four in the 32-bit one.
public enum RingABI: Sendable, CaseIterable {
    /// The ABI of the host itself; on x86-64 and ARM the same bytes as `x86_64`.
    case native
    /// "x86_64-abi"
    case x86_64
    /// "x86_32-abi"
    case x86_32
}

/// Offsets in bytes inside a slot and inside the ring.
///
/// ```
/// struct blkif_request {            x86_64  x86_32
///     uint8_t        operation;          0       0
///     uint8_t        nr_segments;        1       1    discard: flag; indirect: indirect_op
///     blkif_vdev_t   handle;             2       2    indirect: nr_segments
///     uint64_t       id;                 8       4    x86_64: four bytes of padding before
///     blkif_sector_t sector_number;     16      12
///     struct seg     seg[11];           24      20    discard: nr_sectors
/// };                                   112     108
/// struct blkif_response {
///     uint64_t       id;                 0       0
///     uint8_t        operation;          8       8
///     int16_t        status;            10      10    one byte of padding before
/// };                                    16      12    x86_64: four bytes of padding at the end
/// ```
public struct RingLayout: Sendable, Equatable {
    /// Bytes of a slot: the larger of request and response.
    public let slotSize: Int
    /// Bytes of a response.
    public let responseSize: Int
    /// Where the 64-bit id of a request stands.
    public let idOffset: Int
    /// Where the first sector of a request stands.
    public let sectorOffset: Int
    /// Where the segments stand, or the number of sectors of a discard.
    public let segmentsOffset: Int

    /// Where the slots begin, behind `struct sring`'s indices.
    @inlinable public static var ringHeaderSize: Int { 64 }
    /// Where `sring.req_prod` stands.
    @inlinable static var requestProducer: Int { 0 }
    /// Where `sring.req_event` stands.
    @inlinable static var requestEvent: Int { 4 }
    /// Where `sring.rsp_prod` stands.
    @inlinable static var responseProducer: Int { 8 }
    /// Where `sring.rsp_event` stands.
    @inlinable static var responseEvent: Int { 12 }

    /// The layout of 64-bit ABIs.
    @inlinable @inline(__always) static var wide: RingLayout {
        RingLayout(slotSize: 112, responseSize: 16, idOffset: 8, sectorOffset: 16, segmentsOffset: 24)
    }
    /// The layout of the 32-bit x86 ABI.
    @inlinable @inline(__always) static var narrow: RingLayout {
        RingLayout(slotSize: 108, responseSize: 12, idOffset: 4, sectorOffset: 12, segmentsOffset: 20)
    }

    @inlinable @inline(__always)
    init(slotSize: Int, responseSize: Int, idOffset: Int, sectorOffset: Int, segmentsOffset: Int) {
        self.slotSize = slotSize
        self.responseSize = responseSize
        self.idOffset = idOffset
        self.sectorOffset = sectorOffset
        self.segmentsOffset = segmentsOffset
    }

    /// The layout of an ABI.
    public init(_ abi: RingABI) {
        self = abi == .x86_32 ? .narrow : .wide
    }

    /// Slots of a ring of `pages` pages of 4096 bytes: the largest power of two that fits (`__RING_SIZE`).
    ///
    /// 32 for one page, 1024 for 32 pages, in every ABI.
    public func entryCount(pages: Int) -> Int {
        let room = (pages * 4096 - Self.ringHeaderSize) / slotSize
        guard room > 0 else { return 0 }
        return 1 << (Int.bitWidth - 1 - room.leadingZeroBitCount)
    }
}
