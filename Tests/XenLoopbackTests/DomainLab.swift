// SPDX-License-Identifier: BSD-2-Clause
// A hypervisor in a directory of its own, for one test.
import Base
import CLinux
import CXen
import Glibc
import Memory
import Testing
import Xen
import XenLoopback

/// A running hypervisor; its directory goes with it.
final class Lab: Sendable {
    let directory: String
    let xen: LoopbackXen

    init() throws {
        directory = try temporaryDirectory()
        xen = try LoopbackXen(directory: directory)
    }

    deinit {
        xen.stop()
        removeDirectory(directory)
    }

    func guest(pages: Int = 64, entries: Int = 512, destroyOnExit: Bool = true) throws -> LoopbackDomain {
        try LoopbackDomain(directory: directory, pages: pages, grantEntries: entries, destroyOnExit: destroyOnExit)
    }

    func grants(of domain: DomainID = 0, copiesData: Bool = true) throws -> LoopbackGrantTable {
        try xen.platform(domain: domain, copiesData: copiesData).openGrants()
    }

    func events(of domain: DomainID = 0) throws -> LoopbackEventChannels {
        try xen.platform(domain: domain).openEvents()
    }

    func report(_ domain: DomainID) throws -> LoopbackDomainReport? {
        try xen.domains().first { $0.id == domain && $0.isAlive }
    }

    /// Waits until the report of a domain satisfies `condition`; the broker learns of a death when its socket closes.
    func eventually(
        _ domain: DomainID, _ condition: (LoopbackDomainReport?) -> Bool, _ location: SourceLocation = #_sourceLocation
    ) throws {
        for _ in 0..<6000 {
            if condition(try report(domain)) { return }
            usleep(5000)
        }
        Issue.record("domain \(domain) stays \(String(describing: try report(domain)))", sourceLocation: location)
    }
}

func temporaryDirectory() throws -> String {
    var template = Array("/tmp/xbb-lab-XXXXXX".utf8CString)
    guard mkdtemp(&template) != nil else { throw OperationError(errno, "mkdtemp") }
    return String(decoding: template.dropLast().map { UInt8(bitPattern: $0) }, as: UTF8.self)
}

/// Removes a directory with the files in it.
func removeDirectory(_ path: String) {
    guard let listing = opendir(path) else { return }
    while let entry = readdir(listing) {
        let name = withUnsafePointer(to: &entry.pointee.d_name) {
            $0.withMemoryRebound(to: CChar.self, capacity: 256) { String(cString: $0) }
        }
        if name != "." && name != ".." { unlink(path + "/" + name) }
    }
    closedir(listing)
    rmdir(path)
}

/// One operation of a batch as a test says it.
struct Copy {
    var reference: UInt32
    var domain: DomainID
    var offset = 0
    var length = 4096
    var hostOffset = 0
    var toGuest = false
}

/// Runs one batch and gives the statuses.
func run(_ copies: [Copy], on table: LoopbackGrantTable, host: HostMemory) throws -> [Int16] {
    var batch = GrantCopyBatch(capacity: max(copies.count, 1))
    for copy in copies {
        batch.append(
            reference: copy.reference, of: copy.domain, offset: copy.offset, length: copy.length, host: host,
            hostOffset: copy.hostOffset, toGuest: copy.toGuest)
    }
    try table.copy(&batch)
    return (0..<copies.count).map { batch.status(at: $0) }
}

func hostMemory(pages: Int = 16) throws -> HostMemory {
    try #require(HostMemory(byteCount: pages * 4096))
}

/// True if the descriptor can be read now.
func isReadable(_ descriptor: Int32) -> Bool {
    var entry = pollfd(fd: descriptor, events: Int16(POLLIN), revents: 0)
    return poll(&entry, 1, 0) == 1
}

/// Runs `body` on a thread of its own and gives it back to be joined.
func onThread(_ body: @escaping @Sendable () -> Void) -> pthread_t {
    final class Body: Sendable {
        let run: @Sendable () -> Void
        init(_ run: @escaping @Sendable () -> Void) { self.run = run }
    }
    var thread = pthread_t()
    let argument = Unmanaged.passRetained(Body(body)).toOpaque()
    let code = pthread_create(
        &thread, nil,
        { raw in
            if let raw { Unmanaged<Body>.fromOpaque(raw).takeRetainedValue().run() }
            return nil
        }, argument)
    precondition(code == 0)
    return thread
}
