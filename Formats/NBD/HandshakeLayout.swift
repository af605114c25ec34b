// SPDX-License-Identifier: BSD-2-Clause
// The messages of the handshake: numbers of the specification, requests as bytes, replies out of bytes.

/// Numbers of the handshake.
enum HandshakeNumber {
    /// `INIT_PASSWD`, "NBDMAGIC".
    static let greeting: UInt64 = 0x4e42_444d_4147_4943
    /// `IHAVEOPT`: of newstyle servers, and of each option.
    static let options: UInt64 = 0x4948_4156_454f_5054
    /// `cliserv_magic`: of oldstyle servers.
    static let oldstyle: UInt64 = 0x0000_4202_8186_1253
    /// Of each reply to an option.
    static let reply: UInt64 = 0x0003_e889_0455_65a9
    /// `NBD_FLAG_FIXED_NEWSTYLE`, and the client's answer.
    static let fixedNewstyle: UInt16 = 1 << 0
    /// `NBD_FLAG_NO_ZEROES`, and the client's answer.
    static let noZeroes: UInt16 = 1 << 1
    /// `NBD_INFO_EXPORT`
    static let exportInformation: UInt16 = 0
    /// `NBD_INFO_BLOCK_SIZE`
    static let blockInformation: UInt16 = 3
    /// Zeroes behind the facts of older servers, bytes.
    static let padding = 124
    /// The meta context that says what is allocated.
    static let allocation = Array("base:allocation".utf8)
}

/// `NBD_OPT_…`
enum HandshakeOption: UInt32 {
    case exportName = 1
    case abort = 2
    case startTLS = 5
    case go = 7
    case structuredReply = 8
    case setMetaContext = 10

    /// The bytes of an option with its data.
    func request(_ data: [UInt8] = []) -> [UInt8] {
        HandshakeNumber.options.wire + rawValue.wire + UInt32(truncatingIfNeeded: data.count).wire + data
    }
}

/// What a server answers to an option.
enum OptionAnswer {
    /// `NBD_REP_ACK`
    case acknowledged
    /// `NBD_REP_INFO`
    case information
    /// `NBD_REP_META_CONTEXT`
    case metaContext
    /// `NBD_REP_ERR_…`
    case refused(UInt32)

    static let unsupported: UInt32 = 1 << 31 | 1
    static let policy: UInt32 = 1 << 31 | 2
    static let invalid: UInt32 = 1 << 31 | 3
    static let platform: UInt32 = 1 << 31 | 4
    static let wantsTLS: UInt32 = 1 << 31 | 5
    static let unknownExport: UInt32 = 1 << 31 | 6
    static let shutdown: UInt32 = 1 << 31 | 7
    static let wantsBlockSize: UInt32 = 1 << 31 | 8
    static let tooBig: UInt32 = 1 << 31 | 9

    /// nil: a type that no option of ours is answered with.
    init?(_ type: UInt32) {
        switch type {
        case 1: self = .acknowledged
        case 3: self = .information
        case 4: self = .metaContext
        case 0x8000_0000...: self = .refused(type)
        default: return nil
        }
    }

    /// What an error of a server means.
    static func words(ofError type: UInt32) -> String {
        switch type {
        case unsupported: "it does not know the option"
        case policy: "its configuration forbids it"
        case invalid: "it takes the option for invalid"
        case platform: "its platform has no support for it"
        case wantsTLS: "it wants TLS"
        case unknownExport: "it has no such export"
        case shutdown: "it is being shut down"
        case wantsBlockSize: "it wants to tell its block sizes"
        case tooBig: "it takes the option for too large"
        default: "error \(type & ~(1 << 31))"
        }
    }
}

extension FixedWidthInteger {
    /// The bytes of the number, the most significant first.
    var wire: [UInt8] {
        (0..<Self.bitWidth / 8).map { UInt8(truncatingIfNeeded: self >> (Self.bitWidth - 8 - $0 * 8)) }
    }
}

/// Bytes that were received and not yet read. Nothing behind their end is read.
struct Received {
    private var bytes: [UInt8] = []
    /// Bytes that are there.
    var count: Int { bytes.count }

    mutating func append(_ new: RawSpan) {
        bytes.reserveCapacity(bytes.count + new.byteCount)
        for index in 0..<new.byteCount { bytes.append(new.byte(index)) }
    }

    /// Takes so many bytes off; nil: they are not all there.
    mutating func take(_ count: Int) -> [UInt8]? {
        guard bytes.count >= count else { return nil }
        defer { bytes.removeFirst(count) }
        return Array(bytes.prefix(count))
    }

    /// A number at an offset; 0 behind the end.
    func number<Number: FixedWidthInteger>(_ offset: Int, _ type: Number.Type = Number.self) -> Number {
        bytes.number(offset)
    }
}

extension [UInt8] {
    /// A big-endian number at an offset; bytes behind the end are 0.
    func number<Number: FixedWidthInteger>(_ offset: Int, _ type: Number.Type = Number.self) -> Number {
        let size = Number.bitWidth / 8
        return (offset..<offset + size).reduce(0) { found, index in
            found << 8 | (indices.contains(index) ? Number(truncatingIfNeeded: self[index]) : 0)
        }
    }
}
