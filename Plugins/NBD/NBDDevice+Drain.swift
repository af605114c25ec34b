// SPDX-License-Identifier: BSD-2-Clause
// A disk that is paused: what was answered is made durable at the server, as a snapshot there may be what the pause is for.
import Glibc
import NBD
import PluginKit

extension NBDDevice: DrainingDisk {
    /// How long a server may take for the flush, in ns.
    private static var patience: UInt64 { 30_000_000_000 }

    /// What a flush on the thread of a queue came to.
    private final class Answer: @unchecked Sendable {
        let monitor = Monitor()
        var error: Int32?
    }

    func beginDrain() throws(PluginError) {
        guard let facts, facts.flags.contains(.flush), !facts.isReadOnly else { return }
        // One flush is for all connections of a server that allows several.
        if let inquiry { return try inquiry.flush() }
        guard let queue = firstQueue else {
            guard let link = firstLink else { return }
            return try Inquiry(link, facts).flush()
        }
        let answer = Answer()
        queue.flush { error in
            answer.monitor.locked { answer.error = error }
            answer.monitor.broadcast()
        }
        let end = Monitor.now &+ Self.patience
        answer.monitor.lock()
        defer { answer.monitor.unlock() }
        while answer.error == nil {
            guard Monitor.now < end else {
                throw PluginError(ETIMEDOUT, "\(server) has not flushed within \(Self.patience / 1_000_000_000) s")
            }
            answer.monitor.wait(until: end)
        }
        if let error = answer.error, error != 0 { throw PluginError(system: "\(server): flush", error) }
    }

    func endDrain() {}
}
