// SPDX-License-Identifier: BSD-2-Clause
// What `base:allocation` says of a part of an export.

/// A part of an export that is in one state.
public struct Extent: BitwiseCopyable, Sendable, Hashable {
    /// Bytes; they follow the extent before, and do not go beyond the request.
    public let length: UInt32
    /// `NBD_STATE_…`
    public let state: UInt32

    /// An extent.
    public init(length: UInt32, state: UInt32) { (self.length, self.state) = (length, state) }

    /// `NBD_STATE_HOLE`: it has no storage.
    public var isHole: Bool { state & 1 != 0 }
    /// `NBD_STATE_ZERO`: it reads as zeroes.
    public var isZero: Bool { state & 2 != 0 }
}
