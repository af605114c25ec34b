// SPDX-License-Identifier: BSD-2-Clause
// A guest of the loopback hypervisor, seen from inside: its memory, its grant table, its event channels, its store.
import Base
import Glibc
public import Memory
import Synchronization
public import Xen

/// A domain as its frontend drivers see it.
///
/// The domain's pages and its grant table are shared memory made by the broker. The methods for grants and memory
/// make no system call and take no lock except where noted, and may be called from several threads. Several processes
/// may be frontends of one domain at a time, each for a disk of its own: the broker gives every one its own references
/// and frames. When a process ends, by kill -9 as well, the broker closes its ports, withdraws its grants and takes its
/// frames back, each grant as soon as no backend uses it any more. The domain itself is destroyed, or stays and can be
/// joined, as `destroyOnExit` said.
///
///     let guest = try LoopbackDomain(directory: dir, pages: 4096)
///     let frame = try guest.allocateFrames(1)
///     let ring = guest.pages(at: frame, count: 1)                            // SharedPages
///     let reference = try guest.grantAccess(to: 0, frame: frame, readOnly: false)
///     let port = try guest.allocatePort(for: 0)
///     let store = try guest.openStore()                                      // as domain guest.id
///     ...
///     guard guest.endAccess(reference) else { /* the backend still uses it */ }
@safe
public final class LoopbackDomain: Sendable {
    /// The domain's number.
    public let id: DomainID
    /// Pages of memory; frames are numbered from 0.
    public let pageCount: Int
    /// Entries of the grant table; references are below it. The first 8 are reserved as in Linux.
    public let grantEntryCount: Int
    /// The directory of the hypervisor's sockets.
    public let directory: String

    let connection: HypervisorConnection
    let memory: SharedRegion
    let grants: SharedRegion
    let active: SharedRegion
    let references: ReferenceList
    /// The number of references that this object has; locked while more are requested.
    let referenceCount = Mutex(0)

    /// Makes a domain and becomes its frontend.
    ///
    /// `domain` is the wanted number, EEXIST if it is taken; by default the lowest free one from 1. With
    /// `destroyOnExit` the domain goes with this object or its process. Memory takes up space as it is touched.
    public convenience init(
        directory: String = LoopbackXen.defaultDirectory, domain: DomainID? = nil, pages: Int = 4096,
        grantEntries: Int = 32768, destroyOnExit: Bool = true
    ) throws(OperationError) {
        let connection = try HypervisorConnection(directory: directory, domain: 0)
        let id = try connection.createDomain(
            domain, pages: pages, grantEntries: grantEntries, destroyOnExit ? .withConnection : .adopted)
        try self.init(connection: connection, id: id)
    }

    /// Becomes a frontend of a domain that exists; ESRCH if there is none.
    public convenience init(joining domain: DomainID, directory: String = LoopbackXen.defaultDirectory)
        throws(OperationError)
    {
        let connection = try HypervisorConnection(directory: directory, domain: domain)
        try self.init(connection: connection, id: domain)
    }

    private init(connection: HypervisorConnection, id: DomainID) throws(OperationError) {
        let answer = try connection.call(.join, for: "become the frontend of domain \(id)")
        guard answer.descriptors.count == 3 else { throw OperationError(EPROTO, "become the frontend of domain \(id)") }
        self.connection = connection
        self.id = id
        directory = connection.directory
        pageCount = Int(answer.word(0))
        grantEntryCount = Int(answer.word(1))
        memory = try SharedRegion(answer.descriptors[0], byteCount: pageCount * GrantTableLayout.pageBytes)
        grants = try SharedRegion(
            answer.descriptors[1], byteCount: GrantTableLayout.grantsBytes(entries: grantEntryCount))
        active = try SharedRegion(
            answer.descriptors[2], byteCount: GrantTableLayout.activeBytes(entries: grantEntryCount), writable: false)
        references = try ReferenceList(entries: grantEntryCount)
    }

    /// False once the domain was destroyed.
    public var isAlive: Bool { active.load32(at: GrantTableLayout.aliveOffset) != 0 }

