// SPDX-License-Identifier: BSD-2-Clause
// Writable VHDs through the ring: workers that die under load, parents by the host's rules, and what inspection says.
import Blkfront
import Blkif
import Foundation
import TestSupport
import Testing

extension EndToEnd {
    @Suite struct VHDWriteTests {
        private static let tool = "\(packageDirectory)/Tests/VHDTools/vhd.py"
        static let images = [
            "qemu-img create -q -f vpc -o subformat=dynamic,force_size=on image 20M",
            "qemu-img create -q -f vpc -o subformat=fixed,force_size=on image 20M",
            """
            qemu-img create -q -f vpc -o subformat=dynamic,force_size=on base.vhd 20M &&
            qemu-io -f vpc -c 'write -P 5 0 3M' -c 'write -P 6 9M 1M' base.vhd >/dev/null && \(tool) child base.vhd image
            """,
        ]

        private func attach(_ lab: QCOWLab, options: String? = nil, mode: String = "w") throws -> Disk {
            try lab.lab.attach(
                51712, Storage(path: "\(lab.templates)/image", mode: mode, format: "vhd", options: options),
                arguments: [
                    "--backing-dir", lab.templates, "--journal", "\(lab.lab.directory)/journal", "--max-queues", "2",
                ])
        }

        /// What was answered is there after every kill, and in the end other readers find the same.
        @Test(arguments: 0..<images.count)
        func workersDieUnderLoad(index: Int) throws {
            let lab = try QCOWLab()
            try lab.run(Self.images[index])
            let hasBase = index == 2
            let base = hasBase ? try lab.run("sha256sum base.vhd") : ""
            let disk = try attach(lab, options: index % 2 == 0 ? "direct=on" : "direct=off")
            let device = try disk.connect {
                $0.ringPages = 2
                $0.queues = 2
            }
            let run = try KillsUnderLoad(
                disk, device, sectors: 20_480, seed: testSeed("VHDWriteTests.workersDieUnderLoad"))
            #expect(run.report.isGood, "\(run.report.text) \(disk.log.suffix(4000))")
            #expect(run.kills > 2 && disk.log.has("requests in flight"))
            print("vhd written, image \(index): \(run.kills) kills, \(run.handOvers) hand-overs")
            try device.close()
            let contents = try lab.contents(disk)
            try disk.detach()
            if hasBase {
                try lab.run("\(Self.tool) read copy image base.vhd")
                #expect(try contents == [UInt8](Data(contentsOf: URL(fileURLWithPath: "\(lab.templates)/copy"))))
                #expect(try lab.run("sha256sum base.vhd") == base, "the parent was written to")
            } else {
                #expect(try contents == lab.expected("image", "vpc"))
            }
            try lab.lab.finish(mostLog: 1 << 20)
        }

        static let parents: [(name: String, words: String)] = [
            ("..\\\\base.vhd", "a name with '..' is not followed"),
            ("C:\\\\etc\\\\passwd", "must be below a backing-dir"),
            (".\\\\image", "is in the chain already"), (".\\\\nothing.vhd", "cannot open the backing file"),
        ]

        /// A parent is opened by the host's rules alone.
        @Test(arguments: 0..<parents.count)
        func aParentIsOpenedByTheHostsRules(index: Int) throws {
            let (name, words) = Self.parents[index]
            let lab = try QCOWLab()
            try lab.run(
                "qemu-img create -q -f vpc -o force_size=on base.vhd 20M && \(Self.tool) child base.vhd image \"\(name)\""
            )
            let disk = try attach(lab, mode: "r")
            try disk.awaitError(words)
            try lab.lab.finish(mostLog: 1 << 20)
        }

        /// What somebody has cut off does not come back as zeroes around what is written: writing ends, also for successors.
        @Test func anImageThatIsCutOffIsReadOn() throws {
            let swap = try SwapLab(format: "vhd", prepare: "qemu-io -f vpc -c 'write -P 5 0 8M' disk.vhd")
            func look(_ moment: String) throws {
                try swap.device.queues[0].withQueue { (queue) throws in
                    #expect(try queue.status(.flush, sector: 0, byteCount: 0) != 0, "\(moment)")
                    #expect(try queue.status(.write, sector: 8, byteCount: 4096, fill: 9) != 0, "\(moment)")
                    #expect(try queue.status(.write, sector: 20_480, byteCount: 4096, fill: 9) != 0, "\(moment)")
                    #expect(
                        try queue.read(sector: 8, byteCount: 4096) == (0, [UInt8](repeating: 5, count: 4096)),
                        "\(moment)")
                }
            }
            try swap.run("truncate -s 5M disk.vhd")
            let before = try Data(contentsOf: URL(fileURLWithPath: swap.image))
            try look("at first")
            try eventually("it is told: \(try swap.control("show").text)") {
                try swap.control("show").text.contains("the image is damaged")
            }
            _ = try swap.killWorker()
            try look("after a kill")
            #expect(swap.lab.log.has("nothing is written to it until the disk is attached again"))
            try swap.device.close()
            try swap.lab.remove(swap.disk)
            swap.lab.stop()
            #expect(try Data(contentsOf: URL(fileURLWithPath: swap.image)) == before)
            try FileManager.default.removeItem(atPath: swap.folder)
        }
    }
}
