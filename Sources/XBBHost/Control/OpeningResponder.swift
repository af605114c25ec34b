// SPDX-License-Identifier: BSD-2-Clause
// Answers on the control socket while the control thread waits for a plugin's open().
import Base
import CLinux
import Glibc
import Support

/// Serves the control socket on a thread of its own, from init to ``end()``.
///
/// `@unchecked`: the socket is the thread's between the two, while the owner does not touch it; the other fields are
/// written by init and ``end()``, which are the owner's.
@safe
final class OpeningResponder: @unchecked Sendable {
    private let socket: ControlSocket
    private let path: String
    private let began = clinux_monotonic_ns()
    private let stop: Descriptor
    private var thread: pthread_t?

    /// nil where no thread or descriptor can be had: nobody is answered then until the storage is open.
    init?(_ socket: ControlSocket, opening path: String) {
        self.socket = socket
        self.path = path
        do throws(OperationError) {
            stop = try Descriptor.event()
            thread = try startThread(named: "xbb-opening") { [self] in run() }
        } catch {
            return nil
        }
    }

    /// Ends the thread; the socket is its owner's again.
    func end() {
        guard let thread else { return }
        stop.signal()
        pthread_join(thread, nil)
        self.thread = nil
    }

    private func run() {
        while true {
            var entries = ([stop.raw] + socket.descriptors).map { pollfd(fd: $0, events: Int16(POLLIN), revents: 0) }
            // The array outlives the call, which writes no more than its elements.
            if unsafe poll(&entries, nfds_t(entries.count), -1) < 0 && errno != EINTR { return }
            if entries[0].revents != 0 { return }
            for entry in entries.dropFirst() where entry.revents != 0 {
                socket.serve(entry.fd) { line, reply in reply(answer(line)) }
            }
        }
    }

    private func answer(_ line: String) -> JSON {
        let seconds = (clinux_monotonic_ns() &- began) / 1_000_000_000
        switch line {
        case "ping": return .object([("pid", .integer(Int64(getpid())))])
        case "show":
            return .object([
                ("pid", .integer(Int64(getpid()))), ("stage", .string("opening for \(seconds) s")),
                ("opening_seconds", .integer(seconds)), ("path", .string(path)),
            ])
        default:
            return .object([
                ("error", .string("\(path) is being opened for \(seconds) s; nothing else is answered yet"))
            ])
        }
    }
}
