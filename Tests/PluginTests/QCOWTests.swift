// SPDX-License-Identifier: BSD-2-Clause
// The QCOW plugin against qemu-img: what it reads, and what it refuses by name.
import CPluginHarness
import Glibc
import PluginAPI
import PluginCheck
import TestSupport
import Testing

/// One image read whole in a process of its own, beside what qemu-img makes of it.
struct QCOWImage {
    let folder: TemporaryFolder
    let path: String
    let format: String

    /// Makes `source` into an image with qemu-img.
    init(_ folder: TemporaryFolder, from source: String, format: String, _ options: String) throws {
        self.folder = folder
        self.format = format
        path = "\(folder.path)/image"
        let made = shell("qemu-img convert -f raw -O \(format) \(options) \(source) \(path)")
        // qemu-img 7.2 makes a good compressed image of version 1 and says 1 without a word.
        guard made.status == 0 || format == "qcow" && options == "-c" && made.output.isEmpty else {
            throw Failure(description: made.output)
        }
    }

    /// Reads all of it with the plugin, for a comparison; the words of qcow-read, "same" at the end if it is `expected`.
    func read(expecting expected: String, environment: String = "") -> String {
        let copy = "\(folder.path)/copy"
        let read = shell(
            "\(environment) \(buildFolder)/qcow-read \(library("qcow")) \(format) \(path) \(copy) && cmp \(copy) \(expected) "
                + "&& echo same")
        return read.output
    }
}

/// A raw image with data, text and holes; its size is no multiple of a cluster.
func makeSource(_ folder: TemporaryFolder, bytes: Int, seed: UInt64) -> String {
    let path = folder.file("source", size: bytes)
    var random = SplitMix64(seed: seed)
    guard let file = fopen(path, "r+") else { return path }
    defer { fclose(file) }
    var position = 0
    while position < bytes {
        let length = min(Int(random.next() % 96 + 1) * 1024, bytes - position)
        let kind = random.next() % 5
        if kind < 3 {
            let part = (0..<length).map { _ in
                kind == 0 ? UInt8(97 + random.next() % 3) : UInt8(truncatingIfNeeded: random.next())
            }
            fseek(file, position, SEEK_SET)
            fwrite(part, 1, length, file)
        }
        position += length
    }
    return path
}

@Suite struct QCOWTests {
    let folder = TemporaryFolder()
    let plugin: Plugin

    init() throws { plugin = try Plugin("qcow") }

    static let kinds: [(format: String, options: String)] = [
        ("qcow", ""), ("qcow", "-c"), ("qcow2", "-o compat=0.10"), ("qcow2", "-c -o compat=0.10"), ("qcow2", ""),
        ("qcow2", "-c"), ("qcow2", "-o cluster_size=512"), ("qcow2", "-c -o cluster_size=512"),
        ("qcow2", "-o cluster_size=2M"), ("qcow2", "-c -o cluster_size=2M"), ("qcow2", "-o refcount_bits=1"),
        ("qcow2", "-o preallocation=metadata"), ("qcow2", "-o lazy_refcounts=on"),
        ("qcow2", "-o extended_l2=on,cluster_size=64k"), ("qcow2", "-c -o extended_l2=on,cluster_size=16k"),
        ("qcow2", "-o extended_l2=on,cluster_size=2M"),
    ]

    @Test(arguments: kinds)
    func readsWhatWasWritten(format: String, options: String) throws {
        let source = makeSource(folder, bytes: 3 << 20 | 512, seed: 7)
        let image = try QCOWImage(folder, from: source, format: format, options)
        let words = image.read(expecting: source)
        #expect(words.hasSuffix("same\n"), "\(words)")
    }

