// SPDX-License-Identifier: BSD-2-Clause
// What does not end is a state of the disk: it is told, and does not keep the disk from being taken away.
import Base
import CLinux
import Glibc
import Support
import XenBus

extension VBDWorker {
    /// When ``lookForStalls()`` has something to do, in ns of the monotonic clock.
    var lookDeadline: UInt64 {
        if idleRule.isQuiet, isIdle { return .max }
        return disk.canStall || !stalls.isEmpty ? nextLook : .max
    }

    /// Nothing is on its way that could last too long.
    private var isIdle: Bool { disk.isIdle && stalls.isEmpty && mustEndSince == nil && !machine.mustEnd }

    /// Looks now and then for what does not end. A disk that must end and cannot ends with the process.
    func lookForStalls() {
        let now = clinux_monotonic_ns()
        // A successor would answer what this process did not; here nobody waits for data any more.
        if machine.mustEnd, !machine.leavesToSuccessor, mustEndSince == nil {
            for queue in disk.queues { queue.cancel() }
        }
        mustEndSince = machine.mustEnd ? mustEndSince ?? now : nil
        let lastWait = mustEndSince.map { $0 &+ options.stallNanoseconds } ?? .max
        if now < nextLook { return }
        // Often enough that something is told soon after its time, seldom enough that it costs nothing.
        nextLook = now &+ min(max(options.stallNanoseconds / 2, 100_000_000), 5_000_000_000)
        if lastWait > now { nextLook = min(nextLook, lastWait) }
        disk.lookAtRequests(now: now)
        tell(disk.stalls(limit: options.stallNanoseconds, now: now), now)
        if !disk.statistics.isEmpty {
            let throttled = disk.statistics.reduce(0) { $0 &+ $1.value(.throttled_requests) }
            if throttling.begins(with: throttled) { events.emit(.limitReached) }
        }
        if lastWait <= now, let stall = stalls.first { leave(stall, now) }
        if idleRule.look(isIdle: isIdle, taken: disk.requestsTaken) {
            for queue in disk.queues { queue.tellWhenAwake() }
        }
    }

    private func tell(_ found: [Stall], _ now: UInt64) {
        let before = stalls
        stalls = found
        if let stall = found.first, !before.contains(where: { $0.subject == stall.subject }) {
            events.emit(.error, [("text", .string("\(stall.text) for \(stall.seconds(now)) s"))])
            log.error(
                "\(stall.text) for \(stall.seconds(now)) s\(found.count > 1 ? ", and \(found.count - 1) more" : ""); "
                    + "the guest waits; 'xbbctl detach --force' takes the disk away")
        } else if found.isEmpty, let stall = before.first {
            log.info("it goes on after \(stall.seconds(now)) s: \(stall.text) no longer")
        }
        if found.first?.subject != before.first?.subject { publish(found.first) }
    }

    /// Says in XenStore what does not end; also that nothing is left of what a process before this one said.
    func publish(_ stall: Stall?) {
        do throws(OperationError) {
            try nodes.publish(BackendKey.stall, stall?.text)
        } catch {
            log.warning(error.description)
        }
    }

    /// Ends the process with everything that it holds. Its threads may still be in the plugin, and the kernel may still
    /// write to its memory: both end with the process and not before, so nothing is unmapped or closed here. The lock of the
    /// disk is let go after that by the kernel (docs/recovery.md), and a successor does the requests again.
    private func leave(_ stall: Stall, _ now: UInt64) -> Never {
        takeOutput(isLast: true)
        let rest =
            disk.device?.library.isNetwork == true
            ? "; the server may still do it: no other disk should be given this storage before it has" : ""
        log.error("ends without waiting: \(stall.text) for \(stall.seconds(now)) s\(rest)")
        if machine.state == nil && !machine.leavesToSuccessor { nodes.removeErrors() }
        _exit(1)
    }
}
