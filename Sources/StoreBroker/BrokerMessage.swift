// SPDX-License-Identifier: BSD-2-Clause
// Messages between a worker and the keeper of its XenStore connection. Both ends are the same program.
internal import Base
import Glibc

/// What a worker asks for. One byte of operation, four of the transaction, the path, a NUL, and a value or token.
struct BrokerRequest: Equatable {
    enum Operation: UInt8 {
        case read = 1
        case write, remove, start, commit, abort, watch, unwatch
        /// Not XenStore: sizes the journal, in bytes of four.
        case reserve
        /// Several keys below the path, which stand in the value with a NUL between them: in one message, as a successor's
        /// guest waits for each of them.
        case readAll
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

/// The values of several keys as they are sent: for each its errno, 0 for success, its length and its bytes.
enum BrokerValues {
    /// The most keys of a message: those of a frontend with a ring of 32 pages, several times over.
    static let mostKeys = 256

    /// As many of the values as a reply has room for.
    static func bytes(_ values: [Result<[UInt8], OperationError>]) -> [UInt8] {
        var bytes: [UInt8] = []
        for value in values {
            let (code, content): (Int32, [UInt8])
            switch value {
            case .success(let read): (code, content) = (0, read)
            case .failure(let error): (code, content) = (error.code == 0 ? EIO : error.code, [])
            }
            // Four bytes of the reply are its own code.
            guard bytes.count + 8 + content.count <= BrokerRequest.capacity - 4 else { return bytes }
            bytes += littleEndian(UInt32(bitPattern: code)) + littleEndian(UInt32(content.count)) + content
        }
        return bytes
    }

    /// The values of `keys`; nil if these are not all of them.
    static func values(
        _ bytes: [UInt8], of keys: [String], below path: String
    ) -> [Result<[UInt8], OperationError>]? {
        var values: [Result<[UInt8], OperationError>] = []
        var rest = bytes[...]
        for key in keys {
            guard rest.count >= 8 else { return nil }
            let code = Int32(bitPattern: number(rest.prefix(4)))
            let count = Int(number(rest.dropFirst(4).prefix(4)))
            rest = rest.dropFirst(8)
            guard rest.count >= count else { return nil }
            values.append(
                code == 0 ? .success(Array(rest.prefix(count))) : .failure(OperationError(code, "read \(path)/\(key)")))
            rest = rest.dropFirst(count)
        }
        return values
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
