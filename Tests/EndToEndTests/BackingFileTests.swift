// SPDX-License-Identifier: BSD-2-Clause
// Chains of images through the ring, and the names in images that must not be followed.
import Blkfront
import Blkif
import Foundation
import Support
import Testing

/// A lab with the QCOW plugin and a folder of templates.
struct QCOWLab {
    let lab: Lab
    let templates: String

    init() throws {
        lab = try Lab()
        templates = "\(lab.directory)/templates"
        try FileManager.default.createDirectory(atPath: templates, withIntermediateDirectories: false)
        try Lab.describePlugins(in: lab.plugins)
    }

    /// A shell command in the folder of templates.
    @discardableResult
    func run(_ command: String) throws -> String { try LibxlLab.shell("cd \(templates) && (\(command)) 2>&1") }

    /// An image of the templates as a disk that is only read; templates may be backing files.
    func attach(
        _ name: String, number: UInt32 = 51712, format: String = "qcow2", options: String? = nil,
        allowed: [String]? = nil
    ) throws -> Disk {
        try lab.attach(
            number, Storage(path: "\(templates)/\(name)", mode: "r", format: format, options: options),
            arguments: (allowed ?? [templates]).flatMap { ["--backing-dir", $0] })
    }

    /// All bytes of a disk, as its guest reads them.
    func contents(_ disk: Disk) throws -> [UInt8] {
        let device = try disk.connect()
        let total = Int(device.info.byteCount)
        let bytes = try device.queues[0].withQueue { (queue) throws in
            var bytes: [UInt8] = []
            bytes.reserveCapacity(total)
            while bytes.count < total {
                let count = min(44 << 10, total - bytes.count)
                let (status, part) = try queue.read(sector: UInt64(bytes.count / 512), byteCount: count)
                guard status == 0 else { throw LabError("status \(status) at \(bytes.count)") }
                bytes += part
            }
            return bytes
        }
        try device.close()
        return bytes
    }

    /// What qemu-img makes of it.
    func expected(_ name: String, _ format: String = "qcow2") throws -> [UInt8] {
        try run("qemu-img convert -f \(format) -O raw \(name) expected")
        return try [UInt8](Data(contentsOf: URL(fileURLWithPath: "\(templates)/expected")))
    }

    /// The reason why an image is refused.
    func refusal(
        _ name: String, number: UInt32 = 51712, format: String = "qcow2", options: String? = nil,
        allowed: [String]? = nil
    ) throws
        -> String
    {
        let disk = try attach(name, number: number, format: format, options: options, allowed: allowed)
        try eventually("a refusal of \(name); log: \(disk.log.suffix(1000))") { try disk.key("hotplug-error") != nil }
        let reason = try disk.key("hotplug-error") ?? ""
        try disk.detach()
        return reason
    }
}

extension EndToEnd {
    @Suite struct BackingFileTests {
        /// Raw below qcow2 version 2 below version 3 below another; each layer has its own data, zeroes and holes.
        @Test func aChainReadsAsQemuReadsIt() throws {
            let lab = try QCOWLab()
            try lab.run(
                """
                head -c 3000832 /dev/urandom > base.raw
                qemu-img create -q -f qcow2 -o compat=0.10 -b base.raw -F raw one.qcow2 4M
                qemu-io -f qcow2 -c 'write -P 1 64k 100k' -c 'write -P 2 3900k 100k' one.qcow2
                qemu-img create -q -f qcow2 -o cluster_size=4k -b one.qcow2 -F qcow2 two.qcow2 6M
                qemu-io -f qcow2 -c 'write -z 100k 200k' -c 'write -P 3 1M 5k' -c 'write -z 5M 1M' two.qcow2
                qemu-img create -q -f qcow2 -b $PWD/two.qcow2 -F qcow2 three.qcow2 5M
                qemu-io -f qcow2 -c 'write -P 4 2M 70k' -c 'write -zu 2200k 64k' three.qcow2
                """)
            for name in ["one", "two", "three"] {
                let disk = try lab.attach(
                    "\(name).qcow2", number: name == "one" ? 51712 : name == "two" ? 51728 : 51744)
                #expect(try lab.contents(disk) == lab.expected("\(name).qcow2"), "\(name)")
                #expect(try disk.key("xbb-chain")?.hasSuffix("raw:\(lab.templates)/base.raw") == true)
            }
            let images = try #require(try lab.lab.disks[2].worker.ask("show")["images"] as? [[String: String]])
            #expect(images.map { $0["format"] } == ["qcow2", "qcow2", "qcow2", "raw"])
            #expect(images.last?["path"] == "\(lab.templates)/base.raw")
            try lab.lab.finish()
        }

