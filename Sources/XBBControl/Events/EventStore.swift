// SPDX-License-Identifier: BSD-2-Clause
// The history of events in a file of the run directory, from which the next xbbd goes on.
import Base
import CLinux
import DiskEvents
import Glibc
import Support

/// Writes each event down before anybody is told of it.
final class EventStore {
    private(set) var history: EventHistory
    private let path: String
    private let log: Log
    /// Nil while the file cannot be written.
    private var file: Descriptor?
    private var size = 0
    private var retryAt: UInt64 = 0
    private var isTold = false
    /// The file is written anew when it has grown to so many bytes.
    private static let mostBytes = 2 << 20
    private static let retryInterval = 10 * RestartPolicy.second

    /// Goes on with the numbering of the file, or begins another one.
    init(path: String, log: Log) {
        self.path = path
        self.log = log
        let text = SmallFile.contents(path, limit: 2 * Self.mostBytes)
        history =
            text.flatMap { EventHistory(text: $0) }
            ?? EventHistory(epoch: Self.hexadecimal(UInt64.random(in: 0...UInt64.max)))
        // What was written in part is not continued.
        rewrite()
    }

    private static func hexadecimal(_ value: UInt64) -> String {
        let digits = String(value, radix: 16)
        return String(repeating: "0", count: 16 - digits.count) + digits
    }

    /// Adds an event.
    func add(
        _ kind: DiskEventKind, _ address: VBDAddress, _ details: DiskEventDetails, time: Double, suppressed: UInt64
    ) {
        let event = history.add(kind, address, details, time: time, suppressed: suppressed)
        guard let file, size < Self.mostBytes else {
            if clinux_monotonic_ns() >= retryAt || file != nil { rewrite() }
            return
        }
        let line = EventHistory.line(event)
        // Within the closure the bytes are valid, and their number is passed on.
        let count = unsafe line.withUnsafeBytes { unsafe write(file.raw, $0.baseAddress, $0.count) }
        size += line.count
        if count != line.count { giveUp(OperationError(count < 0 ? errno : ENOSPC, "write \(path)")) }
    }

    private func rewrite() {
        let text = history.text
        do throws(OperationError) {
            try SmallFile.replace(path, with: text)
            let flags = O_WRONLY | O_APPEND | O_CLOEXEC | O_NOFOLLOW
            file = try Descriptor(unsafe clinux_open(path, flags, 0), "open \(path)")
            size = text.count
            isTold = false
        } catch {
            giveUp(error)
        }
    }

    /// A file that lacks an event would let the next xbbd give its number to another: it goes.
    private func giveUp(_ error: OperationError) {
        file = nil
        unsafe unlink(path)
        unsafe unlink(path + ".new")
        retryAt = clinux_monotonic_ns() &+ Self.retryInterval
        if !isTold {
            log.warning("\(error); if xbbd is restarted now, events are numbered anew (xbbctl events)")
        }
        isTold = true
    }
}
