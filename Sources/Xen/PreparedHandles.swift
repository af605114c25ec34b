// SPDX-License-Identifier: BSD-2-Clause
// Handles of Xen that are opened while that is still allowed, and used again and again.
import Base
import Memory
import Synchronization

/// A platform that keeps open handles in store for a process that cannot open devices or sockets any more.
///
/// A handle that is let go by its queue is kept for the next one. Where none is left, a new one is opened.
public struct PreparedHandles<Wrapped: XenPlatform>: XenPlatform {
    private let base: Wrapped
    private let grants = Store<Wrapped.Grants>()
    private let events = Store<Wrapped.Events>()

    /// Nothing is opened yet.
    public init(_ base: Wrapped) {
        self.base = base
    }

    /// Opens handles for `count` queues, as far as they are not there already.
    public func prepare(queues count: Int) throws(OperationError) {
        while grants.count < count { grants.put(try base.openGrants()) }
        while events.count < count { events.put(try base.openEvents()) }
    }

    /// As ``XenPlatform`` says; never one of the store's.
    public func openStore() throws(OperationError) -> any XenStore { try base.openStore() }

    /// As ``XenPlatform`` says.
    public func openGrants() throws(OperationError) -> PreparedGrants<Wrapped.Grants> {
        if let kept = grants.take() { return PreparedGrants(kept, from: grants) }
        return PreparedGrants(try base.openGrants(), from: grants)
    }

    /// As ``XenPlatform`` says.
    public func openEvents() throws(OperationError) -> PreparedEvents<Wrapped.Events> {
        if let kept = events.take() { return PreparedEvents(kept, from: events) }
        return PreparedEvents(try base.openEvents(), from: events)
    }
}

/// Handles that nobody uses. They are for one thread at a time, whichever that is.
final class Store<Handle: AnyObject>: Sendable {
    private struct Kept: @unchecked Sendable {
        let handle: Handle
    }
    private let kept = Mutex<[Kept]>([])

    var count: Int { kept.withLock { $0.count } }

    func put(_ handle: Handle) {
        let entry = Kept(handle: handle)
        kept.withLock { $0.append(entry) }
    }

    func take() -> Handle? { kept.withLock { $0.popLast() }?.handle }
}

/// A grant table that goes back into store.
public final class PreparedGrants<Wrapped: GrantTable>: GrantTable {
    private let base: Wrapped
    private let store: Store<Wrapped>

    init(_ base: Wrapped, from store: Store<Wrapped>) {
        self.base = base
        self.store = store
    }

    deinit { store.put(base) }

    /// As ``GrantTable`` says.
    public func copy(_ batch: inout GrantCopyBatch) throws(OperationError) { try base.copy(&batch) }

    /// As ``GrantTable`` says.
    public func map(_ references: [UInt32], of domain: DomainID, writable: Bool) throws(OperationError) -> GrantMapping
    {
        try base.map(references, of: domain, writable: writable)
    }

    /// As ``GrantTable`` says.
    public func unmap(_ mapping: GrantMapping) throws(OperationError) { try base.unmap(mapping) }
}

/// Event channels that go back into store.
public final class PreparedEvents<Wrapped: EventChannels>: EventChannels {
    private let base: Wrapped
    private let store: Store<Wrapped>

    init(_ base: Wrapped, from store: Store<Wrapped>) {
        self.base = base
        self.store = store
    }

    /// Its ports are unbound; events of them that nobody took are not for the next user.
    deinit {
        do throws(OperationError) { while try base.takePending() != nil {} } catch {}
        store.put(base)
    }

    /// As ``EventChannels`` says.
    public var fileDescriptor: Int32 { base.fileDescriptor }

    /// As ``EventChannels`` says.
    public func bind(_ remotePort: EventPort, of domain: DomainID) throws(OperationError) -> EventPort {
        try base.bind(remotePort, of: domain)
    }

    /// As ``EventChannels`` says.
    public func unbind(_ port: EventPort) throws(OperationError) { try base.unbind(port) }

    /// As ``EventChannels`` says.
    public func notify(_ port: EventPort) throws(OperationError) { try base.notify(port) }

    /// As ``EventChannels`` says.
    public func takePending() throws(OperationError) -> EventPort? { try base.takePending() }

    /// As ``EventChannels`` says.
    public func unmask(_ port: EventPort) throws(OperationError) { try base.unmask(port) }
}
