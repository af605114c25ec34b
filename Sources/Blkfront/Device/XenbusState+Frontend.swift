// SPDX-License-Identifier: BSD-2-Clause
// The backend's state, as a frontend reads it.
import XenBus

extension XenbusState {
    /// The meaning of a `state` key; `.unknown` for a missing node or an invalid value.
    public init(_ text: String?) {
        self = XenbusState.reading(text.map { Array($0.utf8) }) ?? .unknown
    }

    /// The backend has closed, or its node is gone.
    var isOver: Bool { self == .closed || self == .unknown }
}
