// SPDX-License-Identifier: BSD-2-Clause
// Requests of the transmission phase as bytes.

/// `NBD_CMD_FLAG_…`
public struct CommandFlags: OptionSet, BitwiseCopyable, Sendable, Hashable {
    /// As it is sent.
    public let rawValue: UInt16
    /// Flags of a number.
    @inlinable public init(rawValue: UInt16) { self.rawValue = rawValue }

    /// The data are on stable storage before the answer.
    @inlinable public static var forcedAccess: CommandFlags { CommandFlags(rawValue: 1 << 0) }
    /// Of zeroes: they get storage.
    @inlinable public static var noHole: CommandFlags { CommandFlags(rawValue: 1 << 1) }
    /// Of a read: its data come in one chunk.
    @inlinable public static var dontFragment: CommandFlags { CommandFlags(rawValue: 1 << 2) }
    /// Of a block status: one extent is enough.
    @inlinable public static var oneExtent: CommandFlags { CommandFlags(rawValue: 1 << 3) }
    /// Of zeroes: an error where they are not faster than a write.
    @inlinable public static var fastZero: CommandFlags { CommandFlags(rawValue: 1 << 4) }
}

/// A request. The data of a write follow its bytes.
public struct Command: BitwiseCopyable, Sendable {
    /// `NBD_CMD_…`
    public enum Kind: UInt16, BitwiseCopyable, Sendable {
        /// Data are wanted.
        case read = 0
        /// Data follow.
        case write = 1
        /// The end: it is not answered, and nothing follows it.
        case disconnect = 2
        /// What was written is on stable storage before the answer.
        case flush = 3
        /// The data are not needed any more.
        case trim = 4
        /// The data may be read soon.
        case cache = 5
        /// Zeroes, which are not sent.
        case writeZeroes = 6
        /// What is allocated.
        case blockStatus = 7
    }

    /// Bytes of a request without data.
    @inlinable public static var byteCount: Int { 28 }
    /// `NBD_REQUEST_MAGIC`
    @inlinable static var magic: UInt32 { 0x2560_9513 }

    /// What is asked for.
    public let kind: Kind
    /// How.
    public let flags: CommandFlags
    /// What the answer will say.
    public let cookie: UInt64
    /// Bytes of the export.
    public let offset: UInt64
    /// Bytes.
    public let length: UInt32

    /// A request; of ``Kind/disconnect`` and ``Kind/flush`` offset and length are 0.
    @inlinable @inline(__always)
    public init(_ kind: Kind, flags: CommandFlags = [], cookie: UInt64, offset: UInt64 = 0, length: UInt32 = 0) {
        (self.kind, self.flags, self.cookie, self.offset, self.length) = (kind, flags, cookie, offset, length)
    }

    /// Writes the 28 bytes of the request to the beginning of `bytes`, which has room for them.
    @inlinable @inline(__always)
    public func encode(into bytes: inout MutableRawSpan) {
        bytes.storeBytes(of: Self.magic.bigEndian, toByteOffset: 0, as: UInt32.self)
        bytes.storeBytes(of: flags.rawValue.bigEndian, toByteOffset: 4, as: UInt16.self)
        bytes.storeBytes(of: kind.rawValue.bigEndian, toByteOffset: 6, as: UInt16.self)
        bytes.storeBytes(of: cookie.bigEndian, toByteOffset: 8, as: UInt64.self)
        bytes.storeBytes(of: offset.bigEndian, toByteOffset: 16, as: UInt64.self)
        bytes.storeBytes(of: length.bigEndian, toByteOffset: 24, as: UInt32.self)
    }

    /// The same in memory that the caller keeps, at least 28 bytes.
    @inlinable @inline(__always)
    @unsafe public func encode(to buffer: UnsafeMutableRawBufferPointer) {
        var bytes = unsafe buffer.mutableBytes
        encode(into: &bytes)
    }
}
