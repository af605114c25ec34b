// SPDX-License-Identifier: BSD-2-Clause
// Messages between a worker and the keeper of its XenStore connection. Both ends are the same program.

/// What a worker asks for. One byte of operation, four of the transaction, the path, a NUL, and a value or token.
struct BrokerRequest: Equatable {
    enum Operation: UInt8 {
        case read = 1
        case write, remove, start, commit, abort, watch, unwatch
        /// Not XenStore: sizes the journal, in bytes of four.
        case reserve
    }

    var operation: Operation
    var transaction: UInt32 = 0
    var path = ""
    /// The value of a write, the token of a watch.
    var value: [UInt8] = []

    /// Bytes of the longest message: a path and a value of XenStore.
    static let capacity = 8192

    var bytes: [UInt8] {
        [operation.rawValue] + littleEndian(transaction) + Array(path.utf8) + [0] + value
    }

    init(_ operation: Operation, _ transaction: UInt32 = 0, path: String = "", value: [UInt8] = []) {
        self.operation = operation
        self.transaction = transaction
        self.path = path
        self.value = value
    }

    /// Reads what a worker has sent, which may be hostile; nil if it is no request.
    init?(_ bytes: ArraySlice<UInt8>) {
        guard let first = bytes.first, let operation = Operation(rawValue: first), bytes.count > 5,
            let end = bytes.dropFirst(5).firstIndex(of: 0),
            let path = String(validating: bytes[(bytes.startIndex + 5)..<end], as: UTF8.self)
        else { return nil }
        self.init(
            operation, number(bytes.dropFirst().prefix(4)), path: path, value: Array(bytes[(end + 1)...]))
    }
}

/// What the keeper answers: an errno, 0 for success, and the value of a read, the number of a transaction, or one byte that
/// says whether a commit took effect.
struct BrokerReply: Equatable {
    var code: Int32
    var value: [UInt8] = []

    var bytes: [UInt8] { littleEndian(UInt32(bitPattern: code)) + value }

    init(_ code: Int32, _ value: [UInt8] = []) {
        self.code = code
        self.value = value
    }

    init?(_ bytes: ArraySlice<UInt8>) {
        guard bytes.count >= 4 else { return nil }
        self.init(Int32(bitPattern: number(bytes.prefix(4))), Array(bytes.dropFirst(4)))
    }
}

/// Four bytes.
func littleEndian(_ number: UInt32) -> [UInt8] {
    (0..<4).map { UInt8(truncatingIfNeeded: number >> (8 * $0)) }
}

/// The number of up to four bytes.
func number(_ bytes: ArraySlice<UInt8>) -> UInt32 {
    bytes.reversed().reduce(0) { $0 << 8 | UInt32($1) }
}
