// SPDX-License-Identifier: BSD-2-Clause
// The control side of the loopback hypervisor: make, destroy and inspect domains.
import Base
public import Xen

/// The broker's report about a domain. Tests use it to assert that nothing leaked.
public struct LoopbackDomainReport: Equatable, Sendable {
    /// The domain's number.
    public var id: DomainID
    /// False for a destroyed domain whose pages are still mapped ("zombie").
    public var isAlive: Bool
    /// Frontend connections (``LoopbackDomain``) that are open now.
    public var frontends: Int
    /// True if the domain is destroyed when its frontend's process ends.
    public var isDestroyedOnExit: Bool
    /// Pages of memory.
    public var pages: Int
    /// Entries of the grant table.
    public var grantEntries: Int
    /// References that the domain grants now.
    public var grantedReferences: Int
    /// Pages of the domain that others map now, each as often as it is mapped.
    public var mappedGrants: Int
    /// References that are being copied from or to now.
    public var copyingReferences: Int
    /// Open grant-table handles that have used the domain.
    public var grantHandles: Int
    /// Ports of the domain that wait for a remote end.
    public var unboundPorts: Int
    /// Ports of the domain with a remote end.
    public var boundPorts: Int

    init(_ answer: HypervisorAnswer) {
        id = DomainID(truncatingIfNeeded: answer.word(0))
        isAlive = answer.word(1) & 1 != 0
        isDestroyedOnExit = answer.word(1) & 2 != 0
        pages = Int(answer.word(2))
        grantEntries = Int(answer.word(3))
        grantedReferences = Int(answer.word(4))
        mappedGrants = Int(answer.word(5))
        copyingReferences = Int(answer.word(6))
        grantHandles = Int(answer.word(7))
        unboundPorts = Int(answer.word(8))
        boundPorts = Int(answer.word(9))
        frontends = Int(answer.word(10))
    }
}

/// A control connection to the hypervisor. Its methods may be called from any thread.
public final class LoopbackControl: Sendable {
    private let connection: HypervisorConnection

    /// Connects to the hypervisor of `directory`.
    public init(directory: String = LoopbackXen.defaultDirectory) throws(OperationError) {
        connection = try HypervisorConnection(directory: directory, domain: 0)
    }

    /// Makes a domain that stays until it is destroyed; a frontend joins it later (``LoopbackDomain``).
    ///
    /// EEXIST if the wanted number is taken.
    public func createDomain(
        _ domain: DomainID? = nil, pages: Int = 4096, grantEntries: Int = 32768
    ) throws(OperationError) -> DomainID {
        try connection.createDomain(domain, pages: pages, grantEntries: grantEntries, .detached)
    }

    /// Destroys a domain; ESRCH if there is none, EPERM for domain 0.
    public func destroyDomain(_ domain: DomainID) throws(OperationError) {
        _ = try connection.call(.destroyDomain, [UInt32(domain)], for: "destroy domain \(domain)")
    }

    /// All domains, domain 0 included, in order; destroyed ones whose pages are still mapped come last.
    public func domains() throws(OperationError) -> [LoopbackDomainReport] {
        var reports: [LoopbackDomainReport] = []
        while true {
            do {
                let answer = try connection.call(
                    .describeDomain, [UInt32(reports.count)], for: "list domains")
                reports.append(LoopbackDomainReport(answer))
            } catch {
                if error.isNotFound { return reports }
                throw error
            }
        }
    }

    /// The report of a living domain, or nil.
    public func domain(_ id: DomainID) throws(OperationError) -> LoopbackDomainReport? {
        try domains().first { $0.id == id && $0.isAlive }
    }
}

extension HypervisorConnection {
    /// Makes a domain with the requested number, or with the lowest free one.
    func createDomain(
        _ domain: DomainID?, pages: Int, grantEntries: Int, _ lifetime: DomainLifetime
    ) throws(OperationError) -> DomainID {
        let answer = try call(
            .createDomain,
            [
                domain.map { UInt32($0) } ?? HypervisorProtocol.anyDomain, UInt32(clamping: pages),
                UInt32(clamping: grantEntries), lifetime.rawValue,
            ], for: "create a domain of \(pages) pages and \(grantEntries) grant entries")
        return DomainID(truncatingIfNeeded: answer.word(0))
    }
}