        /// The attached image is the same, and the guest would read another disk.
        @Test func anotherImageBelowIsNotServedToAConnectedGuest() throws {
            let lab = try QCOWLab()
            try lab.run(
                "head -c 1M /dev/urandom > base.raw && qemu-img create -q -f qcow2 -b base.raw -F raw top.qcow2 1M")
            let disk = try lab.lab.attach(
                51712, Storage(path: "\(lab.templates)/top.qcow2", mode: "r", format: "qcow2"),
                arguments: ["--backing-dir", lab.templates, "--journal", "\(lab.lab.directory)/51712.journal"])
            let device = try disk.connect()
            disk.worker.kill()
            try lab.run("cp base.raw other && mv other base.raw")
            try disk.startWorker(["--predecessor", "killed:signal 9"])
            try disk.awaitError("another image stands in the place of the one that was served, or of one below it")
            try disk.awaitState(5)
            try device.close()
            try lab.lab.finish()
        }

        /// Encrypted below plain and the other way round, by one password for the chain; and version 1.
        @Test func encryptedAndOldLayersInAChain() throws {
            let lab = try QCOWLab()
            let secret = "--object secret,id=s,data=geheim"
            let aes = "encrypt.format=aes,encrypt.key-secret=s"
            try lab.run(
                """
                head -c 2M /dev/urandom > source
                qemu-img create -q -f qcow2 \(secret) -o \(aes) base.qcow2 2M
                qemu-img convert -n \(secret) --image-opts --target-image-opts driver=raw,file.filename=source driver=qcow2,encrypt.key-secret=s,file.filename=base.qcow2
                qemu-img create -q -u -f qcow2 -b base.qcow2 -F qcow2 plain.qcow2 2M
                cp source expected && head -c 64k /dev/zero | dd of=expected bs=64k seek=3 conv=notrunc status=none
                """)
            let plain = try lab.attach("plain.qcow2", options: "password=geheim")
            let source = try [UInt8](Data(contentsOf: URL(fileURLWithPath: "\(lab.templates)/source")))
            #expect(try lab.contents(plain) == source)
            try lab.run(
                """
                qemu-img convert -f raw -O qcow2 source lower.qcow2
                qemu-img create -q -f qcow2 \(secret) -o \(aes) -b lower.qcow2 -F qcow2 upper.qcow2
                qemu-io \(secret) --image-opts -c 'write -P 5 100k 200k' driver=qcow2,encrypt.key-secret=s,file.filename=upper.qcow2
                """)
            var changed = source
            changed.replaceSubrange(100 << 10..<300 << 10, with: [UInt8](repeating: 5, count: 200 << 10))
            #expect(try lab.contents(lab.attach("upper.qcow2", number: 51728, options: "password=geheim")) == changed)
            try lab.run(
                """
                qemu-img create -q -f qcow -b source -F raw old.qcow
                qemu-io -f qcow -c 'write -P 6 513k 3k' old.qcow
                """)
            #expect(try lab.refusal("old.qcow", number: 51744, format: "qcow").contains("does not say of which format"))
            let old = try lab.attach("old.qcow", number: 51760, format: "qcow", options: "backing-format=raw")
            changed = source
            changed.replaceSubrange(513 << 10..<516 << 10, with: [UInt8](repeating: 6, count: 3 << 10))
            #expect(try lab.contents(old) == changed)
            try lab.lab.finish()
        }

        /// Names that lead somewhere else, and what is not a file of a format that was said.
        @Test func namesAreNotFollowedWhereTheyMustNot() throws {
            let lab = try QCOWLab()
            try lab.run(
                """
                truncate -s 1M base.raw && mkfifo fifo && ln -s /etc/hostname link && mkdir sub && ln -s /etc sub/etc
                for n in 1 2; do qemu-img create -q -f qcow2 loop$n.qcow2 1M; done
                qemu-img rebase -u -b loop2.qcow2 -F qcow2 loop1.qcow2; qemu-img rebase -u -b loop1.qcow2 -F qcow2 loop2.qcow2
                qemu-img create -q -f qcow2 -u -b base.raw unsaid.qcow2 1M 2>&1 || true
                """)
            let cases: [(name: String, format: String, words: String)] = [
                ("/etc/hostname", "raw", "must be below a backing-dir"), ("../x", "raw", "'..' is not followed"),
                ("sub/../base.raw", "raw", "'..' is not followed"), ("link", "raw", "symbolic link"),
                ("sub/etc/hostname", "raw", "symbolic link"),
                ("fifo", "raw", "neither a regular file nor a block device"),
                ("sub", "raw", "neither a regular file nor a block device"), ("missing", "raw", "No such file"),
                ("nbd://localhost/x", "raw", "it is no file name"),
                ("json:{\\\"driver\\\":\\\"null-co\\\"}", "raw", "it is no file name"),
                ("file:base.raw", "raw", "it is no file name"), ("base.raw", "vmdk", "no plugin serves format 'vmdk'"),
                ("base.raw", "qcow2", "this is no QCOW image"),
                ("/proc/self/fd/0", "raw", "must be below a backing-dir"),
            ]
            for (index, test) in cases.enumerated() {
                try lab.run(
                    "qemu-img create -q -f qcow2 case.qcow2 1M && qemu-img rebase -u -b \"\(test.name)\" -F \(test.format) case.qcow2"
                )
                let reason = try lab.refusal("case.qcow2", number: 51712 + UInt32(index) * 16)
                #expect(reason.contains(test.words), "\(test.name): \(reason)")
            }
            #expect(try lab.refusal("loop1.qcow2", number: 52000).contains("the images name each other"))
            // Without a directory that is allowed nothing is opened, not even beside the image.
            try lab.run("qemu-img create -q -f qcow2 -b base.raw -F raw case.qcow2")
            #expect(try lab.refusal("case.qcow2", number: 52016, allowed: []).contains("and none is set"))
            try lab.lab.finish()
        }

