// SPDX-License-Identifier: BSD-2-Clause
// Writable qcow2 images through the ring: workers that die under load, storage that fails, and what is left in the file.
import Blkfront
import Blkif
import Foundation
import TestSupport
import Testing

extension QCOWLab {
    /// An image of the templates as a disk that is written.
    func attachForWriting(
        _ name: String = "image", number: UInt32 = 51712, options: String? = nil, environment: [String] = [],
        arguments: [String] = []
    ) throws -> Disk {
        try lab.attach(
            number, Storage(path: "\(templates)/\(name)", mode: "w", format: "qcow2", options: options),
            arguments: ["--backing-dir", templates, "--journal", "\(lab.directory)/\(number).journal"] + arguments,
            environment: environment)
    }

    /// What qemu-img check finds: status 0 clean, 3 leaks; and its words.
    func check(_ name: String = "image") throws -> (status: Int, words: String) {
        let words = try run("qemu-img check -f qcow2 \(name) 2>&1; echo \"; $?\"")
        return (Int(words.split(separator: " ").last ?? "") ?? -1, words)
    }
}

extension EndToEnd {
    @Suite struct QCOWWriteTests {
        static let images = [
            "qemu-img create -q -f qcow2 image 8M",
            "qemu-img create -q -f qcow2 -o cluster_size=4k,refcount_bits=64 image 8M",
            "head -c 5M /dev/urandom > base && qemu-img create -q -f qcow2 -b base -F raw image 8M",
            """
            head -c 5M /dev/urandom > base && qemu-img convert -f raw -O qcow2 base base.qcow2 &&
            qemu-img create -q -f qcow2 -o cluster_size=16k -b base.qcow2 -F qcow2 image 8M &&
            qemu-io -f qcow2 -c 'write -P 5 0 3M' image >/dev/null && qemu-img snapshot -c one image
            """,
            "qemu-img create -q -f qcow2 -o data_file=data,data_file_raw=on image 8M",
            """
            head -c 5M /dev/urandom > base &&
            qemu-img create -q -f qcow2 -o data_file=data,cluster_size=16k -b base -F raw image 8M
            """,
        ]

        /// What was answered is there after every kill; the image of a dead worker has leaks at most, and that of a detached disk
        /// none.
        @Test(arguments: 0..<images.count)
        func workersDieUnderLoad(index: Int) throws {
            let lab = try QCOWLab()
            try lab.run(Self.images[index])
            let hasDataFile = index >= 4
            let hasBase = index >= 2 && index != 4
            let base = hasBase ? try lab.run("cat base* | sha256sum") : ""
            let disk = try lab.attachForWriting(
                options: (index % 2 == 0 ? "direct=on" : "direct=off")
                    + (hasDataFile ? ",data-file=\(lab.templates)/data" : ""), arguments: ["--max-queues", "2"])
            let device = try disk.connect {
                $0.ringPages = 2
                $0.queues = 2
            }
            var leaks = 0
            let run = try KillsUnderLoad(
                disk, device, sectors: 8192, seed: testSeed("QCOWWriteTests.workersDieUnderLoad")
            ) { kills in
                guard kills % 3 == 1 else { return }
                try lab.run("cp --sparse=always image dead")
                let (status, words) = try lab.check("dead")
                #expect(status == 0 || status == 3, "\(words)")
                if status == 3 { leaks += 1 }
            }
            #expect(run.report.isGood, "\(run.report.text) \(disk.log.suffix(4000))")
            #expect(run.kills > 2 && disk.log.has("requests in flight"))
            #expect(!disk.log.has("damaged"), "\(disk.log.suffix(2000))")
            print(
                "qcow2 written, image \(index): \(run.kills) kills, \(run.handOvers) hand-overs, \(leaks) dead images with leaks"
            )
            // The first cluster that is taken lets the leaks be looked for; here no keeper says that somebody died.
            try device.queues[0].withQueue { (queue) throws in
                #expect(try queue.status(.write, sector: 16_000, byteCount: 4096, fill: 1) == 0)
            }
            try device.close()
            let contents = try lab.contents(disk)
            try disk.detach()
            let (status, words) = try lab.check()
            #expect(status == 0, "\(words)")
            #expect(try contents == lab.expected("image"))
            if index == 4 { try lab.run("qemu-img compare -q -f qcow2 -F raw image data") }
            if hasBase { #expect(try lab.run("cat base* | sha256sum") == base, "a backing file was written to") }
            try lab.lab.finish(mostLog: 1 << 20)
        }

        /// A sync that fails is the end of writing: what is durable nobody knows. The operator is told, and reading goes on.
        @Test(arguments: ["off", "on"])
        func aFailedSyncStaysFailed(direct: String) throws {
            let lab = try QCOWLab()
            try lab.run("qemu-img create -q -f qcow2 image 8M")
            let sync = try FailingSync(in: lab.templates)
            let disk = try lab.attachForWriting(
                options: "direct=\(direct)",
                environment: sync.environment)
            let device = try disk.connect()
            try device.queues[0].withQueue { (queue) throws in
                #expect(try queue.status(.write, sector: 0, byteCount: 4096, fill: 1) == 0)
                #expect(try queue.status(.flush, sector: 0, byteCount: 0) == 0)
                try sync.set(.fails)
                #expect(try queue.status(.write, sector: 8, byteCount: 4096, fill: 2) == 0)
                #expect(try queue.status(.flush, sector: 0, byteCount: 0) != 0)
                // Also when the storage is well again: what it has lost it has lost.
                try sync.set(.works)
                #expect(try queue.status(.flush, sector: 0, byteCount: 0) != 0)
                #expect(try queue.status(.write, sector: 8, byteCount: 4096, fill: 3) != 0)
                #expect(try queue.status(.write, sector: 8192, byteCount: 4096, fill: 3) != 0)
                #expect(try queue.read(sector: 0, byteCount: 4096) == (0, [UInt8](repeating: 1, count: 4096)))
            }
            #expect(
                disk.log.has("could not be made durable; nothing is written any more until the disk is attached again"))
            // The worker that follows is told, and writes nothing either: QCOWSuccessorTests.aDamagedImageIsReadOn.
            #expect(try LibxlLab.positions(of: "\(lab.templates)/image", in: disk.worker.process).contains("7"))
            try device.close()
            try disk.detach()
            let (status, words) = try lab.check()
            #expect(status == 0 || status == 3, "\(words)")
            // Attached again it is a disk like any other.
            let again = try lab.attachForWriting(number: 51728)
            let second = try again.connect()
            try second.queues[0].withQueue { (queue) throws in
                #expect(try queue.status(.write, sector: 8, byteCount: 4096, fill: 3) == 0)
                #expect(try queue.status(.flush, sector: 0, byteCount: 0) == 0)
            }
            try second.close()
            try again.detach()
            try lab.lab.finish()
        }

