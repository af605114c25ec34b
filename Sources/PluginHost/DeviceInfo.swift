// SPDX-License-Identifier: BSD-2-Clause
// What a plugin reports about an open disk, checked and with the defaults filled in.
import Base
import PluginAPI

/// Capabilities and limits of an open disk. All sizes are in bytes and consistent with each other.
public struct DeviceInfo: Sendable, Equatable {
    /// What the plugin can do (`XBB_CAP_*`).
    public struct Capabilities: OptionSet, Sendable {
        /// The bits of `xbb_info.caps`.
        public let rawValue: UInt64
        /// A set of bits.
        public init(rawValue: UInt64) { self.rawValue = rawValue }
        /// `XBB_CAP_WRITE`
        public static let write = Capabilities(rawValue: 1 << 0)
        /// `XBB_CAP_FLUSH`: completed writes may be in a volatile cache
        public static let flush = Capabilities(rawValue: 1 << 1)
        /// `XBB_CAP_FUA`
        public static let fua = Capabilities(rawValue: 1 << 2)
        /// `XBB_CAP_DISCARD`
        public static let discard = Capabilities(rawValue: 1 << 3)
        /// `XBB_CAP_DISCARD_SECURE`
        public static let discardSecure = Capabilities(rawValue: 1 << 4)
        /// `XBB_CAP_DISCARD_ZEROES`
        public static let discardZeroes = Capabilities(rawValue: 1 << 5)
        /// `XBB_CAP_WRITE_ZEROES`
        public static let writeZeroes = Capabilities(rawValue: 1 << 6)
        /// `XBB_CAP_STABLE_BUFFERS`: always given, because grant copy makes private copies
        public static let stableBuffers = Capabilities(rawValue: 1 << 7)
        /// `XBB_CAP_NEEDS_MEM_MAP`
        public static let needsMemoryMap = Capabilities(rawValue: 1 << 8)
        /// `XBB_CAP_ROTATIONAL`
        public static let rotational = Capabilities(rawValue: 1 << 9)
    }
    /// What it can do.
    public var capabilities: Capabilities
    /// Size of the disk in bytes, a multiple of ``logicalBlock``.
    public var size: UInt64
    /// The multiple of all offsets and lengths, in bytes: 512 to 4096, and no less than ``memoryAlignment``.
    public var logicalBlock: UInt32
    /// The unit in which the medium is written, in bytes.
    public var physicalBlock: UInt32
    /// The multiple of all buffer addresses and lengths, in bytes: 1 to 4096.
    public var memoryAlignment: UInt32
    /// The longest read or write, in bytes.
    public var maxTransfer: UInt64
    /// The longest discard, in bytes.
    public var maxDiscard: UInt64
    /// The longest write of zeroes, in bytes.
    public var maxWriteZeroes: UInt64
    /// The most vectors of a request; nil for no limit.
    public var maxVectors: Int?
    /// The most queues that can be open at once.
    public var maxQueues: Int
    /// The most requests in flight in one queue; nil for no limit.
    public var queueDepth: Int?
    /// Granularity of discards, in bytes.
    public var discardGranularity: UInt32
    /// Offset of the first discardable byte, modulo the granularity.
    public var discardOffset: UInt32

    /// Size in sectors of 512 bytes, the unit of XenStore's "sectors".
    public var sectorCount: UInt64 { size / 512 }

    /// Checks what get_info() returned. The error's text is meant for the operator.
    package init(validating info: xbb_info) throws(OperationError) {
        func isPowerOfTwo(_ value: UInt32) -> Bool { value != 0 && value & (value - 1) == 0 }
        let logical = info.logical_block == 0 ? 512 : info.logical_block
        guard isPowerOfTwo(logical), (512...4096).contains(logical) else {
            throw OperationError(
                .invalid, "the plugin reports logical blocks of \(logical) bytes; 512 to 4096 are served")
        }
        guard info.size >= UInt64(logical) else {
            throw OperationError(.invalid, "the disk has \(info.size) bytes, less than one block of \(logical)")
        }
        guard info.size % UInt64(logical) == 0, info.size <= UInt64(Int64.max) else {
            throw OperationError(
                .invalid, "the plugin reports a size of \(info.size) bytes, not whole blocks of \(logical)")
        }
        let alignment = info.mem_align == 0 ? 1 : info.mem_align
        guard isPowerOfTwo(alignment), alignment <= 4096 else {
            throw OperationError(
                .invalid, "the plugin wants buffers aligned to \(alignment) bytes; a power of two up to 4096 is served")
        }
        // Lengths must be multiples of both, so a disk that needs coarser memory alignment gets larger blocks.
        let block = max(logical, alignment)
        let unit = UInt64(block)
        guard info.size % unit == 0 else {
            throw OperationError(
                .invalid, "the plugin wants buffers of whole \(alignment) bytes for a disk of \(info.size) bytes")
        }
        let physical = info.physical_block == 0 ? block : info.physical_block
        guard isPowerOfTwo(physical), physical >= logical, physical <= 1 << 24 else {
            throw OperationError(
                .invalid, "the plugin reports physical blocks of \(physical) bytes and logical ones of \(logical)")
        }
        func limit(_ value: UInt64, _ name: String) throws(OperationError) -> UInt64 {
            if value == 0 { return UInt64(Int64.max) / unit * unit }
            let whole = value / unit * unit
            if whole == 0 {
                throw OperationError(.invalid, "the plugin reports \(name) \(value), less than one block of \(unit)")
            }
            return whole
        }
        let granularity = info.discard_granularity == 0 ? block : max(info.discard_granularity, block)
        guard granularity % logical == 0 || info.caps & Capabilities.discard.rawValue == 0 else {
            throw OperationError(
                .invalid, "the plugin reports a discard granularity of \(granularity) bytes and blocks of \(logical)")
        }
        capabilities = Capabilities(rawValue: info.caps)
        if !capabilities.isDisjoint(with: [.discardSecure, .discardZeroes]), !capabilities.contains(.discard) {
            throw OperationError(.invalid, "the plugin reports a kind of discard, and that it cannot discard")
        }
        size = info.size
        logicalBlock = block
        physicalBlock = max(physical, block)
        memoryAlignment = alignment
        maxTransfer = try limit(info.max_transfer, "max_transfer")
        maxDiscard = try limit(info.max_discard, "max_discard")
        maxWriteZeroes = try limit(info.max_write_zeroes, "max_write_zeroes")
        maxVectors = info.max_iov == 0 ? nil : Int(clamping: info.max_iov)
        maxQueues = Int(max(1, min(info.max_queues, 64)))
        queueDepth = info.queue_depth == 0 ? nil : Int(info.queue_depth)
        discardGranularity = granularity
        discardOffset = info.discard_offset % granularity
    }
}
