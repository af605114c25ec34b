// SPDX-License-Identifier: BSD-2-Clause
// Images of all kinds written by the QCOW plugin and by QEMU in turn; qemu-img judges the one, a model the other.
import CLinux
import CPluginHarness
import Dispatch
import Glibc
import PluginAPI
import PluginCheck
import Synchronization
import TestSupport
import Testing

/// One kind of image that is written.
struct WrittenKind: CustomTestStringConvertible, Sendable {
    /// What lies below it.
    enum Below: Sendable {
        case nothing
        /// Shorter than the disk.
        case raw
        /// With data, zeroes and holes of its own.
        case qcow2
    }

    /// Of qemu-img create.
    var options = ""
    var below = Below.nothing
    /// Commands of qemu-io that make the first content.
    var commands: [String] = []
    /// Of qemu-img convert, which makes the content in place of the commands; for deflated clusters.
    var conversion: String?
    /// A snapshot is taken of the first content.
    var hasSnapshot = false
    /// Bytes; not a whole number of clusters.
    var size = 3 << 20 | 512 * 3
    /// Requests go past the page cache.
    var isDirect = false

    var testDescription: String {
        "\(options.isEmpty ? "plain" : options) \(conversion ?? "") \(below) \(commands.count)"
            + "\(hasSnapshot ? " snapshot" : "") \(isDirect ? "direct" : "cached")"
    }

    /// O_DIRECT needs clusters of whole pages.
    var canBeDirect: Bool { !options.contains("cluster_size=512") }

    private static let mixed = [
        "write -P 1 0 200k", "write -P 2 1M 300k", "write -z 1100k 100k", "write -zu 64k 64k", "discard 1300k 64k",
        "write -P 3 2500k 512",
    ]

    private static let kinds: [WrittenKind] = [
        .init(), .init(commands: mixed), .init(options: "compat=0.10"),
        .init(options: "compat=0.10", commands: ["write -P 1 0 200k", "write -P 2 1M 300k", "discard 1100k 64k"]),
        .init(options: "cluster_size=512"), .init(options: "cluster_size=512", commands: mixed),
        .init(options: "cluster_size=4k", commands: mixed), .init(options: "cluster_size=2M", commands: mixed),
        .init(options: "refcount_bits=1", commands: mixed), .init(options: "refcount_bits=64", commands: mixed),
        .init(options: "cluster_size=512,refcount_bits=64"), .init(options: "cluster_size=4k,refcount_bits=8"),
        .init(options: "preallocation=metadata"), .init(options: "preallocation=full,cluster_size=4k"),
        .init(options: "preallocation=falloc"), .init(options: "lazy_refcounts=on", commands: mixed),
        .init(below: .raw), .init(below: .qcow2, commands: mixed), .init(options: "compat=0.10", below: .raw),
        .init(options: "cluster_size=512", below: .qcow2), .init(options: "cluster_size=2M", below: .qcow2),
        .init(options: "cluster_size=4k", below: .raw, commands: mixed),
        .init(commands: mixed, hasSnapshot: true),
        .init(options: "cluster_size=512", commands: mixed, hasSnapshot: true),
        .init(options: "compat=0.10", commands: ["write -P 1 0 200k"], hasSnapshot: true),
        .init(options: "refcount_bits=2,cluster_size=4k", below: .qcow2, commands: mixed, hasSnapshot: true),
        .init(options: "extended_l2=on,cluster_size=64k"),
        .init(options: "extended_l2=on,cluster_size=64k", commands: mixed),
        .init(options: "extended_l2=on,cluster_size=128k", below: .raw, commands: mixed),
        .init(options: "extended_l2=on,cluster_size=16k", below: .qcow2, commands: mixed),
        .init(options: "extended_l2=on,cluster_size=2M", below: .qcow2, commands: mixed),
        .init(options: "extended_l2=on,cluster_size=64k", below: .qcow2, commands: mixed, hasSnapshot: true),
        .init(options: "extended_l2=on,cluster_size=64k,preallocation=metadata"),
        .init(conversion: "-c -o extended_l2=on,cluster_size=64k", hasSnapshot: true),
        .init(conversion: "-c"), .init(conversion: "-c -o cluster_size=4k"),
        .init(conversion: "-c -o cluster_size=512"), .init(conversion: "-c -o cluster_size=2M"),
        .init(conversion: "-c", hasSnapshot: true), .init(conversion: "-c -o compat=0.10", hasSnapshot: true),
    ]

