// SPDX-License-Identifier: BSD-2-Clause
// A file descriptor that is closed with its last owner.
import CLinux
import Glibc

/// Owns an open file descriptor.
public final class Descriptor: Sendable {
    /// Its number, valid while this object lives.
    public let raw: Int32

    /// Takes ownership of an open descriptor.
    public init(owning raw: Int32) {
        self.raw = raw
    }

    /// Owns `raw`, or throws the errno of the call that should have made it: `operation` is what was tried.
    public convenience init(_ raw: Int32, _ operation: @autoclosure () -> String) throws(OperationError) {
        if raw < 0 { throw OperationError(errno, operation()) }
        self.init(owning: raw)
    }

    deinit {
        close(raw)
    }

    /// Both ends of a pair of connected Unix sockets, closed on exec. `type` is SOCK_STREAM or SOCK_SEQPACKET, with
    /// SOCK_NONBLOCK if calls on either end are not to wait.
    public static func socketPair(_ type: Int32) throws(OperationError) -> (one: Descriptor, other: Descriptor) {
        var ends: [Int32] = [-1, -1]
        // The kernel fills both elements.
        if unsafe socketpair(AF_UNIX, type | Int32(SOCK_CLOEXEC.rawValue), 0, &ends) != 0 {
            throw OperationError(errno, "make a pair of sockets")
        }
        return (Descriptor(owning: ends[0]), Descriptor(owning: ends[1]))
    }

    /// What a read that must not wait found.
    public enum ReadResult {
        /// These
        case bytes([UInt8])
        /// Nothing yet
        case wouldBlock
        /// The end, or an error
        case ended
    }

    /// Reads what is there, at most `limit` bytes. An error is an end.
    public func readAvailable(limit: Int = 65536) -> ReadResult {
        var code: Int32 = 0
        // The kernel fills as many bytes as it says, and the rest is never looked at.
        let bytes = unsafe [UInt8](unsafeUninitializedCapacity: max(limit, 0)) { buffer, count in
            let result = unsafe read(raw, buffer.baseAddress, buffer.count)
            if result < 0 { code = errno }
            count = max(result, 0)
        }
        if code != 0 {
            errno = code
            return code == EAGAIN || code == EINTR ? .wouldBlock : .ended
        }
        return bytes.isEmpty ? .ended : .bytes(bytes)
    }

    /// Sends as much as the socket takes and gives the number of bytes, or nil where the other end is gone.
    public func sendAvailable(_ bytes: ArraySlice<UInt8>) -> Int? {
        if bytes.isEmpty { return 0 }
        let count = unsafe bytes.withUnsafeBytes { unsafe send(raw, $0.baseAddress, $0.count, Int32(MSG_NOSIGNAL)) }
        if count < 0 { return errno == EAGAIN || errno == EINTR ? 0 : nil }
        return count
    }
}
