// SPDX-License-Identifier: BSD-2-Clause
// How the worker ended that served the disk before this one.

/// How the process ended that served the disk before.
public enum Predecessor: Sendable, Equatable {
    /// Nobody knows.
    case unknown
    /// It finished its requests and let go.
    case handedOver
    /// It let go, and left requests that waited for space.
    case left
    /// It ended by itself, for the next one to begin, without having crashed; the text says how.
    case ended(String)
    /// Somebody killed it; the text says how.
    case killed(String)
    /// It came to grief by itself; the text says how.
    case crashed(String)

    /// Reads "handed-over", "killed:signal 9", "crashed:signal 11"; nil for anything else.
    ///
    /// xbbd says "killed:exit status 1" of a worker that ended by itself. Workers of other versions read the same word, so
    /// the two are told apart here, once.
    public init?(_ text: String) {
        let parts = text.split(separator: ":", maxSplits: 1, omittingEmptySubsequences: false).map(String.init)
        switch (parts[0], parts.count) {
        case ("unknown", 1): self = .unknown
        case ("handed-over", 1): self = .handedOver
        case ("killed", 2): self = parts[1].hasPrefix("exit status") ? .ended(parts[1]) : .killed(parts[1])
        case ("crashed", 2): self = .crashed(parts[1])
        default: return nil
        }
    }

    /// For the log.
    package var text: String {
        switch self {
        case .unknown: "ended somehow"
        case .handedOver, .left: "handed over"
        case .ended(let how): "ended (\(how))"
        case .killed(let how): "was killed (\(how))"
        case .crashed(let how): "crashed (\(how))"
        }
    }

    package var hasCrashed: Bool {
        if case .crashed = self { true } else { false }
    }
}
