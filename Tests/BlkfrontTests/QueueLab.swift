// SPDX-License-Identifier: BSD-2-Clause
// A hypervisor, a domain and a queue with a test backend behind it: no XenStore.
import Base
import Blkif
import CLinux
import Glibc
import TestSupport
import Testing
import Xen
import XenLoopback

@testable import Blkfront

/// A running loopback in a directory of its own.
final class QueueLab {
    let directory: String
    let xen: LoopbackXen
    let domain: LoopbackDomain
    let health = FrontHealth()
    var backends: [TestBackend] = []

    init(pages: Int = 16384) throws {
        var template = Array("/tmp/xbb-front-XXXXXX".utf8CString)
        guard mkdtemp(&template) != nil else { throw OperationError(errno, "mkdtemp") }
        directory = String(decoding: template.dropLast().map { UInt8(bitPattern: $0) }, as: UTF8.self)
        xen = try LoopbackXen(directory: directory)
        domain = try LoopbackDomain(directory: directory, pages: pages, grantEntries: 16384)
    }

    /// A queue with a backend that serves `disk`.
    func queue(
        _ disk: MemoryDisk, options: FrontOptions = FrontOptions(), limits: OfferedFeatures? = nil,
        mischief: Mischief = .none, at: Int = 0
    ) throws -> FrontQueueBox {
        let box = try idleQueue(options: options)
        backends.append(
            try TestBackend(
                xen.platform(), domain: domain.id, references: box.ringReferences, port: box.port.number,
                abi: options.abi, disk: disk, limits: limits, mischief: mischief, at: at))
        return box
    }

    /// A queue that nobody serves.
    func idleQueue(options: FrontOptions = FrontOptions()) throws -> FrontQueueBox {
        let resources = try QueueResources(
            domain: domain, backend: 0, ringPageCount: options.ringPages, options: options)
        return FrontQueueBox(
            FrontQueue(index: 0, resources: resources, backend: 0, handle: 51712, options: options, health: health))
    }

    /// Stops the backends; they unmap the rings.
    func stopBackends() throws {
        for backend in backends { try backend.stop() }
        backends = []
    }

    /// Stops the backends, then the hypervisor.
    func stop() throws {
        try stopBackends()
        xen.stop()
        for name in ["hypervisor.sock", "lock", "xenstored.sock"] { unlink("\(directory)/\(name)") }
        rmdir(directory)
    }

    /// The broker's view of the domain.
    func report() throws -> LoopbackDomainReport {
        try #require(try xen.domains().first { $0.id == domain.id })
    }
}

extension FrontQueue {
    /// A free slot, or an error.
    mutating func slot() throws -> Int {
        guard let id = allocate() else { throw BlkfrontError.invalid("no free slot") }
        return id
    }

    /// Puts one request on the ring and waits for its answer.
    mutating func perform(
        _ operation: BlockOperation, sector: UInt64, byteCount: Int, skew: Int = 0, fill: UInt8? = nil
    ) throws -> FrontCompletion {
        let id = try slot()
        if let fill {
            let buffer = buffer(of: id)
            for index in 0..<byteCount { buffer[skew * 512 + index] = fill }
        }
        try submit(id, operation, sector: sector, byteCount: byteCount, skew: skew)
        try publish()
        return try next()
    }

    /// The next response, or an error after ten seconds.
    mutating func next() throws -> FrontCompletion {
        for _ in 0..<100 {
            if let completion = try nextCompletion() { return completion }
            _ = try wait(timeout: 100)
        }
        throw BlkfrontError.timeout("no response")
    }

    /// A copy of a slot's buffer.
    func bytes(_ id: Int, skew: Int = 0, count: Int) -> [UInt8] {
        Array(buffer(of: id)[skew * 512..<skew * 512 + count])
    }
}

/// Bytes that are the seed's; `count` is a multiple of 8.
func randomBytes(_ count: Int, seed: UInt64) -> [UInt8] {
    var random = SplitMix64(seed: seed)
    return [UInt8](unsafeUninitializedCapacity: count) { buffer, initialized in
        for offset in stride(from: 0, to: count, by: 8) {
            UnsafeMutableRawBufferPointer(buffer).storeBytes(of: random.next(), toByteOffset: offset, as: UInt64.self)
        }
        initialized = count
    }
}
