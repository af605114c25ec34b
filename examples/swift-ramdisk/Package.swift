// swift-tools-version: 6.2
// SPDX-License-Identifier: BSD-2-Clause
import PackageDescription

// XBB_PLUGINKIT is for those who have PluginKit elsewhere than Debian's xbb-plugin-dev puts it.
let package = Package(
    name: "swift-ramdisk",
    products: [.library(name: "xbb-swift-ramdisk", type: .dynamic, targets: ["RAMDisk"])],
    dependencies: [.package(path: Context.environment["XBB_PLUGINKIT"] ?? "/usr/share/xbb/PluginKit")],
    targets: [
        .target(
            name: "RAMDisk", dependencies: ["PluginKit"],
            swiftSettings: [.strictMemorySafety(), .treatAllWarnings(as: .error)])
    ]
)
