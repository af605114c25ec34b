// SPDX-License-Identifier: BSD-2-Clause
// That a disk gets other storage while its guest is connected.

/// The value of ``BackendKey/swap``. While it is there, another image than the one before is no reason to close the disk.
public struct StorageExchange: Equatable, Sendable {
    /// Which way it goes.
    public enum Direction: Equatable, Sendable {
        /// The node names the new storage, and what it named before stands below ``BackendKey/swap``.
        case forth
        /// The new storage could not be had: the node names the one before again.
        case back
    }

    /// Tells this exchange from any other: 1 to 32 letters and digits.
    public let name: String
    /// Which way it goes.
    public let direction: Direction

    /// An exchange; nil if `name` is none.
    public init?(name: String, _ direction: Direction) {
        guard (1...32).contains(name.utf8.count), name.utf8.allSatisfy(Self.isNameByte) else { return nil }
        self.name = name
        self.direction = direction
    }

    /// Reads ``text``.
    public init?(_ text: String) {
        let words = text.split(separator: " ", omittingEmptySubsequences: false).map(String.init)
        guard words.count == 1 || words.count == 2 && words[1] == "back" else { return nil }
        self.init(name: words[0], words.count == 1 ? .forth : .back)
    }

    /// "4f12" or "4f12 back".
    public var text: String { direction == .forth ? name : name + " back" }

    private static func isNameByte(_ byte: UInt8) -> Bool {
        switch byte {
        case UInt8(ascii: "0")...UInt8(ascii: "9"), UInt8(ascii: "a")...UInt8(ascii: "z"): true
        default: false
        }
    }
}