    /// Destroys the domain: its ports close and its grants become unusable; mapped pages stay with those who mapped
    /// them.
    public func destroy() throws(OperationError) {
        _ = try connection.call(.destroyDomain, [UInt32(id)], for: "destroy domain \(id)")
    }

    /// A connection to XenStore as this domain. Takes a process-wide lock (XENSTORED_PATH is an environment variable).
    public func openStore() throws(OperationError) -> LibXenStore {
        try openLoopbackStore(directory: directory, domain: id)
    }

    /// Returns when all is released that processes held which have ended by now. The kernel of a real domain has unmapped
    /// what a process had mapped before anybody learns of its end; the broker may be busy, and learns of it later.
    public func settle() {
        do throws(OperationError) {
            _ = try connection.call(.settle, for: "settle")
        } catch {}  // the broker has ended, and with it all that it held
    }

    // MARK: Memory

    /// Takes `count` consecutive frames and returns the first; ENOMEM if there are none.
    ///
    /// Asks the broker, so only for the control path.
    public func allocateFrames(_ count: Int) throws(OperationError) -> UInt32 {
        let answer = try connection.call(
            .takeFrames, [UInt32(clamping: count)], for: "allocate \(count) frames of domain \(id)")
        return answer.word(0)
    }

    /// Gives back frames of ``allocateFrames(_:)``, all or some. Frames that are not this object's are a bug and trap.
    ///
    /// Asks the broker, so only for the control path.
    public func freeFrames(_ first: UInt32, count: Int) {
        do throws(OperationError) {
            _ = try connection.call(.giveFrames, [first, UInt32(clamping: count)], for: "free frames")
        } catch {
            // If the domain was destroyed or the broker has ended, the frames are released already.
            precondition(error.code != EINVAL, "frames \(first)..<\(Int(first) + count) are not allocated")
        }
    }

    /// The address of `count` frames from `frame`, valid while this object lives.
    @unsafe public func address(ofFrame frame: UInt32, count: Int = 1) -> UnsafeMutableRawPointer {
        unsafe memory.address(
            at: Int(frame) * GrantTableLayout.pageBytes, count: count * GrantTableLayout.pageBytes)
    }

    /// `count` frames from `frame` as shared pages, for rings. The view is valid while this object lives.
    public func pages(at frame: UInt32, count: Int = 1) -> SharedPages {
        unsafe SharedPages(
            base: address(ofFrame: frame, count: count), byteCount: count * GrantTableLayout.pageBytes)
    }

    /// A copy of `count` bytes from byte `offset` of `frame`; may reach into the frames that follow.
    public func read(frame: UInt32, offset: Int = 0, count: Int) -> [UInt8] {
        let start = unsafe memory.address(at: Int(frame) * GrantTableLayout.pageBytes + offset, count: count)
        return unsafe [UInt8](UnsafeRawBufferPointer(start: start, count: count))
    }

    /// Writes `bytes` from byte `offset` of `frame`; may reach into the frames that follow.
    public func write(_ bytes: [UInt8], frame: UInt32, offset: Int = 0) {
        let start = unsafe memory.address(
            at: Int(frame) * GrantTableLayout.pageBytes + offset, count: bytes.count)
        unsafe bytes.withUnsafeBytes { source in
            guard let from = source.baseAddress else { return }
            unsafe start.copyMemory(from: from, byteCount: source.count)
        }
    }

    // MARK: Event channels

    /// Allocates a port that `remote` may bind (EVTCHNOP_alloc_unbound). It closes with the returned object.
    public func allocatePort(for remote: DomainID) throws(OperationError) -> LoopbackPort {
        let purpose = "allocate an event channel for domain \(remote)"
        let answer = try connection.call(.allocateUnbound, [UInt32(remote)], for: purpose)
        guard answer.descriptors.count == 2 else { throw OperationError(EPROTO, purpose) }
        let page = try SharedRegion(answer.descriptors[0], byteCount: EventChannelLayout.pageBytes)
        let end = EventEnd(
            port: answer.word(0), end: Int(answer.word(1)), page: page, connection: connection, peer: nil, link: 0)
        return LoopbackPort(end: end, event: answer.descriptors[1], connection: connection)
    }
}
