// SPDX-License-Identifier: BSD-2-Clause
// xbb-blkfront: a frontend at the command line, for loopback.
import ArgumentParser
import Blkfront
import Blkif
import CLinux
import Xen
import XenLoopback
import Support

@main
struct BlkfrontCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "xbb-blkfront",
        abstract: "A block frontend for xbb's loopback: what Linux's xen-blkfront does, as a program.",
        discussion: """
            The disk must have been made in XenStore, as a toolstack does. All verification of blkfront is done: a \
            backend that answers wrongly, or keeps a grant, ends the run.

            Exit status: 0 when all went well, 1 when the device died, was refused, or data were wrong, 64 for \
            wrong arguments.
            """,
        version: "xbb-blkfront \(xbbVersion)",
        subcommands: [Load.self, Info.self])
}

/// Options that say which disk, and how to connect to it.
struct DeviceArguments: ParsableArguments {
    @Option(help: "Directory of the loopback hypervisor's sockets.")
    var dir = LoopbackXen.defaultDirectory

    @Option(help: "The guest's domain. It must exist and have no frontend process.")
    var domid: UInt16

    @Option(help: "The disk: xvda, xvdb, ... or its number, 51712.")
    var vdev = "xvda"

    @Option(help: "Pages of each ring: 1, 2, 4, 8, 16 or 32; lowered to what the backend offers.")
    var ringPages = 1

    @Option(help: "Ask for this ABI: native, x86_64 or x86_32.")
    var abi = "native"

    @Option(name: .customLong("protocol"), help: "Text of the key \"protocol\"; '-' for no key.")
    var protocolText: String?

    @Option(help: "Keys that name the ring: \(RingScheme.allCases.map(\.rawValue).joined(separator: ", ")).")
    var ringScheme = RingScheme.automatic

    @Option(help: "Queues; lowered to what the backend offers.")
    var queues = 1

    @Option(help: "Where the ring's indices begin; 4294967290 lets them wrap around soon.")
    var startIndex: UInt32 = 0

    @Option(help: "per-request: grant for each request, as blkfront without persistent grants; pooled: grant once.")
    var grants = GrantPolicy.perRequest

    @Option(help: "The most pages of a request, if the backend takes as many; 0 to 11 for no indirect requests.")
    var indirect = 32

    @Flag(help: "Write feature-persistent=1.")
    var persistent = false

    @Option(help: "Milliseconds that each step of the backend may take.")
    var timeout = 10_000

    @Flag(help: "JSON instead of text.")
    var json = false

    func validate() throws {
        guard DeviceName(vdev) != nil else { throw ValidationError("'\(vdev)' is no disk; try xvda or 51712.") }
        guard (0...4096).contains(indirect) else { throw ValidationError("--indirect \(indirect): 0 to 4096.") }
        guard ringABI != nil else { throw ValidationError("'\(abi)' is no ABI; try native, x86_64 or x86_32.") }
    }

    /// The most bytes of a request that may be asked for.
    var mostBytes: Int { max(FrontQueue.directSize, indirect * 4096) }

    private var ringABI: RingABI? {
        switch abi {
        case "native": .native
        case "x86_64", "x86_64-abi": .x86_64
        case "x86_32", "x86_32-abi": .x86_32
        default: nil
        }
    }

    /// The device, not connected yet.
    func device(requestsPerQueue: Int? = nil) throws -> FrontDevice {
        var options = FrontOptions()
        options.ringPages = ringPages
        options.abi = ringABI ?? .native
        if let protocolText { options.protocolKey = protocolText == "-" ? .absent : .text(protocolText) }
        options.ringScheme = ringScheme
        options.queues = queues
        options.startIndex = startIndex
        options.grants = grants
        options.indirectSegments = indirect
        options.offersPersistentGrants = persistent
        options.timeout = timeout
        options.requestsPerQueue = requestsPerQueue
        let domain = try LoopbackDomain(joining: domid, directory: dir)
        for reference in domain.grantedReferences { _ = domain.endAccess(reference) }
        return FrontDevice(
            domain: domain, store: try domain.openStore(), number: DeviceName(vdev)?.number ?? 0, options: options)
    }
}

extension RingScheme: ExpressibleByArgument {}
extension GrantPolicy: ExpressibleByArgument {}
extension LoadPattern: ExpressibleByArgument {}

/// One line to the standard error, and exit status 1.
func fail(_ text: String) -> ExitCode {
    let line = [UInt8]("xbb-blkfront: \(text)\n".utf8)
    _ = unsafe line.withUnsafeBytes { unsafe write(2, $0.baseAddress, $0.count) }
    return .failure
}
