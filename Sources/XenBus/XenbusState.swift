// SPDX-License-Identifier: BSD-2-Clause
// The states of one end of a XenBus device, and how they are read from a node that the other end owns.

/// The state of either end, as written in decimal to its `state` node (enum xenbus_state of xenbus.h).
public enum XenbusState: UInt8, CaseIterable, Sendable {
    /// Not a state: what a node that makes no sense stands for.
    case unknown = 0
    /// Made by the toolstack; the driver has not begun, or begins again.
    case initialising = 1
    /// Waits for information from the peer or from a hotplug script.
    case initWait = 2
    /// Has published what the peer needs, waits for it to connect.
    case initialised = 3
    /// In use.
    case connected = 4
    /// Goes away after an error or an unplug.
    case closing = 5
    /// Holds nothing of the peer any more.
    case closed = 6
    /// Is being changed while connected; no block driver uses it.
    case reconfiguring = 7
    /// Has been changed while connected; no block driver uses it.
    case reconfigured = 8

    /// Reads the value of a `state` node: exactly one digit, 0 to 8.
    ///
    /// Throws `.notAState` for anything else; `key` names the node in that error.
    public init(parsing bytes: [UInt8], key: String = "state") throws(NegotiationError) {
        guard bytes.count == 1, let byte = bytes.first, (UInt8(ascii: "0")...UInt8(ascii: "8")).contains(byte),
            let state = XenbusState(rawValue: byte - UInt8(ascii: "0"))
        else { throw NegotiationError(.notAState, key: key, value: bytes) }
        self = state
    }

    /// What a `state` node says, for the events of `VBDMachine`: nil where there is no node, `.unknown` for junk.
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
