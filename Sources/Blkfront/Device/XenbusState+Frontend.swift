// SPDX-License-Identifier: BSD-2-Clause
// The state of the other end, as a frontend asks for it.
import XenBus

extension XenbusState {
    /// What a `state` key says; `.unknown` for a missing node and for junk.
    public init(_ text: String?) {
        self = XenbusState.reading(text.map { Array($0.utf8) }) ?? .unknown
    }

    /// The backend has closed, or its node is gone.
    var isOver: Bool { self == .closed || self == .unknown }
}
