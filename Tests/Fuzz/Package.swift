// swift-tools-version: 6.2
// Fuzz targets over the product's own modules, which stand here as links: a package of their own, so that neither build grows.
// scripts/fuzz.sh builds it, and sets XBB_FUZZ_RUNTIME: libFuzzer without a main() of its own.
import PackageDescription

/// XBB_FUZZ_SANITIZE=none builds without AddressSanitizer: several times as many executions, that only traps and checks judge.
let address = Context.environment["XBB_FUZZ_SANITIZE"] != "none"

/// Optimised, with all traps of the language, AddressSanitizer, and what libFuzzer learns from.
let watched: [SwiftSetting] = [
    .strictMemorySafety(), .enableUpcomingFeature("ExistentialAny"),
    .unsafeFlags(
        [address ? "-sanitize=fuzzer,address" : "-sanitize=fuzzer", "-enable-testing", "-assert-config", "Debug"]),
]

/// What hands out the input: its own branches are of no interest.
let plain: [SwiftSetting] = address ? [.unsafeFlags(["-sanitize=address"])] : []

func module(_ name: String, _ dependencies: [Target.Dependency] = []) -> Target {
    .target(name: name, dependencies: dependencies, path: "Modules/\(name)", swiftSettings: watched)
}

/// A program with the targets of a folder.
func program(_ name: String, path: String, _ dependencies: [Target.Dependency]) -> Target {
    .executableTarget(
        name: name, dependencies: ["Driver", "TestSupport"] + dependencies, path: path,
        swiftSettings: plain + [.unsafeFlags(["-enable-testing"])],
        linkerSettings: [
            .unsafeFlags(
                (address ? ["-sanitize=address"] : []) + ["-Xlinker", "-lstdc++"]
                    + [Context.environment["XBB_FUZZ_RUNTIME"]].compactMap { $0 })
        ])
}

let package = Package(
    name: "xbb-fuzz",
    targets: [
        .target(name: "TestSupport", path: "Kit", swiftSettings: plain),
        .target(name: "Driver", dependencies: ["TestSupport"], path: "Driver", swiftSettings: plain),

        .target(name: "CRing", path: "Modules/CRing"),
        .target(name: "CLinux", path: "Modules/CLinux", linkerSettings: [.linkedLibrary("dl")]),
        .target(name: "PluginAPI", path: "Modules/PluginAPI"),
        .target(name: "CBlkifOracle", path: "Modules/CBlkifOracle"),
        .systemLibrary(name: "CXen", path: "Modules/CXen"),
        module("Memory", ["CRing", "CLinux"]),
        module("Base", ["CLinux"]),
        module("Support", ["Base", "CLinux"]),
        module("Blkif", ["Memory"]),
        module("StorageKeeping", ["Base", "CLinux"]),
        module("Xen", ["Base", "CXen", "CLinux", "Memory"]),
        module("PluginPort", ["Memory", "PluginAPI", "CLinux", "CRing"]),
        module("PluginHost", ["Base", "PluginPort", "PluginAPI", "StorageKeeping", "CLinux", "Support"]),
        module(
            "BlockQueue",
            [
                "Base", "Blkif", "Memory", "Xen", "PluginPort", "PluginHost", "PluginAPI", "CLinux", "CRing", "Support",
            ]),
        module("XenBus", ["Base", "Blkif"]),
        module("StoreBroker", ["Base", "CLinux", "Support", "Xen", "XenBus"]),
        module("ImageCore"),
        module("NBD"),
        module("QCOW2", ["ImageCore"]),
        module("ImageWriting", ["ImageCore"]),
        module("QCOWEngine", ["ImageCore", "ImageWriting", "QCOW2"]),
        module("VHD", ["ImageCore"]),
        module("VHDEngine", ["ImageCore", "ImageWriting", "VHD"]),
        module("Settings", ["Base"]),
        module("DiskEvents", ["Base", "Support"]),
        module("StorageSharing", ["Base", "CLinux", "Xen", "XenBus"]),
        module(
            "XBBControl",
            [
                "Base", "DiskEvents", "Settings", "StorageKeeping", "StorageSharing", "Xen", "XenBus", "CLinux",
                "Support",
            ]),

        program("fuzz-ring", path: "Ring", ["Blkif", "Memory", "CBlkifOracle"]),
        program(
            "fuzz-queue", path: "Queue",
            [
                "Base", "BlockQueue", "Blkif", "Memory", "Xen", "CXen", "PluginAPI", "PluginHost", "PluginPort",
            ]),
        program("fuzz-store", path: "Store", ["Base", "Blkif", "Memory", "StoreBroker", "Support", "Xen", "XenBus"]),
        program("fuzz-image", path: "Image", ["ImageCore", "ImageWriting", "QCOW2", "QCOWEngine", "VHD", "VHDEngine"]),
        program("fuzz-nbd", path: "NBD", ["NBD"]),
        program(
            "fuzz-control", path: "Control",
            ["Base", "DiskEvents", "PluginHost", "Settings", "StorageKeeping", "Support", "XBBControl", "XenBus"]),
    ],
    swiftLanguageModes: [.v6]
)
