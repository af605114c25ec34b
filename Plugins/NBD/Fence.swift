// SPDX-License-Identifier: BSD-2-Clause
// After the death of a process: waiting until the server has done all that the process had asked of it.
//
// Its successor does requests again that had no answer. A server that still does the first sending of one of them would write old
// data over new. So nothing is sent before the server has answered, on the connections of the dead process, all that may change the
// disk. They outlive it as descriptors. Which requests these are, and which answers had been received, stands in its log.
//
// What counts as proof, in this order:
// - the answer of each request. Servers answer what they have done.
// - that the server closed the connection, or its system says that there is none (RST): servers close when they end, and end what they
//   do before.
// A request whose process died within the call that sent it may be incomplete, and has no answer then. After two seconds without a
// byte the server is told that nothing follows (shutdown(2)), and closes. A server may close before it has done what it took
// (qemu-nbd), so three more seconds pass. Where answers are encrypted nobody can read them any more: the same, with twenty seconds. A
// process that dies meanwhile has noted when it told the server, for the next one.
// What is no proof: a time that has passed, and the word of this system that it reaches the server no more (ETIMEDOUT). Then the
// guest waits, unless option fence-timeout says how long.
import CGnuTLS
import Glibc
import NBD
import PluginKit

/// Waits for the requests of a process that died.
struct Fence {
    let host: HostDisk
    let server: String
    /// Seconds after which requests count as done where nothing proves it; 0: never.
    let timeout: UInt64
    /// Waits until a socket can be read, or for the whole of some milliseconds where there is none, with what else has to go on
    /// meanwhile; false: the time is over.
    let wait: (_ socket: Int32?, _ milliseconds: UInt64) -> Bool

    private enum Verdict {
        case proven
        /// With the reason.
        case unproven(String)
    }

    /// Returns when nothing of `before` can come any more.
    func wait(for before: Generation) {
        // A connection that nobody has any more.
        let known = before.sockets.map(\.index)
        for index in 0..<FlightLog.mostConnections
        where !known.contains(index) && !before.log.part(index).outstanding.cookies.isEmpty {
            hold("one of its connections is gone")
            break
        }
        for entry in before.sockets {
            if case .unproven(let reason) = settle(before, entry.index, entry.socket) { hold(reason) }
        }
        before.log.isSettled = true
    }

    /// Nobody can tell what the process before had sent: it and xbbd died at once, and its connections with them.
    func waitWithoutConnections() {
        hold("its connections ended with it, as xbbd ended too and no service manager had them")
    }

    private func settle(_ before: Generation, _ index: Int, _ socket: Int32) -> Verdict {
        let part = before.log.part(index)
        let (cookies, isSentWhole) = part.outstanding
        guard !cookies.isEmpty else {
            _ = cgnutls_end(socket)
            return .proven
        }
        if let reason = Self.unreachable(before.log.failure(of: index)) { return .unproven(reason) }
        let isEncrypted = before.log.isEncrypted(index)
        var scan = AnswerScan(outstanding: cookies)
        if !isEncrypted {
            unsafe scan.scanBuffer(UnsafeRawBufferPointer(part.buffer).bytes)
            part.end(all: cookies, but: scan.unanswered)
        }
        var place = 0
        var (silence, isClosing, isTold) = (0, before.log.closing(of: index) != 0, false)
        while isEncrypted || !scan.unanswered.isEmpty {
            guard wait(socket, 1000) else {
                silence += 1
                // The server would close at once where it does not get what it waits for, also in the middle of others' requests.
                if !isClosing, isEncrypted || !isSentWhole, silence >= 2 {
                    before.log.noteClosing(of: index)
                    isClosing = cgnutls_end_sending(socket) == 0
                }
                if !isTold, silence >= 3 {
                    isTold = true
                    host.log(
                        .warning,
                        "\(server) has not yet done \(isEncrypted ? "all" : "\(scan.unanswered.count) of the writes") that the "
                            + "process before had asked of it; the guest waits until it has, as old data could come after new ones"
                    )
                }
                continue
            }
            // Into the log, too: where this process dies, the next one finds there what came.
            place = part.room(behind: place)
            let room = unsafe UnsafeMutableRawBufferPointer(rebasing: part.buffer[place..<place + FlightLog.pieceBytes])
            let count = unsafe recv(socket, room.baseAddress, room.count, cgnutls_now)
            if count > 0 {
                silence = 0
                if !isEncrypted {
                    unsafe scan.append(UnsafeRawBufferPointer(rebasing: part.buffer[place..<place + count]).bytes)
                    part.end(all: cookies, but: scan.unanswered)
                }
                place += count
            } else if count == 0 {
                grace(before, index, isEncrypted)
                return .proven
            } else {
                let code = errno
                if code == EAGAIN || code == EINTR { continue }
                if let reason = Self.unreachable(code) {
                    // The socket says it once.
                    before.log.note(failure: code, of: index)
                    return .unproven(reason)
                }
                grace(before, index, isEncrypted)
                return .proven
            }
        }
        _ = cgnutls_end(socket)
        return .proven
    }

    /// Gives a server that was told to close the time to do what it took before; nothing where it closed by itself.
    private func grace(_ before: Generation, _ index: Int, _ isEncrypted: Bool) {
        let began = before.log.closing(of: index)
        guard began != 0 else { return }
        let seconds: UInt64 = isEncrypted ? 20 : 3
        host.log(
            .warning,
            "\(server) was told to close a connection of the process before, as nobody can tell what it still does there; the guest "
                + "waits for \(seconds) s")
        while FlightLog.now < began &+ seconds { _ = wait(nil, 1000) }
    }

    /// Words for an errno by which a connection ends here without the server having said so.
    private static func unreachable(_ code: Int32) -> String? {
        switch code {
        case ETIMEDOUT: "the server did not answer for so long that the connection was given up"
        case EHOSTUNREACH, ENETUNREACH, EHOSTDOWN, ENETDOWN, ENONET:
            "the network says that the server cannot be reached"
        default: nil
        }
    }

    private func hold(_ reason: String) {
        let words =
            "\(server) may still be doing writes of the process before: \(reason)"
        if timeout > 0 {
            host.log(.warning, "\(words); they count as done in \(timeout) s (option fence-timeout)")
            for _ in 0..<timeout { _ = wait(nil, 1000) }
            return
        }
        host.log(
            .error,
            "\(words); the guest waits; 'xbbctl detach --force' takes the disk away, and it can be attached again when the "
                + "server is sure to do none of them any more (the option fence-timeout says how long that takes)")
        while true { _ = wait(nil, 3_600_000) }
    }
}
