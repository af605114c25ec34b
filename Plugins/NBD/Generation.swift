// SPDX-License-Identifier: BSD-2-Clause
// The connections of a process, and what it noted of them, as they go to the process after it.
import CGnuTLS
import Glibc
import PluginKit

/// The sockets of a process that serves a disk, or has served it, and its log of requests.
///
/// `@unchecked Sendable`: open() and start() alone use it, one after the other.
final class Generation: @unchecked Sendable {
    /// The log.
    let log: FlightLog
    /// Sockets by the number of their connection.
    let sockets: [(index: Int, socket: Int32)]

    /// Where its numbers begin. Each has half of those that the host has for kept files: while one process waits for the requests of
    /// the one before, both are kept.
    let base: UInt32
    static let bases: [UInt32] = [0, 16]

    /// Takes the sockets over.
    init(_ log: FlightLog, _ sockets: [(Int, Int32)], base: UInt32) {
        (self.log, self.sockets, self.base) = (log, sockets.map { (index: $0.0, socket: $0.1) }, base)
    }

    deinit { for entry in sockets { close(entry.socket) } }

    /// Ends the connections, for all who have copies of them.
    func end() { for entry in sockets { _ = cgnutls_end(entry.socket) } }

    /// What the process before has kept under the numbers from `base` on; nil: nothing.
    static func inherited(_ opening: Opening, base: UInt32) throws(PluginError) -> Generation? {
        guard let file = opening.kept(as: base) else { return nil }
        // Of another version: one that ended in order has left nothing.
        guard let log = try FlightLog.inherited(file) else { return nil }
        let sockets = (0..<FlightLog.mostConnections).compactMap { index in
            opening.kept(as: base + 1 + UInt32(index)).map { (index, $0) }
        }
        return Generation(log, sockets, base: base)
    }

    /// Keeps all of it for the process after this one.
    ///
    /// - Returns: false where the host keeps nothing.
    func keep(_ opening: Opening) throws(PluginError) -> Bool {
        guard try opening.keep(log.file, as: base) else { return false }
        for entry in sockets { try opening.keep(entry.socket, as: base + 1 + UInt32(entry.index)) }
        return true
    }
}
