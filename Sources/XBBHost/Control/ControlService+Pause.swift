// SPDX-License-Identifier: BSD-2-Clause
// Pauses, as they are asked for on the control socket.
import Base
import CLinux
import Support
import Xen
import XenBus

extension ControlService {
    /// The longest pause, in seconds.
    private static var longestPause: Double { 86400 }

    /// Pauses the disk for `seconds` at most, and answers when nothing is in flight and everything that was answered is durable.
    ///
    /// XenStore says so too, and a successor is paused for the rest of the time. A `brief` pause ends with this process, and does
    /// not change one that lasts.
    func pause(_ seconds: String, isBrief: Bool, _ reply: @escaping (JSON) -> Void) {
        guard let seconds = Double(seconds), (0.1...Self.longestPause).contains(seconds) else {
            return reply(problem("a pause has 0.1 to \(Int(Self.longestPause)) seconds"))
        }
        let end = clinux_monotonic_ns() &+ UInt64(seconds * 1e9)
        // A brief one leaves a pause that lasts as it is.
        let keeps = isBrief && disk.isPauseWanted
        if !disk.isPauseWanted { log.info("pausing, for \(seconds) s at most") }
        if !isBrief {
            do throws(OperationError) {
                try nodes.publish(BackendKey.paused, "\(end)")
            } catch {
                return reply(problem("\(error); the disk is not paused"))
            }
        }
        let (disk, events, nodes, log, inFlight) = (disk, events, nodes, log, disk.requestsInFlight)
        disk.pause(until: keeps ? disk.pauseEnd : end) { isPaused in
            let pause = disk.pauseNumber
            guard isPaused else {
                if !keeps { nodes.forgetPause(log) }
                return reply(
                    problem(
                        "the disk was not paused and goes on: of \(inFlight) requests in flight some have no answer"))
            }
            disk.sync { result in
                if case .failure(let error) = result {
                    if keeps { return reply(problem("\(error); the disk stays paused as it was")) }
                    disk.resume()
                    nodes.forgetPause(log)
                    return reply(problem("\(error); the disk is not paused"))
                }
                guard disk.intake == .paused, disk.pauseNumber == pause else {
                    return reply(problem("the pause was over before all was durable; the disk goes on"))
                }
                events.emit(.paused)
                reply(.object([("paused", .bool(true))]))
            }
        }
    }

    /// Seconds until the pause ends by itself; null without one.
    var pauseLeft: JSON {
        guard disk.isPauseWanted else { return .null }
        let now = clinux_monotonic_ns()
        return .integer((max(disk.pauseEnd, now) &- now) / 1_000_000_000)
    }

    private func problem(_ text: String) -> JSON { .object([("error", .string(text))]) }
}
