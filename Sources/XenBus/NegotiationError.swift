// SPDX-License-Identifier: BSD-2-Clause
// The rules for XenStore keys, and errors that an operator can act on.

/// A key that the other end or the toolstack wrote breaks a rule.
public struct NegotiationError: Error, Equatable, Sendable, CustomStringConvertible {
    /// The rules; each case is one that was broken.
    public enum Rule: Equatable, Sendable {
        /// A mandatory key is missing.
        case missing
        /// Not a decimal number: at least one digit and nothing but digits.
        case notDecimal
        /// A number larger than its type or Xen allows.
        case numberTooLarge(maximum: UInt64)
        /// Not UTF-8, or with control characters.
        case notText
        /// Longer than any meaningful value.
        case tooLong(maximum: Int)
        /// Not a state: one digit, 0 to 8.
        case notAState
        /// Not a path of the form "/local/domain/<frontend-id>/...".
        case notAFrontendPath
        /// Neither "r" nor "w".
        case unknownMode
        /// Not "major:minor" in hexadecimal.
        case notADeviceNumber
        /// Neither an absolute path nor a format and ':' in front.
        case unknownFormatPrefix
        /// Not a format name: at most 32 lower-case letters, digits and '-'.
        case notAFormatName
        /// There is no image: an empty drive.
        case noImage
        /// Neither absolute nor a device below /dev.
        case notAnImagePath
        /// A ring of more pages than the backend offered.
        case ringTooLarge(maximumPages: Int)
        /// A number of ring pages that is not a power of two.
        case ringPagesNotPowerOfTwo
        /// `ring-page-order` and `num-ring-pages` contradict each other.
        case ringSizesContradict
        /// One grant reference for two ring pages.
        case ringReferenceRepeated
        /// Port 0 is not an event channel.
        case noEventChannel
        /// One event channel for two queues.
        case eventChannelRepeated
        /// A ring layout that the backend does not support.
        case unknownProtocol(expected: [RingProtocol])
        /// A frontend that asks for no queue.
        case noQueues
        /// More queues than the backend offered.
        case tooManyQueues(maximum: Int)
    }

    /// The broken rule.
    public let rule: Rule
    /// The key, relative to the frontend's or the backend's node.
    public let key: String
    /// The value as printable ASCII, at most 64 bytes; nil if the key is missing.
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

/// Text that is safe to write to XenStore and to logs.
public enum OperatorText {
    /// `bytes` as printable ASCII with '\' and '"' escaped, at most `limit` bytes; "..." replaces what is cut off.
    public static func escaped(_ bytes: some Sequence<UInt8>, limit: Int) -> String {
        printable(bytes, limit: limit, escaping: [UInt8(ascii: "\\"), UInt8(ascii: "\"")])
    }

    /// A message of a plugin or of the system, safe for a XenStore node: printable ASCII, at most 512 bytes.
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
            // An escape is never split: `whole` is the last boundary that leaves room for "...".
            if text.count <= limit - 3 { whole = text.count }
            if text.count > limit { return String(decoding: text[..<whole], as: UTF8.self) + "..." }
        }
        return String(decoding: text, as: UTF8.self)
    }

    private static func hexDigit(_ value: UInt8) -> UInt8 {
        value < 10 ? UInt8(ascii: "0") + value : UInt8(ascii: "a") + (value - 10)
    }
}
