// SPDX-License-Identifier: BSD-2-Clause
// Messages between a process and the broker: one SOCK_SEQPACKET packet of 32-bit words each way.
//
// A call is [operation, arguments...], its answer [errno, results...] with descriptors as SCM_RIGHTS. A connection has
// at most one call under way. Everything that a connection holds (slots, maps, ports, a domain made with
// destroyOnExit) is released when it closes, also by kill -9. The broker makes all descriptors and takes none: a
// connection that it was made to hold itself would never end.
import Base
import CLinux
import Glibc
import Synchronization
import Xen

/// The calls to the broker.
enum HypervisorOperation: UInt32 {
    /// [version, domain]: must be the first call. Results: none.
    case hello = 1
    /// [domain or anyDomain, pages, entries, DomainLifetime]. Results: [domain].
    case createDomain
    /// [domain].
    case destroyDomain
    /// [index]: the domain at this place of the list. Results: DomainReport; ENOENT at the end.
    case describeDomain
    /// Become a frontend of the connection's domain. Results: [pages, entries]; memory, grants, active (read-only).
    case join
    /// [count]: grant references for the caller alone. Results: [references...], at least one; ENOSPC if there is none.
    case takeReferences
    /// [count]: frames that follow one another, for the caller alone. Results: [first]; ENOMEM if there are none.
    case takeFrames
    /// [first, count]: frames of takeFrames.
    case giveFrames
    /// [domain]: use a domain's grants. Results: [serial, pages, entries, slot]; memory, grants, active.
    case attach
    /// [serial]: gives the slot back.
    case detach
    /// [serial, writable, references...]. Results: [map number, frames...].
    case map
    /// [map number].
    case unmap
    /// [remote domain]. Results: [port, end]; the channel's page, the eventfd that the port signals.
    case allocateUnbound
    /// Results: the eventfd that all ports bound over this connection signal.
    case openEvents
    /// [remote domain, remote port], after openEvents. Results: [port, end, link]; the channel's page, the peer's eventfd.
    case bindInterdomain
    /// [port].
    case closePort
    /// [port]. Results: [link], and the peer's eventfd if the link is odd.
    case peer
    /// [remote domain]: ports of this domain alone can be bound over this connection from now on.
    case restrictEvents
    /// Answered when all is released that processes held which had ended before the call.
    case settle
}

/// What ends a new domain.
enum DomainLifetime: UInt32 {
    /// Only an explicit call.
    case detached
    /// The connection becomes one of the new domain, which lives until it is destroyed.
    case adopted
    /// The same, and the domain is destroyed when the connection closes.
    case withConnection
}

/// Limits of the protocol.
enum HypervisorProtocol {
    static let version: UInt32 = 1
    static let anyDomain: UInt32 = 0xffff_ffff
    /// DOMID_FIRST_RESERVED of xen/xen.h: greater numbers are no domains.
    static let domainLimit: UInt32 = 0x7ff0
    /// References of one map.
    static let mapLimit = 16384
    /// Words of the longest message.
    static let messageWords = mapLimit + 8
    static let descriptorLimit = 4

    static func socketPath(_ directory: String) -> String { directory + "/hypervisor.sock" }
}

/// An answer of the broker: its words and descriptors.
struct HypervisorAnswer: Sendable {
    let words: [UInt32]
    let descriptors: [Descriptor]

    func word(_ index: Int) -> UInt32 {
        words.indices.contains(index) ? words[index] : 0
    }
}

/// Sends one message; -1 and errno where it fails.
func sendMessage(_ words: [UInt32], _ descriptors: [Int32], over socket: Int32) -> Int {
    unsafe words.withUnsafeBytes { bytes in
        unsafe descriptors.withUnsafeBufferPointer { list in
            unsafe clinux_send_fds(socket, bytes.baseAddress, bytes.count, list.baseAddress, Int32(list.count))
        }
    }
}

/// Receives one message: nil at the end of the connection or where it fails, with errno.
func receiveMessage(_ buffer: inout [UInt32], over socket: Int32) -> HypervisorAnswer? {
    var raw = [Int32](repeating: -1, count: HypervisorProtocol.descriptorLimit)
    var count = Int32(raw.count)
    errno = 0
    let got = unsafe buffer.withUnsafeMutableBytes { bytes in
        unsafe clinux_recv_fds(socket, bytes.baseAddress, bytes.count, &raw, &count)
    }
    if got <= 0 { return nil }
    let descriptors = raw.prefix(Int(count)).map { Descriptor(owning: $0) }
    return HypervisorAnswer(words: Array(buffer.prefix(got / 4)), descriptors: descriptors)
}

/// A connection to the broker; calls are serialised.
final class HypervisorConnection: Sendable {
    let directory: String
    private let socket: Descriptor
    private let buffer = Mutex([UInt32](repeating: 0, count: HypervisorProtocol.messageWords))

    /// Connects as a process of `domain`.
    init(directory: String, domain: DomainID) throws(OperationError) {
        self.directory = directory
        let path = HypervisorProtocol.socketPath(directory)
        let raw = unsafe clinux_unix_connect(path, Int32(SOCK_SEQPACKET.rawValue))
        if raw < 0 { throw OperationError(errno, "connect to \(path)") }
        socket = Descriptor(owning: raw)
        _ = try call(.hello, [HypervisorProtocol.version, UInt32(domain)], for: "join domain \(domain)")
    }

    /// Makes one call and waits for its answer. Throws the errno that the broker gave.
    func call(
        _ operation: HypervisorOperation, _ arguments: [UInt32] = [], for purpose: @autoclosure () -> String
    ) throws(OperationError) -> HypervisorAnswer {
        let raw = socket.raw
        let (answer, failure) = buffer.withLock { buffer -> (HypervisorAnswer?, Int32) in
            if sendMessage([operation.rawValue] + arguments, [], over: raw) < 0 { return (nil, errno) }
            let answer = receiveMessage(&buffer, over: raw)
            return (answer, answer == nil ? (errno == 0 ? ECONNRESET : errno) : 0)
        }
        guard let answer else { throw OperationError(failure, purpose()) }
        let code = Int32(bitPattern: answer.word(0))
        if code != 0 { throw OperationError(code, purpose()) }
        return HypervisorAnswer(words: Array(answer.words.dropFirst()), descriptors: answer.descriptors)
    }
}