        /// An administrator sees the whole chain, and why a disk would be refused, without attaching it.
        @Test func inspectFollowsWhatWouldBeServed() throws {
            let lab = try QCOWLab()
            try lab.run(
                """
                truncate -s 1M base.raw && qemu-img create -q -f qcow2 -b base.raw -F raw middle.qcow2
                qemu-img create -q -f qcow2 -b middle.qcow2 -F qcow2 top.qcow2
                qemu-img create -q -f qcow2 loop.qcow2 1M && qemu-img rebase -u -b loop.qcow2 -F qcow2 loop.qcow2
                qemu-img create -q -f qcow2 out.qcow2 1M && qemu-img rebase -u -b /etc/hostname -F raw out.qcow2
                """)
            func inspect(_ name: String, _ more: String = "--backing-dir .") throws -> JSON {
                let directory = more.replacing(" .", with: " \(lab.templates)")
                return try JSON(
                    parsing: lab.run(
                        "\(buildDirectory)/xbbctl inspect \(name) --json --plugin-dir \(lab.lab.plugins) \(directory)"))
            }
            func shape(_ answer: JSON) -> [String] {
                (answer["chain"]?.elements ?? []).map {
                    "\($0["format"]?.string ?? $0["error"]?.string ?? "") \($0["virtual_size"]?.unsigned ?? 0)"
                }
            }
            #expect(try shape(inspect("top.qcow2")) == ["qcow2 1048576", "raw 1048576"])
            #expect(try shape(inspect("base.raw --format raw")) == [])
            #expect(try shape(inspect("loop.qcow2")).first?.contains("the images name each other") == true)
            #expect(try shape(inspect("out.qcow2")).first?.contains("must be below a backing-dir") == true)
            #expect(try shape(inspect("top.qcow2", "")).first?.contains("and none is set") == true)
            let text = try lab.run(
                "\(buildDirectory)/xbbctl inspect out.qcow2 --plugin-dir \(lab.lab.plugins) --backing-dir \(lab.templates)"
            )
            #expect(text.contains("below it, /etc/hostname would be refused: "), "\(text)")
            try lab.lab.finish()
        }

        /// A plugin that a worker refuses below another is refused by those who look at the chain too, in the same words.
        @Test func inspectSaysWhichPluginMayNotBeBelow() throws {
            let lab = try QCOWLab()
            try lab.lab.compilePlugin(
                "layer", from: "\(packageDirectory)/Tests/LayerPlugin/layer.c",
                options: ["-DNAME=\"layer\"", "-DFLAGS=0", "-Wl,-z,defs"])
            try Lab.describePlugins(in: lab.lab.plugins)
            // Both names have five letters.
            try lab.run(
                """
                qemu-img create -q -f qcow2 base 1M && qemu-img create -q -f qcow2 -b base -F qcow2 top
                sed -i s/qcow2/layer/ top
                """)
            let words =
                "is of format 'layer', which plugin 'layer' serves; plugin 'qcow' reads backing files that are raw"
            let answer = try JSON(
                parsing: lab.run(
                    "\(buildDirectory)/xbbctl inspect top --json --plugin-dir \(lab.lab.plugins) --backing-dir "
                        + lab.templates))
            let below = answer["chain"]?.elements.first?["error"]?.string ?? ""
            #expect(below.contains(words), "\(answer)")
            #expect(try lab.refusal("top", number: 51712).contains(words))
            try lab.lab.finish()
        }

        @Test func aChainHasAnEnd() throws {
            let lab = try QCOWLab()
            try lab.run(
                """
                head -c 1M /dev/urandom > 0.img; format=raw
                for n in $(seq 1 16); do qemu-img create -q -f qcow2 -b $((n - 1)).img -F $format $n.img; format=qcow2; done
                """)
            let source = try [UInt8](Data(contentsOf: URL(fileURLWithPath: "\(lab.templates)/0.img")))
            #expect(try lab.contents(lab.attach("15.img")) == source)
            #expect(try lab.refusal("16.img", number: 51728).contains("a chain of more than 16 images"))
            try lab.lab.finish()
        }

        /// The directory and every link are those of the moment of attaching: a base that grows a writer is locked.
        @Test func aBaseThatIsServedIsNotWrittenTo() throws {
            let lab = try QCOWLab()
            try lab.run("truncate -s 1M base.raw && qemu-img create -q -f qcow2 -b base.raw -F raw top.qcow2")
            let disk = try lab.attach("top.qcow2")
            _ = try lab.contents(disk)
            #expect(throws: (any Error).self) { try lab.run("qemu-io -f raw -c 'write 0 512' base.raw") }
            try disk.detach()
            try lab.run("qemu-io -f raw -c 'write 0 512' base.raw")
            try lab.lab.finish()
        }
    }
}
