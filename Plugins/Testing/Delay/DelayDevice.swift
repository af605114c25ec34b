// SPDX-License-Identifier: BSD-2-Clause
// The disk of xbb-delay: requests wait in a list until their time, and its thread performs them then.
//
// The data moves at the end of the delay, not at the start, so a host that takes a buffer back early is found out.
import CLinux
import Glibc
import PluginAPI
import PluginKit
import TestingKit

/// A request that waits.
@safe
private struct Waiting {
    let queue: OpaquePointer
    let request: UnsafeMutablePointer<xbb_req>
    /// Nanoseconds of CLOCK_MONOTONIC.
    var due: UInt64
}

/// A queue of a `DelayDevice`.
@safe
final class DelayQueue {
    let device: DelayDevice
    let handle: OpaquePointer

    init(device: DelayDevice, handle: OpaquePointer) {
        self.device = device
        unsafe self.handle = unsafe handle
    }
}

/// A disk in memory with one thread.
@safe
final class DelayDevice: ThreadBody {
    private let host: PluginHost
    private let memory: MemoryDisk
    private let isReadOnly: Bool
    private let delay: UInt64
    private let reorders: Bool
    private let hold: Int
    private let monitor = Monitor()
    // Under the monitor:
    private var waiting: [Waiting] = []
    private var randomState: UInt64
    private var stopping = false
    private var thread: PluginThread?

    init(host: PluginHost, opening: Opening) throws(PluginError) {
        self.host = host
        memory = try MemoryDisk(
            size: try opening[DelayOption.size], file: try opening[DelayOption.keep] ? opening.label : nil)
        isReadOnly = opening.isReadOnly
        delay = try opening[DelayOption.delay] * 1000
        reorders = try opening[DelayOption.reorder]
        hold = Int(clamping: try opening[DelayOption.hold])
        randomState = try opening[DelayOption.seed]
    }

    func start() throws(PluginError) { thread = try PluginThread(self) }

    func stop() {
        monitor.locked { stopping = true }
        monitor.broadcast()
        thread?.join()
        thread = nil
    }

    func describe(_ info: inout xbb_info) { memory.describe(&info, isReadOnly: isReadOnly) }

    func submit(_ queue: OpaquePointer, _ requests: UnsafeBufferPointer<UnsafeMutablePointer<xbb_req>?>) {
        let now = clinux_monotonic_ns()
        monitor.lock()
        for index in requests.indices {
            guard let request = unsafe requests[index] else { continue }
            let wait = reorders && delay > 0 ? random() % (2 * delay) : delay
            unsafe waiting.append(Waiting(queue: queue, request: request, due: now + wait))
        }
        if hold > 0, waiting.count >= hold { for index in waiting.indices { waiting[index].due = now } }
        monitor.unlock()
        monitor.signal()
    }

    /// `xbb_plugin.cancel`: what waits of a queue, or one request of it, is due now.
    func hurry(_ queue: OpaquePointer, _ request: UnsafeMutablePointer<xbb_req>?) {
        monitor.lock()
        for index in waiting.indices where unsafe waiting[index].queue == queue {
            if unsafe request == nil || waiting[index].request == request { waiting[index].due = 0 }
        }
        monitor.unlock()
        monitor.signal()
    }

    func run() {
        monitor.lock()
        while !stopping || !waiting.isEmpty {
            let now = clinux_monotonic_ns()
            var due = waiting.filter { $0.due <= now }
            if !due.isEmpty {
                waiting.removeAll { $0.due <= now }
                if reorders { shuffle(&due) }
                monitor.unlock()
                for entry in due {
                    let status = unsafe memory.perform(entry.request)
                    unsafe host.complete(entry.queue, entry.request, status)
                }
                monitor.lock()
            } else if let next = waiting.map(\.due).min() {
                monitor.wait(until: next)
            } else {
                monitor.wait()
            }
        }
        monitor.unlock()
    }

    /// SplitMix64.
    private func random() -> UInt64 {
        randomState &+= 0x9e37_79b9_7f4a_7c15
        var z = randomState
        z = (z ^ (z >> 30)) &* 0xbf58_476d_1ce4_e5b9
        z = (z ^ (z >> 27)) &* 0x94d0_49bb_1331_11eb
        return z ^ (z >> 31)
    }

    private func shuffle(_ list: inout [Waiting]) {
        guard list.count > 1 else { return }
        for index in 1..<list.count { list.swapAt(index, Int(random() % UInt64(index + 1))) }
    }
}
