// SPDX-License-Identifier: BSD-2-Clause
// What is wrong with a disk that is served, in one line, and when it is told.
import BlockQueue
import Base
import Glibc
import Support
import Xen

/// Errors of the storage and requests that wait for space, as operators are told of them. Control thread only.
struct DiskTrouble {
    /// Since when requests wait for space, in seconds since 1970; nil: none does.
    private(set) var stoppedSince: UInt64?
    /// Requests that wait for space.
    private(set) var heldRequests = 0
    /// Which storage a guest waits for, and why; nil: it is open, or no guest waits.
    var awaited: String?
    /// What the plugin has told of the storage, and is not over; nil: nothing.
    var told: String?
    /// When to look for errors that were not logged, and when to publish, in ns of the monotonic clock.
    var summaryAt: UInt64 = .max
    var publishAt: UInt64 = .max
    /// This process has published something.
    var isPublished = false
    /// Not before this time.
    var mayPublishAt: UInt64 = 0
    /// XenStore is written to at most once in a second, in ns.
    static var publishInterval: UInt64 { 1_000_000_000 }
    /// Errors that were not logged are told after 10 s, in ns.
    static var summaryInterval: UInt64 { 10_000_000_000 }

    /// When there is something to do.
    var deadline: UInt64 { min(summaryAt, publishAt) }

    /// Takes how many requests wait now; true if the disk has begun or ceased to wait with that.
    mutating func take(held: Int) -> Bool {
        heldRequests = held
        guard (held > 0) != (stoppedSince != nil) else { return false }
        stoppedSince = held > 0 ? UInt64(max(time(nil), 0)) : nil
        return true
    }

    /// For people: what is wrong now; nil: nothing.
    func text<Platform: XenPlatform>(of disk: ServedDisk<Platform>) -> String? {
        let troubles = [awaited, told, storage(of: disk), disk.journalTrouble].compactMap { $0 }
        return troubles.isEmpty ? nil : troubles.joined(separator: "; ")
    }

    private func storage<Platform: XenPlatform>(of disk: ServedDisk<Platform>) -> String? {
        if let stoppedSince {
            return "stopped: no space, \(heldRequests) requests wait since \(Self.universalTime(stoppedSince))"
        }
        guard let last = disk.lastStorageError else { return nil }
        let count = disk.storageErrors.reduce(0) { $0 &+ $1.count }
        return "\(count) errors of the storage, the last at \(Self.universalTime(last.time)): \(last.text)"
    }

    /// For machines: null where no request waits.
    var json: JSON {
        guard let stoppedSince else { return .null }
        return .object([
            ("reason", .string("no space")), ("since", .integer(stoppedSince)), ("requests", .integer(heldRequests)),
        ])
    }

    /// Seconds since 1970 as "2026-11-29T18:10:11Z".
    private static func universalTime(_ seconds: UInt64) -> String {
        var value = time_t(clamping: seconds)
        var parts = unsafe tm()
        var buffer = [CChar](repeating: 0, count: 64)
        // The calls write to the two variables, whose size is passed on.
        guard unsafe gmtime_r(&value, &parts) != nil else { return "an unknown time" }
        let count = unsafe strftime(&buffer, buffer.count, "%Y-%m-%dT%H:%M:%SZ", &parts)
        return String(decoding: buffer.prefix(count).map { UInt8(bitPattern: $0) }, as: UTF8.self)
    }
}
