// SPDX-License-Identifier: BSD-2-Clause
// VHDs of all kinds written by the VHD plugin, and by QEMU in turn; QEMU and libvhdi judge what a model expects.
import CLinux
import CPluginHarness
import Glibc
import PluginAPI
import PluginCheck
import TestSupport
import Testing

/// One kind of VHD that is written.
struct WrittenVHD: CustomTestStringConvertible, Sendable {
    enum Kind: String, Sendable { case dynamic, fixed, differencing }

    var kind = Kind.dynamic
    /// Of QEMU: the size is that of a geometry, and the creator says so.
    var hasGeometry = false
    /// Commands of qemu-io that make the first content; of the parent, if there is one.
    var commands: [String] = []
    /// Requests go past the page cache.
    var isDirect = false

    var testDescription: String {
        "\(kind.rawValue)\(hasGeometry ? " by geometry" : "") \(commands.count) \(isDirect ? "direct" : "cached")"
    }

    private static let mixed = ["write -P 1 0 200k", "write -P 2 3M 300k", "write -P 3 5120k 512"]
    static let all: [WrittenVHD] = [
        .init(), .init(commands: mixed, isDirect: true), .init(hasGeometry: true, commands: mixed),
        .init(kind: .fixed, commands: mixed), .init(kind: .fixed, isDirect: true),
        .init(kind: .differencing, commands: mixed), .init(kind: .differencing, commands: mixed, isDirect: true),
    ]
}

/// An image on its way between the plugin and others.
struct VHDUnderTest {
    static let size = 7 << 20
    private static let tool = #filePath.replacing("PluginTests/VHDWritingTests.swift", with: "VHDTools/vhd.py")
    let kind: WrittenVHD
    let plugin: Plugin
    let path: String
    private let folder: TemporaryFolder
    /// The parent, open as long as this.
    private let base: Disk?

    init(_ folder: TemporaryFolder, _ plugin: Plugin, _ kind: WrittenVHD) throws {
        (self.folder, self.plugin, self.kind) = (folder, plugin, kind)
        path = "\(folder.path)/image.vhd"
        let isChild = kind.kind == .differencing
        let first = isChild ? "\(folder.path)/base.vhd" : path
        try Self.create(first, isFixed: kind.kind == .fixed, hasGeometry: kind.hasGeometry)
        try Self.qemu(kind.commands, first)
        if isChild { try Self.makeChild(of: first, at: path) }
        // The host of these tests knows the parent by its name.
        base = isChild ? try Disk(plugin, first, readOnly: true, format: "vhd") : nil
        if isChild { harness_offer_child("base.vhd", -1, base?.handle) }
    }

    static func create(_ path: String, isFixed: Bool = false, hasGeometry: Bool = false) throws {
        try WrittenImage.must(
            "qemu-img create -q -f vpc -o subformat=\(isFixed ? "fixed" : "dynamic")\(hasGeometry ? "" : ",force_size=on") "
                + "\(path) \(size)")
    }

    /// QEMU writes to it.
    static func qemu(_ commands: [String], _ path: String) throws {
        guard !commands.isEmpty else { return }
        let words = commands.map { "-c '\($0)'" }.joined(separator: " ")
        try WrittenImage.must("qemu-io -f vpc \(words) \(path) > \(path).io 2>&1; ! grep -i error \(path).io")
    }

    /// An empty differencing image, as XenServer makes one: nothing of Debian does.
    static func makeChild(of base: String, at path: String, name: String = ".\\base.vhd") throws {
        try WrittenImage.must("\(tool) child '\(base)' '\(path)' '\(name)'")
    }

    /// What libvhdi reads, a reader that shares nothing with QEMU's or ours.
    func contentOfLibvhdi() throws -> [UInt8] {
        let parent = kind.kind == .differencing ? "'\(folder.path)/base.vhd'" : ""
        let copy = "\(folder.path)/copy"
        try WrittenImage.must("\(Self.tool) read '\(copy)' '\(path)' \(parent)")
        return try Self.bytes(of: copy)
    }

    /// What QEMU reads, which knows no differencing images.
    func contentOfQEMU() throws -> [UInt8] {
        let copy = "\(folder.path)/copy"
        try WrittenImage.must("qemu-img convert -U -f vpc -O raw \(path) \(copy)")
        return try Self.bytes(of: copy)
    }

