// SPDX-License-Identifier: BSD-2-Clause
// xbb-qcow: QCOW images of QEMU, versions 1 to 3, read-only.  The entry point and the option schema.
import PluginKit

/// What can be configured.
enum QCOWOption {
    static let password = PluginOption.secret("password", default: "", help: "of images that are encrypted with AES")
    static let backingFormat = PluginOption.choice(
        "backing-format", default: BackingFormat.none,
        help: "the format of backing files of which the image does not say it; none: such an image is refused")
    static let cache = PluginOption.size(
        "cache", default: "1M", in: (64 << 10)...(256 << 20),
        help: "memory for tables of the image, for each thread that reads")
    static let lock = PluginOption.bool(
        "lock", default: true, help: "refuse an image that someone writes to (as QEMU does)")
    static let all: [any OptionSchema] = [password, backingFormat, cache, lock]
}

/// Formats that an administrator can give to a backing file.
enum BackingFormat: String, OptionChoice {
    case none
    case raw
    case qcow2
    case qcow
}

private let plugin = Plugin(
    name: "qcow", version: "1.0", description: "QCOW images, read-only (libqcow)", formats: ["qcow2", "qcow"],
    options: QCOWOption.all, hasFile: true, isBlocking: true, isReadOnly: true, inspector: QCOWInspector.self
) { opening throws(PluginError) in try QCOWDevice(opening) }

/// The one exported symbol.
@c(xbb_plugin_v1)
public func qcowPluginEntry() -> PluginEntry { plugin.entry }