    @Test(arguments: ["qcow2", "qcow"])
    func decryptsAESAndGivesNothingAwayWithoutThePassword(format: String) throws {
        let source = makeSource(folder, bytes: 3 << 20 | 512, seed: 9)
        let path = "\(folder.path)/image"
        let secret = "--object secret,id=s,data=correct-horse-battery"
        shell(
            "qemu-img create -q -f \(format) \(secret) -o encrypt.format=aes,encrypt.key-secret=s \(path) \(3 << 20 | 512)"
        )
        let filled = shell(
            "qemu-img convert -n \(secret) --image-opts --target-image-opts driver=raw,file.filename=\(source) "
                + "driver=\(format),encrypt.key-secret=s,file.filename=\(path)")
        #expect(filled.status == 0, "\(filled.output)")
        let copy = "\(folder.path)/copy"
        let command = "\(buildFolder)/qcow-read \(library("qcow")) \(format) \(path) \(copy)"
        let good = shell("XBB_PASSWORD=correct-horse-battery \(command) && cmp \(copy) \(source)")
        #expect(good.status == 0, "\(good.output)")
        let none = shell(command)
        #expect(
            none.status == 1 && none.output.contains("give its password in the option 'password'"), "\(none.output)")
    }

    /// Zero clusters over data, discarded ones, a snapshot, and a disk that has grown.
    @Test func readsTheActiveLayerAsQemuDoes() throws {
        let image = try QCOWImage(folder, from: makeSource(folder, bytes: 8 << 20, seed: 3), format: "qcow2", "")
        let changed = shell(
            """
            qemu-io -f qcow2 -c 'write -z 64k 128k' -c 'write -zu 512k 64k' -c 'discard 1M 256k' -c 'write -P 7 3M 4k' \(image.path) &&
            qemu-img snapshot -c one \(image.path) && qemu-io -f qcow2 -c 'write -P 9 2M 300k' \(image.path) &&
            qemu-img resize -q \(image.path) 20M && qemu-img convert -O raw \(image.path) \(folder.path)/expected
            """)
        #expect(changed.status == 0, "\(changed.output)")
        let words = image.read(expecting: "\(folder.path)/expected")
        #expect(words.hasSuffix("same\n"), "\(words)")
        let disk = try Disk(plugin, image.path, readOnly: true)
        #expect(disk.log.contains("1 internal snapshots; its present state is served"))
        #expect(!disk.can(XBB_CAP_WRITE) && disk.info.size == 20 << 20)
        let queue = try Queue(disk)
        #expect(queue.write(0, [UInt8](repeating: 1, count: 512)) == -EOPNOTSUPP)
        #expect(queue.read(20 << 20, 512).status == -EIO)
        #expect(queue.read((20 << 20) - 512, 1024).status == -EIO)
        #expect(disk.breaches == 0)
    }

    /// Somebody who writes to the image would change what is read behind its tables.
    @Test func anImageThatQemuWritesToIsRefused() throws {
        let image = try QCOWImage(folder, from: folder.file("empty", size: 1 << 20), format: "qcow2", "")
        let disk = try Disk(plugin, image.path, readOnly: true)
        let write = shell("qemu-io -f qcow2 -c 'write 0 512' \(image.path)")
        #expect(write.status != 0 && write.output.contains("lock"), "\(write.output)")
        _ = disk
    }

    static let refusals: [(options: String, words: String)] = [
        ("LUKS", "encrypted with LUKS")
    ]

    @Test(arguments: refusals)
    func whatCannotBeReadIsRefusedByName(options: String, words: String) throws {
        let path = "\(folder.path)/image"
        var made = (status: Int32(1), output: "")
        // qemu-img measures how fast the processor is, and gives up where it has too little of it.
        for _ in 0..<20 where made.status != 0 {
            made =
                options == "LUKS"
                ? shell(
                    "qemu-img create -f qcow2 --object secret,id=s,data=x -o encrypt.format=luks,encrypt.key-secret=s,"
                        + "encrypt.iter-time=10 \(path) 1M")
                : shell("qemu-img create -f qcow2 \(options.replacing("DATA", with: "\(folder.path)/data")) \(path) 1M")
        }
        #expect(made.status == 0, "\(made.output)")
        let refused = #expect(throws: Failure.self) { try Disk(plugin, path, readOnly: true) }
        #expect(refused?.description.contains(words) == true, "\(refused?.description ?? "")")
        #expect(refused?.code == -EOPNOTSUPP)
    }

    @Test func unknownFeaturesAreRefusedByTheirNumber() throws {
        let image = try QCOWImage(folder, from: folder.file("empty", size: 1 << 20), format: "qcow2", "")
        shell("printf '\\200' | dd of=\(image.path) bs=1 seek=72 conv=notrunc")
        let refused = #expect(throws: Failure.self) { try Disk(plugin, image.path, readOnly: true) }
        #expect(refused?.description.contains("unknown incompatible features: bit 63") == true)
        shell("printf '\\000' | dd of=\(image.path) bs=1 seek=72 conv=notrunc")
        shell("printf '\\002' | dd of=\(image.path) bs=1 seek=79 conv=notrunc")
        let corrupt = #expect(throws: Failure.self) { try Disk(plugin, image.path, readOnly: true) }
        #expect(corrupt?.description.contains("marked as corrupt: repair a copy of it") == true)
    }

    @Test func aDirtyImageIsReadAloud() throws {
        let image = try QCOWImage(folder, from: folder.file("empty", size: 1 << 20), format: "qcow2", "")
        shell("printf '\\001' | dd of=\(image.path) bs=1 seek=79 conv=notrunc")
        let disk = try Disk(plugin, image.path, readOnly: true)
        #expect(disk.log.contains("not closed by its last writer"))
    }

    @Test func damageIsAnErrorWithItsPlace() throws {
        let source = folder.file("full", size: 1 << 20)
        shell("tr '\\0' x < \(source) > \(source).x && mv \(source).x \(source)")
        let image = try QCOWImage(folder, from: source, format: "qcow2", "")
        shell("truncate -s -64K \(image.path)")
        let disk = try Disk(plugin, image.path, readOnly: true)
        let queue = try Queue(disk)
        #expect(queue.read(0, 4096).status == 0)
        #expect(queue.read((1 << 20) - 4096, 4096).status == -EIO)
        #expect(disk.log.contains("cannot read at offset 1044480 of the disk: its cluster is not in the file"))
        #expect(harness_notified(disk.handle, UInt32(XBB_NOTIFY_CORRUPT)) == 1)
    }

    @Test(arguments: [("qcow2", "qcow2"), ("qcow", "qcow"), ("raw", "")])
    func probeKnowsItsFormats(made: String, expected: String) throws {
        let path = "\(folder.path)/image"
        shell("qemu-img create -f \(made) \(path) 1M")
        var head = [UInt8](repeating: 0, count: 512)
        let fd = open(path, O_RDONLY)
        _ = read(fd, &head, head.count)
        close(fd)
        let probe = try #require(plugin.table.probe)
        for format in ["qcow2", "qcow"] {
            for length in [0, 3, 7, 8, 512] {
                let score = head.withUnsafeBufferPointer { bytes in
                    format.withCString { name in
                        var request = xbb_probe()
                        request.struct_size = UInt32(MemoryLayout<xbb_probe>.size)
                        (request.head, request.head_len) = (bytes.baseAddress, UInt64(length))
                        request.format = name
                        return probe(&request)
                    }
                }
                #expect(score == (format == expected && length >= 8 ? 100 : 0))
            }
        }
    }
}
