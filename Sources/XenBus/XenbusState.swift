// SPDX-License-Identifier: BSD-2-Clause
// The states of one end of a XenBus device, and how they are read from a node that the other end owns.

/// The state of either end, as written in decimal to its `state` node (enum xenbus_state of xenbus.h).
public enum XenbusState: UInt8, CaseIterable, Sendable {
    /// Not a state: stands for an invalid value.
    case unknown = 0
    /// Made by the toolstack; the driver has not started, or starts over.
    case initialising = 1
    /// Waiting for information from the peer or from a hotplug script.
    case initWait = 2
    /// Has published what the peer needs; waiting for the peer to connect.
    case initialised = 3
    /// In use.
    case connected = 4
    /// Going away after an error or an unplug.
    case closing = 5
    /// Holds nothing of the peer any more.
    case closed = 6
    /// Being changed while connected; no block driver uses it.
    case reconfiguring = 7
    /// Was changed while connected; no block driver uses it.
    case reconfigured = 8

    /// Parses the value of a `state` node: exactly one digit, 0 to 8.
    ///
    /// Throws `.notAState` for anything else; `key` is the node's name in that error.
    public init(parsing bytes: [UInt8], key: String = "state") throws(NegotiationError) {
        guard bytes.count == 1, let byte = bytes.first, (UInt8(ascii: "0")...UInt8(ascii: "8")).contains(byte),
            let state = XenbusState(rawValue: byte - UInt8(ascii: "0"))
        else { throw NegotiationError(.notAState, key: key, value: bytes) }
        self = state
    }

    /// The value of a `state` node for the events of `VBDMachine`: nil if there is no node, `.unknown` for an invalid
    /// value.
    public static func reading(_ bytes: [UInt8]?) -> XenbusState? {
        guard let bytes else { return nil }
        do {
            return try XenbusState(parsing: bytes)
        } catch {
            return .unknown
        }
    }

    /// The value of a `state` node.
    public var text: String { String(rawValue) }
}
