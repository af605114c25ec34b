// SPDX-License-Identifier: BSD-2-Clause
// xbb-rbd: images of Ceph's block device. The entry point and the option schema; names are those of rbd(8) and QEMU.
import PluginKit

/// What can be configured.
enum RBDOption {
    static let conf = PluginOption.text(
        "conf", default: "/etc/ceph/ceph.conf", help: "Ceph's configuration file; empty: none")
    static let cluster = PluginOption.text("cluster", default: "ceph", help: "name of the cluster")
    static let id = PluginOption.text("id", default: "", help: "client without 'client.', as of rbd --id")
    static let user = PluginOption.text(
        "user", default: "", help: "the same as id, as QEMU calls it; without both: admin")
    static let keyring = PluginOption.text("keyring", default: "", help: "file with the client's key; else as in conf")
    static let key = PluginOption.secret("key", default: "", help: "the client's key itself")
    static let monitors = PluginOption.text("mon-host", default: "", help: "addresses of monitors; else as in conf")
    static let timeout = PluginOption.count(
        "timeout", default: 30, in: 1...3600, help: "seconds to wait for a monitor when the disk is opened")
    static let cache = PluginOption.choice(
        "cache", default: CacheChoice.none, help: "librbd's cache: none, or writethrough for reads")
    static let runDirectory = PluginOption.text(
        "run-dir", default: "/run/xbb-rbd", help: "where this host notes which client has an image")
    static let all: [any OptionSchema] = [
        conf, cluster, id, user, keyring, key, monitors, timeout, cache, runDirectory,
    ]
}

/// How the option `cache` can be set. A cache that is written back would lose what was completed with the process.
enum CacheChoice: String, OptionChoice {
    case none
    case writethrough
}

private let plugin = Plugin(
    name: "rbd", version: "1.0", description: "Image of a Ceph block device (RBD)", options: RBDOption.all,
    hasFile: false, isNetwork: true, scratch: RBDQueue.scratchBytes
) { opening throws(PluginError) in try RBDDevice(opening) }

/// The one exported symbol.
@c(xbb_plugin_v1)
public func rbdPluginEntry() -> PluginEntry { plugin.entry }
