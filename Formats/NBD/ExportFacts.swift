// SPDX-License-Identifier: BSD-2-Clause
// What a server says of an export, checked and bounded.

/// `NBD_FLAG_…` of the transmission phase.
public struct TransmissionFlags: OptionSet, Sendable, Hashable {
    /// As it was received.
    public let rawValue: UInt16
    /// Flags of a number.
    public init(rawValue: UInt16) { self.rawValue = rawValue }

    /// The other flags mean something.
    public static let hasFlags = TransmissionFlags(rawValue: 1 << 0)
    /// Nothing is written.
    public static let readOnly = TransmissionFlags(rawValue: 1 << 1)
    /// `NBD_CMD_FLUSH` is known.
    public static let flush = TransmissionFlags(rawValue: 1 << 2)
    /// `NBD_CMD_FLAG_FUA` is known.
    public static let forcedAccess = TransmissionFlags(rawValue: 1 << 3)
    /// The storage turns.
    public static let rotational = TransmissionFlags(rawValue: 1 << 4)
    /// `NBD_CMD_TRIM` is known.
    public static let trim = TransmissionFlags(rawValue: 1 << 5)
    /// `NBD_CMD_WRITE_ZEROES` is known.
    public static let writeZeroes = TransmissionFlags(rawValue: 1 << 6)
    /// `NBD_CMD_FLAG_DF` is known.
    public static let dontFragment = TransmissionFlags(rawValue: 1 << 7)
    /// Several connections see the same data, and a flush of one is a flush of all.
    public static let severalConnections = TransmissionFlags(rawValue: 1 << 8)
    /// `NBD_CMD_CACHE` is known.
    public static let cache = TransmissionFlags(rawValue: 1 << 10)
    /// `NBD_CMD_FLAG_FAST_ZERO` is known.
    public static let fastZero = TransmissionFlags(rawValue: 1 << 11)

    /// Flags as they count: without `NBD_FLAG_HAS_FLAGS` they mean nothing, but nobody writes where one forbids it.
    var counted: TransmissionFlags { contains(.hasFlags) ? self : intersection(.readOnly) }
}

/// The sizes of requests that a server wants; those of the specification where it says nothing.
public struct BlockSizes: Sendable, Hashable {
    /// Offsets and lengths are multiples of it, bytes; a power of two from 1 to 4096.
    public let minimum: UInt32
    /// What it likes, bytes; a power of two.
    public let preferred: UInt32
    /// Data of one request at most, bytes; 0xffffffff: it has no bound.
    public let maximumPayload: UInt32

    static let unsaid = BlockSizes(minimum: 1, preferred: 4096, maximumPayload: 1 << 25)

    private init(minimum: UInt32, preferred: UInt32, maximumPayload: UInt32) {
        (self.minimum, self.preferred, self.maximumPayload) = (minimum, preferred, maximumPayload)
    }

    /// What a server sent, checked.
    init(minimum: UInt32, preferred: UInt32, payload: UInt32) throws(HandshakeError) {
        guard minimum.nonzeroBitCount == 1, minimum <= 1 << 16 else {
            throw .broken("its minimum block size of \(minimum) is no power of two up to 65536")
        }
        guard minimum <= 4096 else {
            throw HandshakeError(
                .unsupported,
                "the server wants requests of \(minimum) bytes at least; disks have blocks of 4096 at most")
        }
        guard preferred.nonzeroBitCount == 1, preferred >= minimum else {
            throw .broken("its preferred block size of \(preferred) is no power of two that holds its minimum")
        }
        guard payload >= max(minimum, 512) else {
            throw .broken("its maximum payload of \(payload) bytes holds no block")
        }
        self.init(minimum: minimum, preferred: preferred, maximumPayload: payload)
    }
}

/// An export, as the handshake ended.
public struct ExportFacts: Sendable, Equatable {
    /// Bytes, less than 2^63.
    public let size: UInt64
    /// What the server knows.
    public let flags: TransmissionFlags
    /// The sizes of requests that it wants.
    public let blocks: BlockSizes
    /// Replies are structured.
    public let hasStructuredReplies: Bool
    /// The number of the meta context `base:allocation`; nil: `NBD_CMD_BLOCK_STATUS` must not be sent.
    public let allocationContext: UInt32?

    init(
        size: UInt64, flags: TransmissionFlags, blocks: BlockSizes, isStructured: Bool, allocationContext: UInt32?
    ) throws(HandshakeError) {
        guard size < 1 << 63 else { throw .broken("the export's size of \(size) bytes is 2^63 or more") }
        self.size = size
        self.flags = flags.counted
        self.blocks = blocks
        hasStructuredReplies = isStructured
        self.allocationContext = allocationContext
    }

    /// Bytes of the disk: the size without an end that is no whole sector, or no whole block of the server.
    public var usableSize: UInt64 { size & ~(UInt64(max(blocks.minimum, 512)) - 1) }

    /// Bytes that one read or write has at most, whole sectors and whole blocks: what the server allows, and 32 MiB, which is what
    /// servers have to take that say nothing.
    public var largestTransfer: UInt32 { min(blocks.maximumPayload, 1 << 25) & ~(max(blocks.minimum, 512) - 1) }

    /// Nothing may be written.
    public var isReadOnly: Bool { flags.contains(.readOnly) }

    /// True if another connection leads to what may be the same export: the same size, flags and block sizes.
    public func isSameExport(as other: ExportFacts) -> Bool {
        size == other.size && flags == other.flags && blocks == other.blocks
    }
}
