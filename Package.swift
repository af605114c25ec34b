// swift-tools-version: 6.2
// Modules in the order of the way of a request; the rules that hold for all of them are declared once.
import PackageDescription

/// Product code: strict memory safety, warnings are errors, `any` is always spelled.
let strict: [SwiftSetting] = [
    .strictMemorySafety(),
    .treatAllWarnings(as: .error),
    .enableUpcomingFeature("ExistentialAny"),
]

/// Modules whose small functions stand on the hot path of others: they are inlined there like functions of their own.
let inlined: [SwiftSetting] =
    strict + [
        .unsafeFlags(["-cross-module-optimization"], .when(configuration: .release))
    ]

/// Modules whose tests go through each state of an image: optimised in debug builds, too, which takes 40 % of the time off these
/// tests. Arithmetic traps and assertions hold as before.
let walkedThrough: [SwiftSetting] =
    inlined + [
        .unsafeFlags(["-O", "-assert-config", "Debug"], .when(configuration: .debug))
    ]

/// A plugin exports one symbol and leaves nothing undefined (plugin-abi rule 1), except for a sanitizer's functions,
/// which only the executable has: XBB_SANITIZE=1 in the environment of a build with --sanitize.
func onlyEntryPoint(_ map: String = "Plugins/plugin.map") -> [LinkerSetting] {
    let complete = ["-Xlinker", "-z", "-Xlinker", "defs"]
    return [
        .unsafeFlags(
            ["-Xlinker", "--version-script=\(Context.packageDirectory)/\(map)"]
                + (Context.environment["XBB_SANITIZE"] == nil ? complete : []))
    ]
}

/// A storage plugin: a shared library that knows PluginAPI and its own C library, never the host.
func plugin(_ name: String, path: String, _ dependencies: [Target.Dependency]) -> Target {
    .target(
        name: name, dependencies: dependencies, path: path, swiftSettings: strict,
        linkerSettings: onlyEntryPoint())
}

