// SPDX-License-Identifier: BSD-2-Clause
// Typed reads of keys below one XenStore node; every value is untrusted.

/// Reads keys relative to one node and checks their values. It keeps no state and never traps.
struct NodeReader {
    /// Returns the value of a key, or nil if there is none.
    let value: (_ key: String) -> [UInt8]?

    /// The longest value that XenStore can carry.
    static let maximumTextByteCount = 4096

    /// A decimal number; nil if the key is missing.
    func number(_ key: String, maximum: UInt64 = UInt64(UInt32.max)) throws(NegotiationError) -> UInt64? {
        guard let bytes = value(key) else { return nil }
        return try Self.decimal(bytes, key: key, maximum: maximum)
    }

    /// A mandatory number.
    func requiredNumber(_ key: String, maximum: UInt64 = UInt64(UInt32.max)) throws(NegotiationError) -> UInt64 {
        guard let number = try number(key, maximum: maximum) else { throw NegotiationError(.missing, key: key) }
        return number
    }

    /// A flag: zero is false, any other 32-bit number is true (blkif.h says "non-zero").
    func flag(_ key: String, default: Bool) throws(NegotiationError) -> Bool {
        guard let number = try number(key) else { return `default` }
        return number != 0
    }

    /// Text; nil if the key is missing.
    func text(_ key: String, maximum: Int = NodeReader.maximumTextByteCount) throws(NegotiationError) -> String? {
        guard let bytes = value(key) else { return nil }
        guard bytes.count <= maximum else { throw NegotiationError(.tooLong(maximum: maximum), key: key, value: bytes) }
        guard bytes.allSatisfy({ $0 >= 0x20 && $0 != 0x7f }), let text = String(validating: bytes, as: UTF8.self)
        else { throw NegotiationError(.notText, key: key, value: bytes) }
        return text
    }

    /// Mandatory text.
    func requiredText(
        _ key: String, maximum: Int = NodeReader.maximumTextByteCount
    ) throws(NegotiationError) -> String {
        guard let text = try text(key, maximum: maximum) else { throw NegotiationError(.missing, key: key) }
        return text
    }

    /// Parses a decimal number: digits only, at most 20 of them, at most `maximum`.
    static func decimal(_ bytes: [UInt8], key: String, maximum: UInt64) throws(NegotiationError) -> UInt64 {
        guard !bytes.isEmpty, bytes.allSatisfy({ (UInt8(ascii: "0")...UInt8(ascii: "9")).contains($0) })
        else { throw NegotiationError(.notDecimal, key: key, value: bytes) }
        let tooLarge = NegotiationError(.numberTooLarge(maximum: maximum), key: key, value: bytes)
        guard bytes.count <= 20 else { throw tooLarge }
        var number: UInt64 = 0
        for byte in bytes {
            let (product, overflowed) = number.multipliedReportingOverflow(by: 10)
            let (sum, carried) = product.addingReportingOverflow(UInt64(byte - UInt8(ascii: "0")))
            guard !overflowed, !carried else { throw tooLarge }
            number = sum
        }
        guard number <= maximum else { throw tooLarge }
        return number
    }
}
