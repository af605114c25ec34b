// SPDX-License-Identifier: BSD-2-Clause
// System calls on Unix stream sockets, none of which blocks.
import Base
import CLinux
import Glibc
import Xen

/// A socket, closed with its last reference.
///
/// Unsafe code here passes buffers with their lengths to system calls.
final class XenStoreSocket: Sendable {
    let descriptor: Int32

    private init(adopting descriptor: Int32) {
        self.descriptor = descriptor
    }

    deinit {
        close(descriptor)
    }

    /// The result of an attempt to send or receive.
    enum Outcome {
        case bytes(Int)
        case wouldBlock
        /// The other side is gone.
        case ended
    }

    /// Listens at `path`, accessible to the user only. Replaces a socket that a dead server left there.
    ///
    /// Throws EADDRINUSE if a server listens there or the path is not a socket, ENAMETOOLONG, and the errors of
    /// bind(2).
    static func listening(at path: String) throws(OperationError) -> XenStoreSocket {
        let type = Int32(SOCK_STREAM.rawValue)
        var descriptor = unsafe clinux_unix_listen(path, type, 128)
        if descriptor < 0 && errno == EADDRINUSE {
            guard isAbandoned(path) else { throw OperationError(EADDRINUSE, "listen at \(path)") }
            _ = unsafe unlink(path)
            descriptor = unsafe clinux_unix_listen(path, type, 128)
        }
        guard descriptor >= 0 else { throw OperationError(errno, "listen at \(path)") }
        _ = unsafe chmod(path, 0o600)
        return XenStoreSocket(adopting: descriptor)
    }

    /// The next client; nil if none is waiting. Throws EMFILE and the like.
    func accept() throws(OperationError) -> XenStoreSocket? {
        while true {
            let client = clinux_accept(descriptor)
            if client >= 0 { return XenStoreSocket(adopting: client) }
            switch errno {
            case EINTR, ECONNABORTED: continue
            case EAGAIN: return nil
            default: throw OperationError(errno, "accept XenStore client")
            }
        }
    }

    /// Reads what is there into `buffer`.
    func receive(into buffer: inout [UInt8]) -> Outcome {
        while true {
            let count = unsafe buffer.withUnsafeMutableBytes { bytes in
                unsafe recv(descriptor, bytes.baseAddress, bytes.count, 0)
            }
            if count > 0 { return .bytes(count) }
            if count == 0 { return .ended }
            if errno == EAGAIN { return .wouldBlock }
            if errno != EINTR { return .ended }
        }
    }

    /// Writes the first part of `bytes`, which must not be empty.
    func send(_ bytes: [UInt8]) -> Outcome {
        while true {
            let count = unsafe bytes.withUnsafeBytes { bytes in
                unsafe Glibc.send(descriptor, bytes.baseAddress, bytes.count, Int32(MSG_NOSIGNAL))
            }
            if count > 0 { return .bytes(count) }
            if count < 0 && errno == EINTR { continue }
            return count < 0 && errno == EAGAIN ? .wouldBlock : .ended
        }
    }

    /// True if `path` is a socket that nobody listens on.
    private static func isAbandoned(_ path: String) -> Bool {
        var status = stat()
        guard unsafe lstat(path, &status) == 0, status.st_mode & S_IFMT == S_IFSOCK else { return false }
        let probe = unsafe clinux_unix_connect(path, Int32(SOCK_STREAM.rawValue) | Int32(SOCK_NONBLOCK.rawValue))
        if probe >= 0 {
            close(probe)
            return false
        }
        return errno == ECONNREFUSED
    }
}
