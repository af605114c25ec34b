// SPDX-License-Identifier: BSD-2-Clause
// xbb-nbd: exports of NBD servers. The entry point and the option schema; URIs and names are those of nbd_connect_uri(3).
import PluginKit

/// What can be configured. What a URI says too is taken from the URI.
enum NBDOption {
    static let connections = PluginOption.count(
        "connections", default: 4, in: 1...7, help: "connections, where the server allows several; each serves a queue")
    static let connectTimeout = PluginOption.count(
        "connect-timeout", default: 10, in: 1...3600,
        help: "seconds to wait for the server, and for each of its answers, when the disk is opened")
    static let fenceTimeout = PluginOption.count(
        "fence-timeout", default: 0, in: 0...86400,
        help: "seconds after which writes of a process that died count as done where nobody can tell; 0: never")
    static let certificates = PluginOption.text(
        "tls-certificates", default: "",
        help: "directory with ca-cert.pem, and client-cert.pem and client-key.pem; empty: the system's authorities")
    static let presharedKeys = PluginOption.text(
        "tls-psk-file", default: "", help: "file with lines USER:KEY, as psktool writes them")
    static let user = PluginOption.text(
        "tls-username", default: "", help: "the user of the pre-shared key; empty: root")
    static let hostName = PluginOption.text(
        "tls-hostname", default: "", help: "the name that the server's certificate must have; empty: the URI's host")
    static let verifies = PluginOption.bool(
        "tls-verify-peer", default: true, help: "refuse a server whose certificate is not valid")
    static let all: [any OptionSchema] = [
        connections, connectTimeout, fenceTimeout, certificates, presharedKeys, user, hostName, verifies,
    ]
}

private let plugin = Plugin(
    // The format of a URI is its scheme.
    name: "nbd", version: "1.0", description: "Export of an NBD server", formats: ["nbd", "nbds"],
    options: NBDOption.all,
    hasFile: false, isNetwork: true
) { opening throws(PluginError) in try NBDDevice(opening) }

/// The one exported symbol.
@c(xbb_plugin_v1)
public func nbdPluginEntry() -> PluginEntry { plugin.entry }
