// SPDX-License-Identifier: BSD-2-Clause
// The platform of a backend on the loopback hypervisor.
import Base
import CLinux
import Glibc
import Synchronization
public import Xen

/// The platform of a backend without Xen: domain `domain` of the hypervisor in `directory`.
public struct LoopbackPlatform: XenPlatform {
    /// The directory of the hypervisor's sockets.
    public let directory: String
    /// The domain that the backend runs in.
    public let domain: DomainID
    /// False: grant copies are checked but not carried out, to measure everything else.
    public let copiesData: Bool

    /// Opens nothing yet.
    public init(
        directory: String = LoopbackXen.defaultDirectory, domain: DomainID = LoopbackPlace.domain,
        copiesData: Bool = true
    ) {
        self.directory = directory
        self.domain = domain
        self.copiesData = copiesData
    }

    /// A connection of libxenstore to the domain's socket. Takes a process-wide lock and sets XENSTORED_PATH.
    public func openStore() throws(OperationError) -> any XenStore {
        try openLoopbackStore(directory: directory, domain: domain)
    }

    /// A handle with a connection of its own to the broker.
    public func openGrants() throws(OperationError) -> LoopbackGrantTable {
        try LoopbackGrantTable(directory: directory, domain: domain, copiesData: copiesData)
    }

    /// A handle with a connection of its own to the broker.
    public func openEvents() throws(OperationError) -> LoopbackEventChannels {
        try LoopbackEventChannels(directory: directory, domain: domain)
    }
}

/// xs_open() looks at the environment, which belongs to the whole process.
private let environmentLock = Mutex(())

/// Connects libxenstore to the socket of `domain`.
func openLoopbackStore(directory: String, domain: DomainID) throws(OperationError) -> LibXenStore {
    let path = LoopbackPlace.storeSocket(in: directory, domain: domain)
    return try environmentLock.withLock { _ throws(OperationError) -> LibXenStore in
        let current = unsafe getenv("XENSTORED_PATH").map { unsafe String(cString: $0) }
        if current != path {
            let result = unsafe setenv("XENSTORED_PATH", path, 1)
            if result != 0 { throw OperationError(errno, "set XENSTORED_PATH") }
        }
        return try LibXenStore()
    }
}