let package = Package(
    name: "xbb",
    products: [
        .executable(name: "xbbd", targets: ["xbbd"]),
        .executable(name: "xbb-vbd", targets: ["xbb-vbd"]),
        .executable(name: "xbbctl", targets: ["xbbctl"]),
        .executable(name: "xbb-dm", targets: ["xbb-dm"]),
        .executable(name: "xbb-loopback", targets: ["xbb-loopback"]),
        .executable(name: "xbb-blkfront", targets: ["xbb-blkfront"]),
        .executable(name: "xbb-bench", targets: ["xbb-bench"]),
        .executable(name: "xbb-plugin-check", targets: ["xbb-plugin-check"]),
        .library(name: "xbb-rawdisk", type: .dynamic, targets: ["RawDiskPlugin"]),
        .library(name: "xbb-file", type: .dynamic, targets: ["FilePlugin"]),
        .library(name: "xbb-qcow", type: .dynamic, targets: ["QCOWPlugin"]),
        .library(name: "xbb-rbd", type: .dynamic, targets: ["RBDPlugin"]),
        .library(name: "xbb-nbd", type: .dynamic, targets: ["NBDPlugin"]),
        .library(name: "xbb-empty", type: .dynamic, targets: ["EmptyPlugin"]),
        .library(name: "xbb-vhd", type: .dynamic, targets: ["VHDPlugin"]),
        .library(name: "xbb-null", type: .dynamic, targets: ["NullPlugin"]),
        .library(name: "xbb-error", type: .dynamic, targets: ["ErrorPlugin"]),
        .library(name: "xbb-delay", type: .dynamic, targets: ["DelayPlugin"]),
        .library(name: "nbdkit-xbb-plugin", type: .dynamic, targets: ["NBDKitBlkfront"]),
        .library(name: "evil-test-plugin", type: .dynamic, targets: ["EvilPlugin"]),
        .library(name: "faulty-test-plugin", type: .dynamic, targets: ["FaultyPlugin"]),
    ],
    dependencies: [
        .package(url: "https://github.com/apple/swift-argument-parser", from: "1.8.2")
    ],
    targets: [
        // What third parties compile against: the C header and its asserts.
        .target(name: "PluginAPI", cSettings: [.unsafeFlags(["-std=c11", "-Wall", "-Wextra", "-Werror"])]),

        // Unsafe memory behind a few small types with safe faces.
        .target(name: "CRing"),
        .target(name: "CLinux", linkerSettings: [.linkedLibrary("dl")]),
        .target(name: "Memory", dependencies: ["CRing", "CLinux"], swiftSettings: inlined),

        // What everybody needs: the error type, descriptors, threads.
        .target(name: "Base", dependencies: ["CLinux"], swiftSettings: strict),

        // All that can be set: declared once, for files, command lines and requests.
        .target(name: "Settings", dependencies: ["Base"], swiftSettings: strict),

        // What every program says and writes: version, log, JSON.
        .target(name: "Support", dependencies: ["Base", "CLinux"], swiftSettings: strict),

        // What happens to a disk, and how a worker tells it.
        .target(name: "DiskEvents", dependencies: ["Base", "Support"], swiftSettings: strict),

        // The open files of a disk and how they go from one process to the next.
        .target(name: "StorageKeeping", dependencies: ["Base", "CLinux"], swiftSettings: strict),

        // Pure: wire formats, ring arithmetic, validation, coalescing.
        .target(name: "Blkif", dependencies: ["Memory"], swiftSettings: inlined),

        // The Xen seam and its real form.
        .systemLibrary(name: "CXen"),
        .target(name: "Xen", dependencies: ["Base", "CXen", "CLinux", "Memory"], swiftSettings: inlined),

        // The same seam in shared memory, for machines without Xen.
        .target(name: "XenLoopback", dependencies: ["Base", "Xen", "CLinux", "Memory", "CXen"], swiftSettings: strict),

        // Negotiation as a pure state machine over typed XenStore keys.
        .target(name: "XenBus", dependencies: ["Base", "Blkif"], swiftSettings: strict),

        // Who uses storage, in this domain and as the disks of guests.
        .target(
            name: "StorageSharing", dependencies: ["Base", "CLinux", "Xen", "XenBus"], swiftSettings: strict),

        // Plugins: the requests that they get and the port where they answer, then loading them and their open disks.
        .target(
            name: "PluginPort", dependencies: ["Memory", "PluginAPI", "CLinux", "CRing"], swiftSettings: inlined
        ),
        .target(
            name: "PluginHost",
            dependencies: ["Base", "PluginPort", "PluginAPI", "StorageKeeping", "CLinux", "Support"],
            swiftSettings: strict),

        // The way of a request between ring and plugin; nothing of a VBD's life.
        .target(
            name: "BlockQueue",
            dependencies: [
                "Base", "Blkif", "Memory", "Xen", "PluginPort", "PluginHost", "PluginAPI", "CLinux", "CRing", "Support",
            ], swiftSettings: strict),

        // Rights that a process gives up, and images looked at by a process that has none.
        .target(name: "ProcessConfinement", dependencies: ["Base", "CLinux", "Support"], swiftSettings: strict),
        .target(
            name: "ImageInspection",
            dependencies: ["Base", "ImageCore", "ProcessConfinement", "PluginHost", "PluginAPI", "CLinux", "Support"],
            swiftSettings: strict),

        // XenStore for a worker that must not have it: a process that holds the connection and does what belongs to one VBD.
        .target(
            name: "StoreBroker", dependencies: ["Base", "CLinux", "Support", "Xen", "XenBus"], swiftSettings: strict),

        // The worker: a VBD's life from its node in XenStore to its end.
        .target(
            name: "XBBHost",
            dependencies: [
                "Base", "BlockQueue", "Blkif", "ProcessConfinement", "ImageInspection", "Memory", "PluginAPI",
                "PluginHost", "Settings", "StorageKeeping", "StorageSharing", "Xen",
                "XenBus", "CLinux", "DiskEvents", "Support",
            ], swiftSettings: strict),

        // A frontend for loopback.
        .target(
            name: "Blkfront",
            dependencies: ["Base", "Blkif", "Memory", "Xen", "XenBus", "XenLoopback", "Support", "CLinux"],
            swiftSettings: strict),
        .systemLibrary(name: "CNBDKit"),
        .target(
            name: "NBDKitBlkfront", dependencies: ["Blkfront", "CNBDKit", "XenLoopback"],
            exclude: ["plugin.map"], swiftSettings: strict,
            linkerSettings: [
                // nbdkit's functions stay undefined: the program that loads the plugin has them. Swift's metadata
                // must not be unloaded.
                .unsafeFlags([
                    "-Xlinker", "--version-script=\(Context.packageDirectory)/Sources/NBDKitBlkfront/plugin.map",
                    "-Xlinker", "-z", "-Xlinker", "nodelete",
                ])
            ]),

        // What xbbd and xbbctl are made of: supervision of workers, the control protocol, a small toolstack.
        .target(
            name: "XBBControl",
            dependencies: [
                "Base", "DiskEvents", "Settings", "StorageKeeping", "StorageSharing", "Xen", "XenBus", "CLinux",
                "Support",
            ],
            swiftSettings: strict),

        // Executables, thin.
        .executableTarget(
            name: "xbb-vbd",
            dependencies: [
                "BlockQueue", "Base", "ProcessConfinement", "ImageInspection", "PluginHost", "Settings",
                "StorageSharing",
                "StoreBroker",
                "XBBHost", "Xen",
                "XenLoopback", "CLinux", "Support",
            ],
            swiftSettings: strict
        ),
        .executableTarget(
            name: "xbbd",
            dependencies: [
                "Base", "Settings", "XBBControl", "Xen", "Support",
                .product(name: "ArgumentParser", package: "swift-argument-parser"),
            ], swiftSettings: strict),
        .executableTarget(
            name: "xbbctl",
            dependencies: [
                "Base", "Settings", "XBBControl", "CLinux", "Support", "Xen",
                .product(name: "ArgumentParser", package: "swift-argument-parser"),
            ], swiftSettings: strict),
        .executableTarget(name: "xbb-dm", dependencies: ["XBBControl", "Support"], swiftSettings: strict),
        .executableTarget(
            name: "xbb-loopback",
            dependencies: [
                "Xen", "CLinux", "Base", "Support", "XenLoopback",
                .product(name: "ArgumentParser", package: "swift-argument-parser"),
            ], swiftSettings: strict),
        .executableTarget(
            name: "xbb-blkfront",
            dependencies: [
                "Blkfront", "Blkif", "CLinux", "Xen", "XenLoopback", "Support",
                .product(name: "ArgumentParser", package: "swift-argument-parser"),
            ],
            swiftSettings: strict),

        // Benchmarks of the ring beside a bare C backend.
        .target(name: "CEcho", cSettings: [.unsafeFlags(["-O2", "-Wall", "-Wextra", "-Werror"])]),
        .executableTarget(
            name: "xbb-bench",
            dependencies: [
                "Xen", "PluginHost", "Memory", "BlockQueue", "Blkif", "Base", "Blkfront", "XenLoopback", "CEcho",
                "CLinux", "Support",
            ],
            swiftSettings: strict),

        // Formats of images, pure: no files, threads or plugins. ImageCore is what they have in common.
        .target(name: "ImageCore", path: "Formats/ImageCore", swiftSettings: walkedThrough),
        // What engines that write images have in common, over files that are real or simulated.
        .target(
            name: "ImageWriting", dependencies: ["ImageCore"], path: "Formats/ImageWriting",
            swiftSettings: walkedThrough),
        .target(name: "QCOW2", dependencies: ["ImageCore"], path: "Formats/QCOW2", swiftSettings: walkedThrough),
        // An image that is written: what changes when, over storage that is real or simulated.
        .target(
            name: "QCOWEngine", dependencies: ["ImageCore", "ImageWriting", "QCOW2"], path: "Formats/QCOWEngine",
            swiftSettings: walkedThrough),
        // The same of Microsoft's and XenServer's VHD.
        .target(name: "VHD", dependencies: ["ImageCore"], path: "Formats/VHD", swiftSettings: walkedThrough),
        .target(
            name: "VHDEngine", dependencies: ["ImageCore", "ImageWriting", "VHD"], path: "Formats/VHDEngine",
            swiftSettings: walkedThrough),

        // The client's side of the NBD protocol, pure: URIs, handshake, requests and replies, answers in a dead client's bytes.
        .target(name: "NBD", path: "Formats/NBD", swiftSettings: inlined),

        // Plugins.
        .systemLibrary(name: "CAIO", path: "Plugins/CAIO"),
        // For every author of a plugin in Swift; it is shipped as sources (packaging/PluginKit) and needs the header alone.
        .target(name: "PluginKit", dependencies: ["PluginAPI"], path: "Plugins/Kit", swiftSettings: inlined),
        // For plugins over a file descriptor: asynchronous I/O, threads, locks.
        .target(
            name: "FileKit", dependencies: ["PluginKit", "PluginAPI", "CAIO", "CLinux"], path: "Plugins/FileKit",
            swiftSettings: inlined),
        // For plugins over an image with tables: its file, its committer, its requests on the long way, what lies below it.
        .target(
            name: "ImageKit",
            dependencies: ["FileKit", "ImageCore", "ImageWriting", "PluginKit", "PluginAPI", "CLinux"],
            path: "Plugins/ImageKit", swiftSettings: inlined),
        plugin("RawDiskPlugin", path: "Plugins/RawDisk", ["PluginKit", "FileKit", "CLinux"]),
        plugin("FilePlugin", path: "Plugins/File", ["PluginKit", "FileKit", "CLinux"]),
        .systemLibrary(name: "CQCOW", path: "Plugins/CQCOW"),
        plugin(
            "QCOWPlugin", path: "Plugins/QCOW",
            [
                "PluginAPI", "PluginKit", "FileKit", "ImageCore", "ImageKit", "ImageWriting", "QCOW2", "QCOWEngine",
                "CQCOW",
            ]),
        .systemLibrary(name: "CGnuTLS", path: "Plugins/CGnuTLS", pkgConfig: "gnutls"),
        plugin("NBDPlugin", path: "Plugins/NBD", ["PluginAPI", "PluginKit", "NBD", "CGnuTLS"]),
        .systemLibrary(name: "CRBD", path: "Plugins/CRBD"),
        plugin("RBDPlugin", path: "Plugins/RBD", ["PluginAPI", "PluginKit", "CRBD"]),
        plugin(
            "VHDPlugin", path: "Plugins/VHD",
            [
                "PluginAPI", "PluginKit", "FileKit", "ImageCore", "ImageKit", "ImageWriting", "VHD", "VHDEngine",
            ]),
        .target(
            name: "TestingKit", dependencies: ["PluginKit"], path: "Plugins/Testing/Memory", swiftSettings: strict),
        plugin("ErrorPlugin", path: "Plugins/Testing/Error", ["PluginAPI", "PluginKit", "TestingKit"]),
        plugin("DelayPlugin", path: "Plugins/Testing/Delay", ["PluginKit", "TestingKit", "CLinux"]),
        .target(
            name: "EmptyPlugin", dependencies: ["PluginAPI"], path: "Plugins/Empty",
            cSettings: [.unsafeFlags(["-std=c11", "-Wall", "-Wextra", "-Werror"])], linkerSettings: onlyEntryPoint()),
        .target(
            name: "NullPlugin", dependencies: ["PluginAPI"], path: "Plugins/Testing/Null",
            cSettings: [.unsafeFlags(["-std=c11", "-Wall", "-Wextra", "-Werror"])], linkerSettings: onlyEntryPoint()),

        // What a plugin is checked with: a suspicious host in C, and the checks; for authors and for our own tests.
        .target(
            name: "CPluginHarness", dependencies: ["PluginAPI"],
            cSettings: [.unsafeFlags(["-std=c11", "-Wall", "-Wextra", "-Werror"])]),
        .target(name: "CAllocations", cSettings: [.unsafeFlags(["-std=c11", "-Wall", "-Wextra", "-Werror"])]),
        .target(
            name: "PluginCheck",
            dependencies: [
                "Base", "CPluginHarness", "CAllocations", "DiskEvents", "PluginHost", "PluginAPI", "CLinux", "Support",
            ],
            swiftSettings: strict),
        .executableTarget(name: "xbb-plugin-check", dependencies: ["PluginCheck", "Support"], swiftSettings: strict),

        // Tests; C oracles are compiled from Xen's own headers.
        .target(name: "TestSupport", dependencies: ["Base", "Support"], path: "Tests/TestSupport"),
        .target(name: "CBlkifOracle", path: "Tests/CBlkifOracle"),
        .testTarget(name: "BlkifTests", dependencies: ["Blkif", "Memory", "CBlkifOracle", "TestSupport", "CRing"]),
        .testTarget(
            name: "XenLoopbackTests",
            dependencies: ["Base", "XenLoopback", "Xen", "CXen", "CLinux", "TestSupport", "xbb-loopback", "Memory"]),
        .testTarget(
            name: "BlkfrontTests",
            dependencies: [
                "Base", "Blkfront", "Blkif", "Memory", "Xen", "XenBus", "XenLoopback", "CLinux", "Support",
                "TestSupport",
            ]),
        .testTarget(name: "SettingsTests", dependencies: ["Base", "ProcessConfinement", "Settings", "Support"]),
        .testTarget(
            name: "XenBusTests", dependencies: ["Base", "Blkif", "Memory", "StoreBroker", "XenBus", "TestSupport"]),
        .testTarget(
            name: "BlockQueueTests",
            dependencies: [
                "Base", "BlockQueue", "PluginHost", "PluginPort", "XBBHost", "Blkif", "Memory", "Xen", "CXen", "CLinux",
                "PluginAPI", "StorageKeeping", "Support",
                "TestSupport", "XenBus",
            ]),
        .executableTarget(
            name: "qcow-read", dependencies: ["CPluginHarness"], path: "Tests/QCOWRead",
            cSettings: [.unsafeFlags(["-std=c11", "-Wall", "-Wextra", "-Werror"])]),
        .testTarget(
            name: "FormatsTests",
            dependencies: ["ImageCore", "ImageWriting", "QCOW2", "QCOWEngine", "VHD", "TestSupport"]),
        .testTarget(name: "NBDTests", dependencies: ["NBD", "TestSupport"]),
        // Some of the plugin's own files (links in Parts), which shows its entry point alone.
        .testTarget(name: "NBDFenceTests", dependencies: ["CGnuTLS", "NBD", "PluginKit"]),
        .testTarget(
            name: "QCOWEngineTests",
            dependencies: ["ImageCore", "ImageWriting", "QCOW2", "QCOWEngine", "VHD", "VHDEngine", "TestSupport"]),
        .testTarget(name: "PluginKitTests", dependencies: ["PluginKit", "PluginAPI"]),
        .testTarget(
            name: "PluginTests",
            dependencies: [
                "PluginAPI", "PluginCheck", "CPluginHarness", "CLinux", "Support", "TestSupport",
                "qcow-read",
                "xbb-plugin-check", "PluginHost",
            ]),
        .target(
            name: "EvilPlugin", dependencies: ["PluginAPI"], path: "Tests/EvilPlugin", publicHeadersPath: ".",
            cSettings: [.unsafeFlags(["-std=c11", "-Wall", "-Wextra", "-Werror"])], linkerSettings: onlyEntryPoint()),
        .target(
            name: "FaultyPlugin", dependencies: ["PluginAPI"], path: "Tests/FaultyPlugin", publicHeadersPath: ".",
            cSettings: [.unsafeFlags(["-std=c11", "-Wall", "-Wextra", "-Werror"])], linkerSettings: onlyEntryPoint()),
        .executableTarget(name: "confine-probe", dependencies: ["CLinux"], path: "Tests/ConfineProbe"),
        .executableTarget(
            name: "rude-guest", dependencies: ["Blkfront", "Blkif", "CLinux", "Support", "Xen", "XenLoopback"],
            path: "Tests/RudeGuest"),
        .executableTarget(name: "fake-worker", dependencies: ["Base", "Xen", "CLinux"], path: "Tests/FakeWorker"),
        .testTarget(
            name: "ControlTests",
            dependencies: [
                "Base", "DiskEvents", "Settings", "StorageKeeping", "StorageSharing", "XBBControl", "XBBHost", "Xen",
                "XenBus",
                "XenLoopback", "CLinux", "Support",
                "TestSupport", "fake-worker", "xbbd", "xbbctl", "xbb-dm", "xbb-vbd", "BlockQueue", "PluginHost",
            ]),
        .target(
            name: "CXLConfig", path: "Tests/CXLConfig",
            linkerSettings: [.linkedLibrary("xlutil"), .linkedLibrary("xenlight")]),
        .testTarget(
            name: "EndToEndTests",
            dependencies: [
                "Base", "Blkfront", "Blkif", "Memory", "PluginHost", "XenLoopback", "Xen", "CLinux", "CXLConfig",
                "TestSupport",
                "xbb-vbd",
                "xbbd", "xbbctl", "xbb-dm", "confine-probe", "StoreBroker", "Support", "XBBControl",
            ]),
    ],
    swiftLanguageModes: [.v6]
)
