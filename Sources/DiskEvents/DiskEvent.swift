// SPDX-License-Identifier: BSD-2-Clause
// What happens to a disk, in the words of `xbbctl events`. Pure.
import Base
public import Support

/// What happened.
public enum DiskEventKind: String, CaseIterable, Sendable {
    /// The storage is open: a guest may connect.
    case attached
    /// A guest is served.
    case connected
    /// The guest gave the disk up, or lost it.
    case disconnected
    /// Something failed: the storage, with the errno, or the negotiation with the guest.
    case error
    /// No requests are taken, and none is in flight.
    case paused
    /// Requests are taken again.
    case resumed
    /// The size has changed.
    case resized
    /// Another process serves the disk.
    case workerReplaced = "worker-replaced"
    /// A limit of the disk held requests back.
    case limitReached = "limit-reached"
    /// The plugin found the image damaged.
    case imageDamaged = "image-damaged"
    /// Workers failed too often: nobody serves the disk until an administrator does something.
    case failed
    /// The disk is gone, and no process has its storage.
    case detached
}

/// What else is known of an event. Only these names are told, whoever says more.
public struct DiskEventDetails: Equatable, Sendable {
    private static let texts: Set<String> = ["errno", "operation", "text", "limit", "reason"]
    private static let numbers: Set<String> = [
        "sector", "sectors", "count", "pid", "old_pid", "size_bytes", "old_size_bytes",
    ]
    /// The longest text, in characters.
    private static let longestText = 300

    /// Names and values: printable text, or a number.
    public let members: [JSON.Member]

    /// Members that are not of the known names are left out, and of each name the first counts. Control characters become '?'.
    public init(_ members: [JSON.Member] = []) {
        var seen: Set<String> = []
        self.members = members.compactMap { member in
            guard seen.insert(member.name).inserted else { return nil }
            if Self.numbers.contains(member.name), let number = member.value.unsigned {
                return (member.name, .integer(number))
            }
            guard Self.texts.contains(member.name), let text = member.value.string else { return nil }
            let scalars = text.unicodeScalars.prefix(Self.longestText).map { scalar in
                String(scalar).hasControlCharacters ? "?" : scalar
            }
            return (member.name, .string(String(String.UnicodeScalarView(scalars))))
        }
    }

    /// The same values under the same names in the same order.
    public static func == (left: DiskEventDetails, right: DiskEventDetails) -> Bool {
        JSON.object(left.members) == .object(right.members)
    }
}
