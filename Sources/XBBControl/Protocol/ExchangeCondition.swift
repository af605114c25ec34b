// SPDX-License-Identifier: BSD-2-Clause
// What must not have changed meanwhile where an image was made from what a disk had.

/// A disk gets other storage only if it still has what that was made of: otherwise writes that were answered since would be lost.
public enum ExchangeCondition: Equatable, Sendable {
    /// The worker with this number still serves it: another one may have other storage.
    case worker(UInt64)
    /// Its storage is released since the release of this name, without a gap.
    case release(String)

    /// Reads the two words of ``text``.
    init(parsing kind: String, _ value: String) throws(ControlError) {
        switch kind {
        case "worker":
            guard let number = DecimalText.number(value) else { throw ControlError("'\(value)' is no process") }
            self = .worker(number)
        case "release" where !value.isEmpty && value.utf8.count <= 32: self = .release(value)
        default: throw ControlError("expected worker PID or release NAME")
        }
    }

    /// Two words.
    var text: String {
        switch self {
        case .worker(let number): "worker \(number)"
        case .release(let name): "release \(name)"
        }
    }
}
