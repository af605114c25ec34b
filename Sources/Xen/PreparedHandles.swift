// SPDX-License-Identifier: BSD-2-Clause
// Xen handles that are opened while the process may still do so, and reused afterwards.
import Base
import Memory
import Synchronization

/// A platform with a cache of open handles, for a process that will lose the right to open devices and sockets.
///
/// A handle that its queue releases goes back into the cache. If the cache is empty, a new handle is opened.
public struct PreparedHandles<Wrapped: XenPlatform>: XenPlatform {
    private let base: Wrapped
    private let grants = HandleCache<Wrapped.Grants>()
    private let events = HandleCache<Wrapped.Events>()

    /// Nothing is opened yet.
    public init(_ base: Wrapped) {
        self.base = base
    }

    /// Opens handles until there are enough for `count` queues of `domain`. Those for event channels can bind no other
    /// domain's from then on: true; false where the system cannot restrict them, or not to this domain.
    public func prepare(queues count: Int, of domain: DomainID) throws(OperationError) -> Bool {
        while grants.count < count { grants.put(try base.openGrants()) }
        var isRestricted = true
        while events.count < count {
            let handle = try base.openEvents()
            do throws(OperationError) {
                try handle.restrict(to: domain)
            } catch {
                isRestricted = false
            }
            events.put(handle)
        }
        return isRestricted
    }

    /// See ``XenPlatform``; connections to XenStore are never cached.
    public func openStore() throws(OperationError) -> any XenStore { try base.openStore() }

    /// See ``XenPlatform``.
    public func openGrants() throws(OperationError) -> PreparedGrants<Wrapped.Grants> {
        if let kept = grants.take() { return PreparedGrants(kept, from: grants) }
        return PreparedGrants(try base.openGrants(), from: grants)
    }

    /// See ``XenPlatform``.
    public func openEvents() throws(OperationError) -> PreparedEvents<Wrapped.Events> {
        if let kept = events.take() { return PreparedEvents(kept, from: events) }
        return PreparedEvents(try base.openEvents(), from: events)
    }
}

/// Unused handles. A handle belongs to one thread at a time, but not always to the same one.
final class HandleCache<Handle: AnyObject>: Sendable {
    /// `@unchecked Sendable`: a cached handle has no user, and taking it under the lock passes it to one thread.
    private struct Unused: @unchecked Sendable {
        let handle: Handle
    }
    private let unused = Mutex<[Unused]>([])

    var count: Int { unused.withLock { $0.count } }

    func put(_ handle: Handle) {
        let entry = Unused(handle: handle)
        unused.withLock { $0.append(entry) }
    }

    func take() -> Handle? { unused.withLock { $0.popLast() }?.handle }
}

/// A grant table that goes back into the cache when it is released.
public final class PreparedGrants<Wrapped: GrantTable>: GrantTable {
    private let base: Wrapped
    private let cache: HandleCache<Wrapped>

    init(_ base: Wrapped, from cache: HandleCache<Wrapped>) {
        self.base = base
        self.cache = cache
    }

    deinit { cache.put(base) }

    /// See ``GrantTable``.
    public func copy(_ batch: inout GrantCopyBatch) throws(OperationError) { try base.copy(&batch) }

    /// See ``GrantTable``.
    public func map(_ references: [UInt32], of domain: DomainID, writable: Bool) throws(OperationError) -> GrantMapping
    {
        try base.map(references, of: domain, writable: writable)
    }

    /// See ``GrantTable``.
    public func unmap(_ mapping: GrantMapping) throws(OperationError) { try base.unmap(mapping) }
}

/// Event channels that go back into the cache when they are released.
public final class PreparedEvents<Wrapped: EventChannels>: EventChannels {
    private let base: Wrapped
    private let cache: HandleCache<Wrapped>

    init(_ base: Wrapped, from cache: HandleCache<Wrapped>) {
        self.base = base
        self.cache = cache
    }

    /// Unbinds all ports and discards their pending events, so that the next user does not see them.
    deinit {
        do throws(OperationError) { while try base.takePending() != nil {} } catch {}
        cache.put(base)
    }

    /// See ``EventChannels``.
    public var fileDescriptor: Int32 { base.fileDescriptor }

    /// See ``EventChannels``.
    public func bind(_ remotePort: EventPort, of domain: DomainID) throws(OperationError) -> EventPort {
        try base.bind(remotePort, of: domain)
    }

    /// See ``EventChannels``.
    public func restrict(to domain: DomainID) throws(OperationError) { try base.restrict(to: domain) }

    /// See ``EventChannels``.
    public func unbind(_ port: EventPort) throws(OperationError) { try base.unbind(port) }

    /// See ``EventChannels``.
    public func notify(_ port: EventPort) throws(OperationError) { try base.notify(port) }

    /// See ``EventChannels``.
    public func takePending() throws(OperationError) -> EventPort? { try base.takePending() }

    /// See ``EventChannels``.
    public func unmask(_ port: EventPort) throws(OperationError) { try base.unmask(port) }
}
