// SPDX-License-Identifier: BSD-2-Clause
// Event channels as a backend uses them.
import Base

/// The number of an event channel in its own domain.
public typealias EventPort = UInt32

/// One handle for event channels. Each queue has its own; use from one thread.
///
/// A pending port is masked until ``unmask(_:)``. Unmask it only after the ring was drained: then a guest that notifies
/// in a tight loop slows down only itself (XSA-332).
public protocol EventChannels: AnyObject {
    /// Readable while a port of this handle is pending and not masked.
    var fileDescriptor: Int32 { get }
    /// Binds the frontend's unbound port and returns the local one. A port has at most one remote end.
    func bind(_ remotePort: EventPort, of domain: DomainID) throws(OperationError) -> EventPort
    /// Closes a local port; the frontend's port becomes unbound again.
    func unbind(_ port: EventPort) throws(OperationError)
    /// Sends an event to the other end. One system call on Xen.
    func notify(_ port: EventPort) throws(OperationError)
    /// Takes one pending port and masks it; nil if none is pending.
    func takePending() throws(OperationError) -> EventPort?
    /// Lets the handle bind ports of `domain` only, for good. EACCES if it is restricted already, EINVAL for domain 0, which
    /// Linux does not take, and numbers that are no domain's. Ports that are bound already stay so.
    func restrict(to domain: DomainID) throws(OperationError)
    /// Lets a masked port signal again.
    func unmask(_ port: EventPort) throws(OperationError)
}

/// The platform that a backend runs on: Xen, or the loopback Xen with the same interfaces.
public protocol XenPlatform: Sendable {
    /// The grant table of this platform.
    associatedtype Grants: GrantTable
    /// The event channels of this platform.
    associatedtype Events: EventChannels
    /// A new connection to XenStore.
    func openStore() throws(OperationError) -> any XenStore
    /// A new handle on the grant table.
    func openGrants() throws(OperationError) -> Grants
    /// A new handle for event channels.
    func openEvents() throws(OperationError) -> Events
}
