// swift-tools-version: 6.2
// SPDX-License-Identifier: BSD-2-Clause
// PluginKit for authors of storage plugins in Swift: .package(path: "/usr/share/xbb/PluginKit"). The header is the one that
// is installed: PluginAPI is a link to its folder.
import PackageDescription

let package = Package(
    name: "PluginKit",
    products: [.library(name: "PluginKit", targets: ["PluginKit"])],
    targets: [
        .systemLibrary(name: "PluginAPI", path: "PluginAPI"),
        .target(
            name: "PluginKit", dependencies: ["PluginAPI"], path: "Sources/PluginKit",
            swiftSettings: [
                .strictMemorySafety(), .enableUpcomingFeature("ExistentialAny"),
                // What a request goes through becomes a part of the plugin.
                .unsafeFlags(["-cross-module-optimization"], .when(configuration: .release)),
            ],
            linkerSettings: [
                // Swift has no stable ABI on Linux: a plugin brings its own runtime, whichever the host has.
                .unsafeFlags(["-static-stdlib"]),
                // A plugin exports one symbol and leaves nothing undefined (rule 1 of the ABI).
                .unsafeFlags([
                    "-Xlinker", "--version-script=\(Context.packageDirectory)/plugin.map",
                    "-Xlinker", "-z", "-Xlinker", "defs",
                ]),
            ]),
    ],
    swiftLanguageModes: [.v6]
)
