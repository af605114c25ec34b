// SPDX-License-Identifier: BSD-2-Clause
// The one place where the control thread sleeps.
import Base
import CLinux
import Glibc
import Support
import XenBus

/// What the control thread waits for: XenStore, the mailbox, signals, the control socket, a timer.
struct WorkerLoop {
    /// A descriptor that can be read.
    enum Ready {
        case store
        /// XenStore's connection has ended.
        case storeEnd
        case mailbox
        case signals
        /// What is printed on standard error.
        case output
        /// This one of the control socket's.
        case control(Int32)
    }

    /// Where queues and plugins leave messages.
    let mailbox: Mailbox
    /// A signalfd with SIGTERM and SIGINT, or -1.
    let signals: Int32
    /// What libraries print on standard error, if this process reads it.
    let output: CapturedOutput?
    /// In ns of the monotonic clock.
    private var timer: UInt64?

    init(mailbox: Mailbox, signals: Int32, output: CapturedOutput?) {
        self.mailbox = mailbox
        self.signals = signals
        self.output = output
    }

    /// There is one timer; ``takeTimer()`` is true when it has fired.
    mutating func startTimer(milliseconds: Int) {
        timer = clinux_monotonic_ns() &+ UInt64(max(milliseconds, 0)) &* 1_000_000
    }

    /// True once after the timer's time has come.
    mutating func takeTimer() -> Bool {
        guard let timer, clinux_monotonic_ns() >= timer else { return false }
        self.timer = nil
        return true
    }

    /// Sleeps until something can be read, the timer's time has come, or `deadline` in ns of the monotonic clock.
    ///
    /// `store` is XenStore's descriptor, and `storeEnd` one that hangs up with it, nil where it is not to be looked at;
    /// `control` those of the control socket.
    func wait(
        store: Int32?, storeEnd: Int32?, control: [Int32], until deadline: UInt64
    ) throws(OperationError) -> [Ready] {
        var sources: [(descriptor: Int32, ready: Ready)] = [(mailbox.descriptor, .mailbox), (signals, .signals)]
        if let store { sources.insert((store, .store), at: 0) }
        if let output { sources.append((output.descriptor, .output)) }
        sources += control.map { ($0, .control($0)) }
        sources.removeAll { $0.descriptor < 0 }
        var entries = sources.map { pollfd(fd: $0.descriptor, events: Int16(POLLIN), revents: 0) }
        if let storeEnd {
            sources.append((storeEnd, .storeEnd))
            entries.append(pollfd(fd: storeEnd, events: 0, revents: 0))
        }
        // The array outlives the call, which writes no more than its elements.
        let count = unsafe poll(&entries, nfds_t(entries.count), timeout(until: deadline))
        if count < 0 && errno != EINTR { throw OperationError(errno, "wait for events") }
        return zip(entries, sources).filter { $0.0.revents != 0 }.map(\.1.ready)
    }

    private func timeout(until deadline: UInt64) -> Int32 {
        let first = min(timer ?? .max, deadline)
        if first == .max { return -1 }
        let now = clinux_monotonic_ns()
        return first <= now ? 0 : Int32(clamping: (first - now + 999_999) / 1_000_000)
    }

    /// How the service is to end, by the signal that waits: SIGINT closes the device, SIGTERM hands it over.
    func takeSignal() -> VBDMachine.StopKind? {
        var info = signalfd_siginfo()
        // The kernel writes one structure of this size.
        guard unsafe read(signals, &info, MemoryLayout<signalfd_siginfo>.size) > 0 else { return nil }
        return info.ssi_signo == UInt32(SIGINT) ? .closeDevice : .handOver
    }
}
