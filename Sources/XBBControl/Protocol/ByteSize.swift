// SPDX-License-Identifier: BSD-2-Clause
// Sizes of disks as qemu-img takes them.

/// A size, or a difference to one.
public struct ByteSize: Equatable, Sendable {
    private enum Sign: Equatable {
        case none
        case plus
        case minus
    }

    private let sign: Sign
    private let bytes: UInt64

    /// Reads "20G", "+1G", "-512M" or bytes: k, M, G, T, P and E are powers of 1024.
    public init(parsing text: String) throws(ControlError) {
        let problem = ControlError(
            "'\(text)' is no size: expected bytes, or a number with k, M, G, T, P or E, such as 20G, +1G or -512M",
            status: .usage)
        var digits = text[...]
        switch digits.first {
        case "+": sign = .plus
        case "-": sign = .minus
        default: sign = .none
        }
        if sign != .none { digits = digits.dropFirst() }
        var factor: UInt64 = 1
        if let last = digits.last, let index = Array("kMGTPE").firstIndex(of: last == "K" ? "k" : last) {
            factor = 1 << (10 * UInt64(index + 1))
            digits = digits.dropLast()
        }
        guard let value = DecimalText.number(digits) else { throw problem }
        let (bytes, overflows) = value.multipliedReportingOverflow(by: factor)
        guard bytes > 0 || overflows else { throw problem }
        guard !overflows, bytes <= UInt64(Int64.max) else {
            throw ControlError("'\(text)' is more than a file can have: the limit is 8E less one byte", status: .usage)
        }
        self.bytes = bytes
    }

    /// The new size of a disk of `size` bytes, whole sectors of 512 bytes. Throws where there is no such size.
    public func applied(to size: UInt64) throws(ControlError) -> UInt64 {
        let (wanted, overflows) =
            switch sign {
            case .none: (bytes, false)
            case .plus: size.addingReportingOverflow(bytes)
            case .minus: size.subtractingReportingOverflow(bytes)
            }
        guard !overflows, wanted > 0, wanted <= UInt64(Int64.max) - 511 else {
            throw ControlError("a disk of \(size) bytes cannot get that size", status: .usage)
        }
        return (wanted + 511) & ~511
    }
}