    /// With and without the page cache.
    static let all = kinds.flatMap { kind -> [WrittenKind] in
        var direct = kind
        direct.isDirect = true
        return kind.canBeDirect && direct.conversion?.contains("=512") != true ? [kind, direct] : [kind]
    }

    /// With XBB_LONG all of them, else each kind in one of the two ways.
    static let some =
        getenv("XBB_LONG") != nil
        ? all
        : kinds.enumerated().map { index, kind in
            var kind = kind
            kind.isDirect = index % 2 == 1 && kind.canBeDirect && kind.conversion?.contains("=512") != true
            return kind
        }
}

/// An image on its way between the plugin and QEMU.
struct WrittenImage {
    let folder: TemporaryFolder
    let plugin: Plugin
    let kind: WrittenKind
    let path: String
    /// The layer below, open as long as this.
    private let base: Disk?
    private let baseFD: Int32

    init(_ folder: TemporaryFolder, _ plugin: Plugin, _ kind: WrittenKind) throws {
        (self.folder, self.plugin, self.kind) = (folder, plugin, kind)
        path = "\(folder.path)/image"
        let below = "\(folder.path)/below"
        if kind.below != .nothing {
            try Self.must("mv \(makeSource(folder, bytes: kind.size - (1 << 20), seed: 5)) \(below)")
        }
        if kind.below == .qcow2 {
            try Self.must(
                "qemu-img convert -O qcow2 \(below) \(below).q && mv \(below).q \(below) && qemu-img resize -q \(below) "
                    + "\(kind.size + 1024) && qemu-io -f qcow2 -c 'write -z 300k 100k' -c 'write -P 9 2300k 700k' \(below)"
            )
        }
        if let conversion = kind.conversion {
            let source = makeSource(folder, bytes: kind.size, seed: 6)
            // What deflating makes no smaller is stored as it is.
            try Self.must("qemu-img convert -f raw -O qcow2 \(conversion) \(source) \(path)")
        } else {
            let options = kind.options.isEmpty ? "" : "-o \(kind.options)"
            let backing = kind.below == .nothing ? "" : "-b \(below) -F \(kind.below == .raw ? "raw" : "qcow2")"
            try Self.must("qemu-img create -q -f qcow2 \(options) \(backing) \(path) \(kind.size)")
        }
        // The host of these tests knows the layer below by its name.
        base = kind.below == .qcow2 ? try Disk(plugin, below, readOnly: true) : nil
        baseFD = kind.below == .raw ? clinux_open(below, O_RDONLY | O_CLOEXEC, 0) : -1
        if kind.below != .nothing { harness_offer_child(below, baseFD, base?.handle) }
        try qemu(kind.commands)
        if kind.hasSnapshot { try Self.must("qemu-img snapshot -c one \(path)") }
    }

    /// A shell command that has to go well.
    static func must(_ command: String) throws {
        let result = shell(command)
        guard result.status == 0 else { throw Failure("\(command): \(result.output)") }
    }

    /// QEMU writes to it.
    func qemu(_ commands: [String]) throws {
        guard !commands.isEmpty else { return }
        let words = commands.map { "-c '\($0)'" }.joined(separator: " ")
        try Self.must("qemu-io -f qcow2 \(words) \(path) > \(folder.path)/io 2>&1; ! grep -i error \(folder.path)/io")
    }

    /// What QEMU reads; of the snapshot, if so.
    func content(ofSnapshot: Bool = false) throws -> [UInt8] {
        let copy = "\(folder.path)/copy"
        try Self.must("qemu-img convert -U -O raw \(ofSnapshot ? "-l one" : "") -f qcow2 \(path) \(copy)")
        var bytes = [UInt8](repeating: 0, count: kind.size)
        let fd = clinux_open(copy, O_RDONLY | O_CLOEXEC, 0)
        defer { close(fd) }
        guard read(fd, &bytes, bytes.count) == bytes.count else { throw Failure("a short copy") }
        return bytes
    }

