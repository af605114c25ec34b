// SPDX-License-Identifier: BSD-2-Clause
// The states that the two ends show each other under the key "state".

/// `enum xenbus_state` of xen/io/xenbus.h.
public enum BusState: Int, Sendable, CaseIterable {
    /// `XenbusStateUnknown`, also a node that is missing or no number
    case unknown = 0
    /// `XenbusStateInitialising`
    case initialising = 1
    /// `XenbusStateInitWait`: finished early initialisation, waits for the other end
    case initWait = 2
    /// `XenbusStateInitialised`: waits for the other end to connect
    case initialised = 3
    /// `XenbusStateConnected`
    case connected = 4
    /// `XenbusStateClosing`: the device is being removed
    case closing = 5
    /// `XenbusStateClosed`
    case closed = 6
    /// `XenbusStateReconfiguring`
    case reconfiguring = 7
    /// `XenbusStateReconfigured`
    case reconfigured = 8

    /// The state that a key says.
    public init(_ text: String?) {
        self = text.flatMap { Int($0) }.flatMap { BusState(rawValue: $0) } ?? .unknown
    }
}
