// SPDX-License-Identifier: BSD-2-Clause
// A whole loopback with XenStore, a domain, and a toy host for each disk.
import Blkfront
import CLinux
import Glibc
import Testing
import Xen
import XenLoopback

/// XenStore and hypervisor in a directory of their own, and one domain.
final class DeviceLab {
    let directory: String
    let xen: LoopbackXen
    let store: XenStoreServer
    let domain: LoopbackDomain
    private var hosts: [ToyHost] = []

    init(pages: Int = 16384) throws {
        var template = Array("/tmp/xbb-front-XXXXXX".utf8CString)
        guard mkdtemp(&template) != nil else { throw XenError(errno, "mkdtemp") }
        directory = String(decoding: template.dropLast().map { UInt8(bitPattern: $0) }, as: UTF8.self)
        xen = try LoopbackXen(directory: directory)
        store = try XenStoreServer(directory: directory)
        domain = try LoopbackDomain(directory: directory, pages: pages, grantEntries: 16384)
        try store.addDomain(domain.id)
    }

    /// A disk with its backend.
    func host(number: UInt32 = 51712, settings: ToySettings = ToySettings()) throws -> ToyHost {
        let host = try ToyHost(xen.platform(), domain: domain.id, number: number, settings: settings)
        hosts.append(host)
        return host
    }

    /// The frontend of a disk, not connected yet.
    func device(number: UInt32 = 51712, _ change: (inout FrontOptions) -> Void = { _ in }) throws -> FrontDevice {
        var options = FrontOptions()
        change(&options)
        return FrontDevice(domain: domain, store: try domain.openStore(), number: number, options: options)
    }

    /// The broker's view of the domain.
    func report() throws -> LoopbackDomainReport {
        try #require(try xen.domains().first { $0.id == domain.id })
    }

    func stop() throws {
        for host in hosts { try host.stop() }
        hosts = []
        store.stop()
        xen.stop()
        for name in ["hypervisor.sock", "lock", "xenstored.sock", "xenstored-1.sock"] { unlink("\(directory)/\(name)") }
        rmdir(directory)
    }
}