    /// Opens it, lets `body` use it, closes it, and has QEMU check it.
    func written(mayLeak: Bool = false, _ body: (Disk) throws -> Void) throws {
        do {
            let disk = try Disk(plugin, path, ["direct": kind.isDirect ? "on" : "off", "threads": "4"])
            try body(disk)
            #expect(disk.breaches == 0)
            disk.close()
        }
        let check = shell("qemu-img check -f qcow2 \(path)")
        #expect(check.status == 0 || mayLeak && check.status == 3, "\(kind.testDescription): \(check.output)")
    }

    /// All bytes, by one queue.
    static func content(_ disk: Disk) throws -> [UInt8] {
        let queue = try Queue(disk)
        var bytes: [UInt8] = []
        let size = Int(disk.info.size)
        while bytes.count < size {
            let (status, part) = queue.read(UInt64(bytes.count), min(256 << 10, size - bytes.count))
            guard status == 0 else { throw Failure("a read at \(bytes.count): \(status)") }
            bytes += part
        }
        return bytes
    }

    /// Random requests on several queues at once; each has a part of the disk, and the parts share clusters.
    static func writeAtRandom(_ disk: Disk, queues: Int, count: Int, seed: UInt64) throws {
        let part = Int(disk.info.size) / queues / 512 * 512
        let failures = Mutex<[String]>([])
        let shared = SharedDisk(disk)
        DispatchQueue.concurrentPerform(iterations: queues) { index in
            do {
                let queue = try Queue(shared.disk, index: UInt32(index))
                var model = try DataModel(of: queue, size: part, at: UInt64(index * part), seed: seed + UInt64(index))
                try model.run(on: queue, count: count, depth: 8, seed: seed)
                queue.close()
            } catch {
                failures.withLock { $0.append("queue \(index): \(error)") }
            }
        }
        let all = failures.withLock { $0 }
        guard all.isEmpty else { throw Failure(all.joined(separator: "; ") + "; \(disk.log)") }
    }

    /// A disk on several threads: queues are opened by them, and the disk outlives them.
    private final class SharedDisk: @unchecked Sendable {
        let disk: Disk
        init(_ disk: Disk) { self.disk = disk }
    }
}

@Suite(.serialized) struct QCOWWritingTests {
    let folder = TemporaryFolder()
    let plugin: Plugin

    init() throws { plugin = try Plugin("qcow") }

