// SPDX-License-Identifier: BSD-2-Clause
// A whole loopback with XenStore, a domain, and a toy host for each disk.
import Base
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
    let domainID: DomainID
    private let joined: LoopbackDomain?
    private var hosts: [ToyHost] = []

    /// With `joins` this process is the domain's frontend, else another one can be.
    init(pages: Int = 16384, joins: Bool = true) throws {
        var template = Array("/tmp/xbb-front-XXXXXX".utf8CString)
        guard mkdtemp(&template) != nil else { throw OperationError(errno, "mkdtemp") }
        directory = String(decoding: template.dropLast().map { UInt8(bitPattern: $0) }, as: UTF8.self)
        xen = try LoopbackXen(directory: directory)
        domainID = try LoopbackControl(directory: directory).createDomain(pages: pages, grantEntries: 16384)
        joined = joins ? try LoopbackDomain(joining: domainID, directory: directory) : nil
    }

    /// The domain, if this process is its frontend.
    var domain: LoopbackDomain {
        get throws { try #require(joined) }
    }

    /// A disk with its backend.
    func host(number: UInt32 = 51712, settings: ToySettings = ToySettings()) throws -> ToyHost {
        let host = try ToyHost(xen.platform(), domain: domainID, number: number, settings: settings)
        hosts.append(host)
        return host
    }

    /// The frontend of a disk, not connected yet.
    func device(number: UInt32 = 51712, _ change: (inout FrontOptions) -> Void = { _ in }) throws -> FrontDevice {
        var options = FrontOptions()
        change(&options)
        let domain = try domain
        return FrontDevice(domain: domain, store: try domain.openStore(), number: number, options: options)
    }

    /// The broker's view of the domain.
    func report() throws -> LoopbackDomainReport {
        try #require(try xen.domains().first { $0.id == domainID })
    }

    func stop() throws {
        for host in hosts { try host.stop() }
        hosts = []
        xen.stop()
        _ = try shell("rm -rf '\(directory)'")
    }
}

/// The directory of the programs that were built with the tests.
let buildDirectory: String = {
    var path = [CChar](repeating: 0, count: 4096)
    let count = readlink("/proc/self/exe", &path, path.count - 1)
    let text = String(decoding: path.prefix(max(count, 0)).map { UInt8(bitPattern: $0) }, as: UTF8.self)
    return String(text[..<(text.lastIndex(of: "/") ?? text.startIndex)])
}()

/// Runs a command; its exit status, and its output and error together.
func shell(_ command: String) throws -> (status: Int32, output: String) {
    // A crash must be an exit status, not a backtrace that waits for a terminal.
    guard let stream = popen("export SWIFT_BACKTRACE=enable=no; { \(command)\n} 2>&1", "r") else {
        throw OperationError(errno, "run \(command)")
    }
    var output: [UInt8] = []
    var buffer = [UInt8](repeating: 0, count: 65536)
    while true {
        let count = fread(&buffer, 1, buffer.count, stream)
        if count == 0 { break }
        output += buffer.prefix(count)
    }
    let status = pclose(stream)
    return (status & 0x7f == 0 ? status >> 8 & 0xff : -1, String(decoding: output, as: UTF8.self))
}
