// SPDX-License-Identifier: BSD-2-Clause
// The parameters of the command line: nbdkit libnbdkit-xbb-plugin.so dir=... domid=1 vdev=xvda
import Blkfront
import XenLoopback

/// A parameter that cannot be used, as a message for nbdkit.
struct ParameterError: Error {
    let message: String
}

/// What the command line says.
struct PluginConfiguration: Sendable {
    var directory = LoopbackXen.defaultDirectory
    var domain: UInt16?
    /// The disks that are exported, the default one first; xvda if there is none.
    var devices: [DeviceName] = []
    var options = FrontOptions()

    /// The defaults: room for nbdkit's sixteen threads with large requests, in the memory of a small domain.
    init() {
        options.ringPages = 2
        options.requestsPerQueue = 64
    }

    /// The disks to export.
    var exports: [DeviceName] { devices.isEmpty ? [DeviceName(number: 51712)] : devices }

    static let help = """
        dir=<DIRECTORY>     The loopback hypervisor's sockets (default: $XBB_LOOPBACK, or /run/xbb-loopback).
        domid=<N>           (required) The guest's domain.
        vdev=<NAME>         A disk: xvda (default), xvdb, or its number. May be given several times: each is exported
                            under its name, and the first one also under the empty name.
        ring-pages=<N>      Pages of each ring, 1 to 32 (default 2), lowered to what the backend offers.
        requests=<N>        Requests in flight for each queue (default 64); each takes 44 KiB of the domain,
                            or as many pages as a request may have.
        indirect=<N>        The most pages of a request, if the backend takes as many (default 32); 0 to 11 for no
                            indirect requests.
        queues=<N>          Queues, lowered to what the backend offers (default 1).
        abi=<NAME>          native (default), x86_64 or x86_32.
        grants=<POLICY>     per-request (default) or pooled.
        persistent=<BOOL>   Offer persistent grants (default 0).
        timeout=<MS>        How long each step of connecting may take (default 10000).
        """

    mutating func set(_ key: String, _ value: String) throws(ParameterError) {
        switch key {
        case "dir": directory = value
        case "domid": domain = try number(key, value)
        case "vdev":
            guard let name = DeviceName(value) else { throw ParameterError(message: "vdev=\(value) is no disk") }
            devices.append(name)
        case "ring-pages": options.ringPages = try number(key, value)
        case "queues": options.queues = try number(key, value)
        case "requests": options.requestsPerQueue = try number(key, value)
        case "indirect": options.indirectSegments = try number(key, value)
        case "timeout": options.timeout = try number(key, value)
        case "persistent": options.offersPersistentGrants = try flag(key, value)
        case "grants":
            guard let policy = GrantPolicy(rawValue: value) else {
                throw ParameterError(message: "grants=\(value): per-request or pooled")
            }
            options.grants = policy
        case "abi":
            switch value {
            case "native": options.abi = .native
            case "x86_64": options.abi = .x86_64
            case "x86_32": options.abi = .x86_32
            default: throw ParameterError(message: "abi=\(value): native, x86_64 or x86_32")
            }
        default:
            throw ParameterError(message: "unknown parameter '\(key)'")
        }
    }

    private func number<Number: FixedWidthInteger>(_ key: String, _ value: String) throws(ParameterError) -> Number {
        guard let number = Number(value) else { throw ParameterError(message: "\(key)=\(value) is no such number") }
        return number
    }

    private func flag(_ key: String, _ value: String) throws(ParameterError) -> Bool {
        switch value {
        case "1", "true", "yes", "on": return true
        case "0", "false", "no", "off": return false
        default: throw ParameterError(message: "\(key)=\(value) is neither 0 nor 1")
        }
    }
}
