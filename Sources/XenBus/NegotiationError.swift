// SPDX-License-Identifier: BSD-2-Clause
// What can be wrong with a XenStore key, one rule each, said so that an operator can act on it.

/// A key that the other end or the toolstack wrote breaks a rule.
public struct NegotiationError: Error, Equatable, Sendable, CustomStringConvertible {
    /// The rules.
    public enum Rule: Equatable, Sendable {
        /// A mandatory key is not there.
        case missing
        /// Digits only, at least one.
        case notDecimal
        /// A number above what its type or Xen can hold.
        case numberTooLarge(maximum: UInt64)
        /// UTF-8 without control characters.
        case notText
        /// Longer than any sensible value.
        case tooLong(maximum: Int)
        /// One digit, 0 to 8.
        case notAState
        /// A path other than "/local/domain/<frontend-id>/...".
        case notAFrontendPath
        /// Neither "r" nor "w".
        case unknownMode
        /// Not "major:minor" in hexadecimal.
        case notADeviceNumber
        /// Neither an absolute path nor a format and ':' in front.
        case unknownFormatPrefix
        /// Small letters, digits and '-', at most 32.
        case notAFormatName
        /// An empty drive.
        case noImage
        /// Neither absolute nor a device below /dev.
        case notAnImagePath
        /// A ring of more pages than the backend offered.
        case ringTooLarge(maximumPages: Int)
        /// A number of ring pages that is no power of two.
        case ringPagesNotPowerOfTwo
        /// `ring-page-order` and `num-ring-pages` disagree.
        case ringSizesContradict
        /// One grant reference for two ring pages.
        case ringReferenceRepeated
        /// Port 0 is no event channel.
        case noEventChannel
        /// One event channel for two queues.
        case eventChannelRepeated
        /// A ring layout that the backend does not speak.
        case unknownProtocol(expected: [RingProtocol])
        /// A frontend that wants no queue.
        case noQueues
        /// More queues than the backend offered.
        case tooManyQueues(maximum: Int)
    }

    /// The broken rule.
    public let rule: Rule
    /// The key, relative to the frontend's or the backend's node.
    public let key: String
    /// The value as printable ASCII of at most 64 bytes; nil where the key is missing.
    public let value: String?

    /// `key` breaks `rule` with `value`.
    public init(_ rule: Rule, key: String, value: [UInt8]? = nil) {
        self.rule = rule
        self.key = key
        self.value = value.map { OperatorText.escaped($0, limit: 64) }
    }

    /// One line for the operator: the key, its value, and what is expected.
    public var description: String {
        guard let value else { return "\(key) is missing: \(expectation)" }
        return "\(key) is \"\(value)\": \(expectation)"
    }

    private var expectation: String {
        switch rule {
        case .missing: "the key is mandatory"
        case .notDecimal: "expected a decimal number without sign or spaces"
        case .numberTooLarge(let maximum): "expected at most \(maximum)"
        case .notText: "expected UTF-8 without control characters"
        case .tooLong(let maximum): "expected at most \(maximum) bytes"
        case .notAState: "expected a XenBus state, 0 to 8"
        case .notAFrontendPath: "expected /local/domain/<frontend-id>/ and a path below"
        case .unknownMode: "expected r or w"
        case .notADeviceNumber: "expected major:minor in hexadecimal"
        case .unknownFormatPrefix:
            "expected an absolute path, or a format of at most 32 small letters, digits and '-', ':' and a location"
        case .notAFormatName: "expected at most 32 small letters, digits and '-'"
        case .noImage: "expected an image, an empty drive is not served"
        case .notAnImagePath: "expected an absolute path, or a device below /dev without '..'"
        case .ringTooLarge(let maximum): "expected a ring of at most \(maximum) pages"
        case .ringPagesNotPowerOfTwo: "expected a power of two"
        case .ringSizesContradict: "expected the size that ring-page-order gives"
        case .ringReferenceRepeated: "expected a grant reference of its own for every ring page"
        case .noEventChannel: "expected an event channel, and port 0 is none"
        case .eventChannelRepeated: "expected an event channel of its own for every queue"
        case .unknownProtocol(let expected):
            "expected one of \(expected.map(\.rawValue).joined(separator: ", "))"
        case .noQueues: "expected at least 1 queue"
        case .tooManyQueues(let maximum): "expected at most \(maximum) queues"
        }
    }
}

/// Text that goes to XenStore and to logs.
public enum OperatorText {
    /// `bytes` as printable ASCII with '\' and '"' escaped, at most `limit` bytes; "..." stands for what is cut off.
    public static func escaped(_ bytes: some Sequence<UInt8>, limit: Int) -> String {
        printable(bytes, limit: limit, escaping: [UInt8(ascii: "\\"), UInt8(ascii: "\"")])
    }

    /// A message of a plugin or of the system, made fit for a node: printable ASCII, at most 512 bytes.
    public static func message(_ text: String) -> String {
        printable(text.utf8, limit: 512, escaping: [])
    }

    private static func printable(_ bytes: some Sequence<UInt8>, limit: Int, escaping: [UInt8]) -> String {
        var text: [UInt8] = []
        var whole = 0
        for byte in bytes {
            switch byte {
            case _ where escaping.contains(byte): text += [UInt8(ascii: "\\"), byte]
            case 0x20...0x7e: text.append(byte)
            default: text += [UInt8(ascii: "\\"), UInt8(ascii: "x"), hexDigit(byte >> 4), hexDigit(byte & 15)]
            }
            // An escape is never cut in two: `whole` is the last end after which "..." still has room.
            if text.count <= limit - 3 { whole = text.count }
            if text.count > limit { return String(decoding: text[..<whole], as: UTF8.self) + "..." }
        }
        return String(decoding: text, as: UTF8.self)
    }

    private static func hexDigit(_ value: UInt8) -> UInt8 {
        value < 10 ? UInt8(ascii: "0") + value : UInt8(ascii: "a") + (value - 10)
    }
}
