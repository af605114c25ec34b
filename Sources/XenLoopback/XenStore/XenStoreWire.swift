// SPDX-License-Identifier: BSD-2-Clause
// Messages of the XenStore protocol as bytes, both ways (xs_wire.h of Xen).

/// What a client asks for: enum xsd_sockmsg_type.
enum XenStoreRequestType: UInt32, Sendable {
    case control = 0
    case directory = 1
    case read = 2
    case getPermissions = 3
    case watch = 4
    case unwatch = 5
    case transactionStart = 6
    case transactionEnd = 7
    case introduce = 8
    case release = 9
    case getDomainPath = 10
    case write = 11
    case makeDirectory = 12
    case remove = 13
    case setPermissions = 14
    case isDomainIntroduced = 17
    case resume = 18
    case setTarget = 19
    case resetWatches = 21
    case directoryPart = 22

    /// Only the control domain may ask for it.
    var isForControlDomain: Bool {
        switch self {
        case .control, .introduce, .release, .isDomainIntroduced, .resume, .setTarget: true
        default: false
        }
    }

    /// The transaction number in the header has no meaning.
    var ignoresTransaction: Bool { self == .watch || self == .unwatch }
}

/// Why a request was refused; errors travel by their names.
enum XenStoreFailure: String, Error, Sendable {
    case invalid = "EINVAL"
    case accessDenied = "EACCES"
    case exists = "EEXIST"
    case notFound = "ENOENT"
    case noSpace = "ENOSPC"
    case notImplemented = "ENOSYS"
    case busy = "EBUSY"
    case conflict = "EAGAIN"
    case tooBig = "E2BIG"
    case notPermitted = "EPERM"
    case damaged = "EIO"
}

/// A header, struct xsd_sockmsg, and what follows it.
///
///     offset 0  type     offset 4  req_id     offset 8  tx_id     offset 12  len
///
/// All in the byte order of the machine, which is little-endian wherever we run.
struct XenStoreMessage: Equatable, Sendable {
    /// sizeof(struct xsd_sockmsg).
    static let headerByteCount = 16
    /// XENSTORE_PAYLOAD_MAX: a longer payload ends the connection.
    static let maximumPayload = 4096
    /// XS_WATCH_EVENT.
    static let watchEventType: UInt32 = 15
    /// XS_ERROR.
    static let errorType: UInt32 = 16

    var type: UInt32
    var requestID: UInt32
    var transactionID: UInt32
    var payload: [UInt8]

    /// Bytes on the wire.
    var byteCount: Int { Self.headerByteCount + payload.count }

    /// Appends the wire form.
    func serialize(into bytes: inout [UInt8]) {
        for field in [type, requestID, transactionID, UInt32(truncatingIfNeeded: payload.count)] {
            for shift in stride(from: UInt32(0), to: 32, by: 8) {
                bytes.append(UInt8(truncatingIfNeeded: field >> shift))
            }
        }
        bytes.append(contentsOf: payload)
    }
}

/// A header with more than XENSTORE_PAYLOAD_MAX bytes: the stream cannot be followed any further.
struct XenStorePayloadTooLong: Error, Equatable {}

/// Cuts a stream of bytes into messages. Holds at most what was appended and not yet taken.
struct XenStoreMessageDecoder: Sendable {
    private var bytes: [UInt8] = []
    private var start = 0

    /// Bytes that wait.
    var byteCount: Int { bytes.count - start }

    /// Appends bytes as they arrived.
    mutating func append(_ new: ArraySlice<UInt8>) {
        if start > 0 {
            bytes.removeSubrange(..<start)
            start = 0
        }
        bytes.append(contentsOf: new)
    }

    /// The next message; nil until more bytes have arrived.
    mutating func next() throws(XenStorePayloadTooLong) -> XenStoreMessage? {
        guard byteCount >= XenStoreMessage.headerByteCount else { return nil }
        let length = field(3)
        guard length <= UInt32(XenStoreMessage.maximumPayload) else { throw XenStorePayloadTooLong() }
        let end = start + XenStoreMessage.headerByteCount + Int(length)
        guard end <= bytes.count else { return nil }
        let message = XenStoreMessage(
            type: field(0), requestID: field(1), transactionID: field(2),
            payload: Array(bytes[(start + XenStoreMessage.headerByteCount)..<end]))
        start = end
        if start == bytes.count {
            bytes.removeAll(keepingCapacity: bytes.capacity <= 2 * XenStoreMessage.maximumPayload)
            start = 0
        }
        return message
    }

    private func field(_ index: Int) -> UInt32 {
        let offset = start + 4 * index
        return (0..<4).reduce(0) { $0 | UInt32(bytes[offset + $1]) << UInt32(8 * $1) }
    }
}

/// The strings of a payload, each with a NUL behind it. Bytes after the last NUL are left out.
func xenStoreStrings(_ payload: ArraySlice<UInt8>) -> [ArraySlice<UInt8>] {
    var strings: [ArraySlice<UInt8>] = []
    var start = payload.startIndex
    for index in payload.indices where payload[index] == 0 {
        strings.append(payload[start..<index])
        start = index + 1
    }
    return strings
}

/// A decimal number without sign or blanks.
func xenStoreNumber<Number: FixedWidthInteger>(_ digits: ArraySlice<UInt8>, as _: Number.Type) -> Number? {
    guard !digits.isEmpty, digits.allSatisfy({ (UInt8(ascii: "0")...UInt8(ascii: "9")).contains($0) }) else {
        return nil
    }
    return Number(String(decoding: digits, as: UTF8.self))
}
