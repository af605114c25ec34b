// SPDX-License-Identifier: BSD-2-Clause
// A listening socket as a service manager hands it to a program.
public import Base
import Glibc

/// A listening socket of this machine alone, and its port.
public func listeningSocket() throws(OperationError) -> (socket: Descriptor, port: UInt16) {
    let file = try Descriptor(socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0), "socket")
    var address = sockaddr_in()
    address.sin_family = sa_family_t(AF_INET)
    address.sin_addr.s_addr = UInt32(0x7f00_0001).bigEndian
    var size = socklen_t(MemoryLayout<sockaddr_in>.size)
    let isListening = withUnsafeMutablePointer(to: &address) { pointer in
        pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) { raw in
            bind(file.raw, raw, size) == 0 && listen(file.raw, 128) == 0 && getsockname(file.raw, raw, &size) == 0
        }
    }
    guard isListening else { throw OperationError(errno, "listen") }
    return (file, UInt16(bigEndian: address.sin_port))
}