        /// With on-enospc=stop a guest sees nothing of a full file system but a delay, and a kill in between changes nothing.
        @Test(.enabled(if: geteuid() == 0, "mounting takes root"))
        func aFullFileSystemStopsTheDisk() throws {
            let lab = try QCOWLab()
            try lab.run(
                "mkdir small && mount -t tmpfs -o size=3m tmpfs small && qemu-img create -q -f qcow2 small/image 16M")
            defer { _ = try? LibxlLab.shell("umount -l '\(lab.templates)/small'") }
            let disk = try lab.attachForWriting("small/image")
            let device = try disk.connect()
            #expect(try disk.worker.ask("set on_enospc stop")["error"] == nil)
            func stopped() throws -> Int {
                (try disk.worker.ask("show")["stopped"] as? [String: Any])?["requests"] as? Int ?? 0
            }
            // 8 MiB into 3.
            let statuses = try inBackground({
                try device.queues[0].withQueue { (queue) throws in
                    try (0..<256).map {
                        try queue.status(.write, sector: UInt64($0) * 64, byteCount: 32768, fill: UInt8($0 & 255))
                    }
                }
            }) {
                guard try disk.worker.isRunning && stopped() > 0 else { return }
                try lab.run("mount -o remount,size=32m small")
                #expect(try disk.worker.ask("resume")["tried_again"] as? Int == 1)
            }
            #expect(statuses.allSatisfy { $0 == 0 })
            #expect(disk.log.has("stopped: no space"))
            try device.queues[0].withQueue { (queue) throws in
                for index in 0..<256 {
                    let (status, bytes) = try queue.read(sector: UInt64(index) * 64, byteCount: 32768)
                    #expect(status == 0 && bytes.allSatisfy { $0 == UInt8(index & 255) }, "\(index)")
                }
            }
            try device.close()
            try disk.detach()
            let (status, words) = try lab.check("small/image")
            #expect(status == 0, "\(words)")
            try lab.lab.finish()
        }

        /// Who has the image is said where it is refused.
        @Test func anImageInUseIsRefusedWithItsHolder() throws {
            let lab = try QCOWLab()
            // Without the pipes of this process, whose end is waited for.
            let server = """
                import subprocess as s
                s.run(["qemu-nbd", "-t", "-f", "qcow2", "--fork", "--pid-file=pid", "-k", "\(lab.templates)/socket", "image"],
                      check=True, stdin=s.DEVNULL, stdout=s.DEVNULL, stderr=s.DEVNULL)
                """
            try server.write(toFile: "\(lab.templates)/server.py", atomically: true, encoding: .utf8)
            try lab.run("qemu-img create -q -f qcow2 image 8M && python3 server.py")
            defer { _ = try? lab.run("kill -KILL $(cat pid) 2>/dev/null || true") }
            let disk = try lab.attachForWriting()
            try eventually("a refusal; log: \(disk.log.suffix(1000))") { try disk.key("hotplug-error") != nil }
            let reason = try disk.key("hotplug-error") ?? ""
            #expect(reason.has("in use"), "\(reason)")
            print("an image in use: \(reason)")
            try disk.detach()
            try lab.lab.finish()
        }
    }
}
