// SPDX-License-Identifier: BSD-2-Clause
// The socket between xbbd and a worker, by which the open storage outlives the worker.
//
//   xbbd → worker   promised     it will be given the storage of the worker before it (to one that stands by)
//                   keep         that storage (to one that begins)
//                   released     xbbd has closed its copies
//   worker → xbbd   keep         the storage that it has opened; once
//                   release      it is closed for good
package import Base
import CLinux
import Glibc

/// A message of either end.
package enum StorageMessage: Sendable {
    case promised
    case keep(KeptStorage)
    case release
    case released

    /// Its bytes: a word, a NUL, and what belongs to it.
    var bytes: [UInt8] {
        switch self {
        case .promised: Array("promised\0".utf8)
        case .keep(let storage): Array("keep\0".utf8) + storage.manifest
        case .release: Array("release\0".utf8)
        case .released: Array("released\0".utf8)
        }
    }

    var files: [Descriptor] {
        if case .keep(let storage) = self { storage.files } else { [] }
    }

    /// Reads a message of the other end, which may be hostile.
    init?(_ bytes: [UInt8], _ files: [Descriptor]) {
        guard let end = bytes.firstIndex(of: 0) else { return nil }
        let rest = bytes[(end + 1)...]
        switch (String(decoding: bytes[..<end], as: UTF8.self), rest.isEmpty && files.isEmpty) {
        case ("promised", true): self = .promised
        case ("release", true): self = .release
        case ("released", true): self = .released
        case ("keep", false):
            guard let storage = KeptStorage(manifest: rest, files: files) else { return nil }
            self = .keep(storage)
        default: return nil
        }
    }
}

/// One end of the socket. No call waits, except for ``await(milliseconds:)``.
package final class StorageChannel: Sendable {
    /// What a look at the socket found.
    package enum Received: Sendable {
        case message(StorageMessage)
        /// Nothing yet.
        case nothing
        /// What came is no message.
        case invalid
        /// The other end is gone.
        case ended
    }

    /// Bytes of the largest message: the paths of a chain.
    private static let capacity = 256 << 10

    /// The socket.
    package let socket: Descriptor

    /// Takes over an end.
    package init(_ socket: Descriptor) {
        self.socket = socket
    }

    /// Both ends: one for this process, one to be inherited.
    package static func pair() throws(OperationError) -> (own: StorageChannel, other: Descriptor) {
        let ends = try Descriptor.socketPair(Int32(SOCK_SEQPACKET.rawValue | SOCK_NONBLOCK.rawValue))
        return (StorageChannel(ends.one), ends.other)
    }

    /// Sends a message; false if the other end is gone or does not read.
    @discardableResult package func send(_ message: StorageMessage) -> Bool {
        let bytes = message.bytes
        let files = message.files.map(\.raw)
        // Both arrays outlive the call, which reads as many elements as it is told.
        return unsafe bytes.withUnsafeBytes { bytes in
            unsafe clinux_send_descriptors(socket.raw, nil, 0, bytes.baseAddress, bytes.count, files, files.count) == 0
        }
    }

    /// Takes the next message.
    package func receive() -> Received {
        var bytes = [UInt8](repeating: 0, count: Self.capacity)
        var raw = [Int32](repeating: -1, count: KeptStorage.mostImages)
        var rawCount = 0
        // The buffers have the sizes that the call expects.
        let count = unsafe bytes.withUnsafeMutableBytes { bytes in
            unsafe clinux_receive_descriptors(socket.raw, bytes.baseAddress, bytes.count, &raw, &rawCount)
        }
        let files = raw.prefix(rawCount).map { Descriptor(owning: $0) }
        if count < 0 {
            switch errno {
            case EAGAIN: return .nothing
            case EMSGSIZE: return .invalid
            default: return .ended
            }
        }
        if count == 0 { return .ended }
        return StorageMessage(Array(bytes.prefix(count)), files).map { .message($0) } ?? .invalid
    }

    /// Waits for a message, for `milliseconds` at most.
    package func await(milliseconds: Int32) -> Received {
        var entry = pollfd(fd: socket.raw, events: Int16(POLLIN), revents: 0)
        let end = clinux_monotonic_ns() &+ UInt64(max(milliseconds, 0)) * 1_000_000
        var left = milliseconds
        // One element, of a variable that outlives the call.
        while unsafe poll(&entry, 1, left) < 0 && errno == EINTR {
            let now = clinux_monotonic_ns()
            left = now < end ? Int32(clamping: (end - now) / 1_000_000 + 1) : 0
        }
        return receive()
    }
}