    /// The plugin, then QEMU, then the plugin again: after each qemu-img finds nothing to complain of, not even a leak, and both
    /// read the same. What a snapshot has stays.
    @Test(arguments: WrittenKind.some)
    func theImageIsWholeAndBothReadTheSame(kind: WrittenKind) throws {
        let image = try WrittenImage(folder, plugin, kind)
        let seed = testSeed("QCOWWritingTests")
        let before = try image.content()
        for round in 0..<2 {
            var found: [UInt8] = []
            try image.written { disk in
                let first = try WrittenImage.content(disk)
                let wanted = try image.content()
                try #require(first == wanted, "round \(round), first")
                let count = getenv("XBB_LONG") == nil ? 50 : 400
                try WrittenImage.writeAtRandom(disk, queues: 3, count: count, seed: seed &+ UInt64(round))
                found = try WrittenImage.content(disk)
            }
            let qemus = try image.content()
            #expect(
                found == qemus, "round \(round): \(zip(found, qemus).enumerated().first { $1.0 != $1.1 }?.offset ?? -1)"
            )
            if kind.hasSnapshot {
                #expect(try image.content(ofSnapshot: true) == before, "the snapshot, round \(round)")
            }
            let isOld = kind.options.contains("compat=0.10") || kind.conversion?.contains("compat=0.10") == true
            try image.qemu(
                ["write -P 7 100k 300k", "write -P 8 2M 5k", "discard 1M 200k"] + (isOld ? [] : ["write -z 700k 80k"]))
        }
    }

    /// A snapshot of after the first writes, whose clusters are the plugin's own, then more writes, and back to the snapshot.
    @Test(arguments: ["", "cluster_size=4k", "compat=0.10", "cluster_size=16k,extended_l2=on"])
    func aSnapshotOfWhatWasWrittenStays(options: String) throws {
        let image = try WrittenImage(folder, plugin, WrittenKind(options: options))
        try image.written { try WrittenImage.writeAtRandom($0, queues: 2, count: 150, seed: 1) }
        try WrittenImage.must("qemu-img snapshot -c one \(image.path)")
        let kept = try image.content()
        try image.written { try WrittenImage.writeAtRandom($0, queues: 2, count: 150, seed: 2) }
        #expect(try image.content(ofSnapshot: true) == kept)
        try WrittenImage.must("qemu-img snapshot -a one \(image.path)")
        try image.written { disk in
            let content = try WrittenImage.content(disk)
            #expect(content == kept)
        }
        try WrittenImage.must("qemu-img snapshot -d one \(image.path)")
        try image.written { try WrittenImage.writeAtRandom($0, queues: 2, count: 150, seed: 3) }
    }

    /// Opening, reading, flushing and closing change no byte; the first write takes away what others said of the content.
    @Test func nothingIsChangedUnasked() throws {
        let image = try WrittenImage(
            folder, plugin, WrittenKind(options: "lazy_refcounts=on", commands: ["write -P 1 0 1M"]))
        try WrittenImage.must("qemu-img bitmap --add \(image.path) backup && cp \(image.path) \(image.path).before")
        // A feature that nobody knows, and that does not matter to who only reads.
        try WrittenImage.must("printf '\\200' | dd of=\(image.path) bs=1 seek=88 conv=notrunc status=none")
        try WrittenImage.must("cp \(image.path) \(image.path).before")
        try image.written { disk in
            let queue = try Queue(disk)
            #expect(queue.read(0, 65536).status == 0 && queue.command(XBB_OP_FLUSH) == 0)
            queue.close()
        }
        #expect(shell("cmp \(image.path) \(image.path).before").status == 0, "the image was changed")
        // The bitmap's clusters have no owner any more.
        try image.written(mayLeak: true) { disk in
            let queue = try Queue(disk)
            #expect(queue.write(2 << 20, [UInt8](repeating: 3, count: 4096)) == 0)
            queue.close()
        }
        let after = shell("od -An -tx1 -j72 -N24 \(image.path)").output
        #expect(
            after.split { " \n".contains($0) }.map(String.init) == ["00", "00", "00", "00", "00", "00", "00", "00"]
                + ["00", "00", "00", "00", "00", "00", "00", "01"] + Array(repeating: "00", count: 8), "\(after)")
    }

    static let refusals: [(make: String, words: String)] = [
        ("qemu-img create -q -f qcow IMAGE 1M", "can only be read: attach the disk read-only, or convert"),
        (
            "qemu-img create -q -f qcow2 --object secret,id=s,data=x -o encrypt.format=aes,encrypt.key-secret=s IMAGE 1M",
            "can only be read"
        ),
        (
            "qemu-img create -q -f qcow2 IMAGE 1M && printf '\\002' | dd of=IMAGE bs=1 seek=79 conv=notrunc status=none",
            "marked as corrupt"
        ),
    ]

    @Test(arguments: 0..<refusals.count)
    func whatCannotBeWrittenIsRefusedByName(index: Int) throws {
        let (make, words) = Self.refusals[index]
        let path = "\(folder.path)/image"
        try WrittenImage.must(make.replacing("IMAGE", with: path) + " 2>/dev/null")
        let format = index == 0 ? "qcow" : "qcow2"
        let refused = #expect(throws: Failure.self) { try Disk(plugin, path, ["password": "x"], format: format) }
        #expect(refused?.description.contains(words) == true, "\(refused?.description ?? "")")
    }
}