    private static func bytes(of path: String) throws -> [UInt8] {
        let fd = clinux_open(path, O_RDONLY | O_CLOEXEC, 0)
        defer { close(fd) }
        var bytes = [UInt8](repeating: 0, count: Int(lseek(fd, 0, SEEK_END)))
        guard pread(fd, &bytes, bytes.count, 0) == bytes.count else { throw Failure("a short copy") }
        return bytes
    }

    /// Opens it, lets `body` use it, and closes it.
    func written(_ body: (Disk) throws -> Void) throws {
        let disk = try Disk(plugin, path, ["direct": kind.isDirect ? "on" : "off", "threads": "4"], format: "vhd")
        try body(disk)
        #expect(disk.breaches == 0)
        disk.close()
    }
}

@Suite(.serialized) struct VHDWritingTests {
    let folder = TemporaryFolder()
    let plugin: Plugin

    init() throws { plugin = try Plugin("vhd") }

    /// The plugin, then QEMU, then the plugin again: all readers read the same after each.
    @Test(arguments: WrittenVHD.all) func allReadersReadTheSame(kind: WrittenVHD) throws {
        let image = try VHDUnderTest(folder, plugin, kind)
        for round in 0..<2 {
            var found: [UInt8] = []
            try image.written { disk in
                let first = try WrittenImage.content(disk)
                if kind.kind != .differencing {
                    let wanted = try image.contentOfQEMU()
                    #expect(first == wanted)
                }
                try WrittenImage.writeAtRandom(disk, queues: 3, count: 60, seed: UInt64(round + 7))
                found = try WrittenImage.content(disk)
            }
            // By size, where QEMU goes by the geometry.
            let libvhdis = try Array(image.contentOfLibvhdi().prefix(found.count))
            #expect(libvhdis == found, "libvhdi, round \(round)")
            guard kind.kind != .differencing else { continue }
            let qemus = try image.contentOfQEMU()
            #expect(qemus == found, "QEMU, round \(round)")
            try VHDUnderTest.qemu(["write -P 7 100k 300k", "write -P 8 5M 5k", "write -P 9 1500k 1M"], image.path)
        }
    }

    /// Opening, reading, flushing and closing change no byte.
    @Test func nothingIsChangedUnasked() throws {
        let image = try VHDUnderTest(folder, plugin, WrittenVHD(commands: ["write -P 1 0 1M"]))
        try WrittenImage.must("cp \(image.path) \(image.path).before")
        try image.written { disk in
            let queue = try Queue(disk)
            #expect(queue.read(0, 65536).status == 0 && queue.command(XBB_OP_FLUSH) == 0)
            queue.close()
        }
        #expect(shell("cmp \(image.path) \(image.path).before").status == 0)
    }

    /// A footer that is damaged at the end is taken from the beginning, for reading and for writing, and mended by a new block.
    @Test func aDamagedFooterIsSurvived() throws {
        let image = try VHDUnderTest(folder, plugin, WrittenVHD(commands: ["write -P 1 0 64k"]))
        try WrittenImage.must(
            "printf x | dd of=\(image.path) bs=1 seek=$(($(stat -c %s \(image.path)) - 500)) conv=notrunc status=none")
        do {
            let disk = try Disk(plugin, image.path, readOnly: true, format: "vhd")
            #expect(disk.log.contains("its copy at the beginning is used"), "\(disk.log)")
            disk.close()
        }
        try image.written { disk in
            let queue = try Queue(disk)
            #expect(queue.read(0, 512).bytes == [UInt8](repeating: 1, count: 512))
            #expect(queue.write(4 << 20, [UInt8](repeating: 2, count: 512)) == 0)
            queue.close()
        }
        #expect(try image.contentOfLibvhdi()[4 << 20] == 2)
    }

    /// A parent that is another image, is not there, or lies elsewhere.
    @Test func aWrongParentIsRefused() throws {
        let image = try VHDUnderTest(folder, plugin, WrittenVHD(kind: .differencing))
        let other = "\(folder.path)/other.vhd"
        try VHDUnderTest.create(other)
        try WrittenImage.must("rm \(image.path)")
        try VHDUnderTest.makeChild(of: other, at: image.path)
        let refused = #expect(throws: Failure.self) { try Disk(plugin, image.path, format: "vhd") }
        #expect(refused?.description.contains("its identifier differs") == true, "\(refused?.description ?? "")")
        try WrittenImage.must("rm \(image.path)")
        try VHDUnderTest.makeChild(of: other, at: image.path, name: "..\\..\\etc\\passwd")
        #expect(throws: Failure.self) { try Disk(plugin, image.path, format: "vhd") }
    }
}
