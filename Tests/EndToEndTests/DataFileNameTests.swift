// SPDX-License-Identifier: BSD-2-Clause
// External data files through the ring: whose they are, which of them are opened, and turns with QEMU.
import Blkfront
import Foundation
import Support
import Testing

extension EndToEnd {
    @Suite struct DataFileNameTests {
        private func refusal(_ lab: QCOWLab, number: UInt32, options: String?) throws -> String {
            let disk = try lab.attachForWriting("image", number: number, options: options)
            try eventually("a refusal; log: \(disk.log.suffix(1000))") { try disk.key("hotplug-error") != nil }
            let reason = try disk.key("hotplug-error") ?? ""
            try disk.detach()
            return reason
        }

        /// An image of the same size that says that its data are in `name`: the name that QEMU wrote is replaced.
        private func make(_ lab: QCOWLab, _ name: String) throws {
            let padded = "x" + String(repeating: "y", count: name.utf8.count - 1)
            try lab.run(
                """
                rm -f image && qemu-img create -q -f qcow2 -o data_file=\(padded) image 1M && rm -f \(padded)
                sed -i 's|\(padded)|\(name)|' image
                """)
        }

        /// The image's author says where its data are; only the administrator says which file is written.
        @Test func onlyTheFileOfTheConfigurationIsWritten() throws {
            let lab = try QCOWLab()
            try lab.run(
                """
                truncate -s 1M data other && mkfifo fifo && ln -s data link && mkdir sub && truncate -s 4k short
                ln data second && truncate -s 1M template && sha256sum template other > sums
                """)
            let here = lab.templates
            let cases: [(name: String, granted: String?, words: String)] = [
                ("data", nil, "An image does not decide which file is written"),
                ("template", "\(here)/data", "the disk's option data-file says \(here)/data"),
                ("\(here)/template", nil, "say data-file=\(here)/template in the options of the disk"),
                ("/etc/hostname", "\(here)/data", "the disk's option data-file says"),
                ("../data", "\(here)/../data", "a name with '..' is not followed"),
                ("sub/../data", "\(here)/data", "a name with '..' is not followed"),
                ("link", "\(here)/link", "symbolic link"), ("fifo", "\(here)/fifo", "is no regular file"),
                ("/dev/null", "/dev/null", "is no regular file"), ("sub", "\(here)/sub", "directory"),
                ("image", "\(here)/image", "the images name each other"),
                ("missing", "\(here)/missing", "No such file"),
                ("short", "\(here)/short", "truncate -s 1048576"), ("nbd://h/x", "nbd://h/x", "it is no file name"),
                ("data", "data", "the disk's option data-file says data"),
            ]
            for (index, test) in cases.enumerated() {
                try make(lab, test.name)
                let reason = try refusal(
                    lab, number: 51712 + UInt32(index) * 16, options: test.granted.map { "data-file=\($0)" })
                #expect(reason.lowercased().contains(test.words.lowercased()), "\(test.name): \(reason)")
            }
            try lab.run("sha256sum -c --quiet sums")
            try lab.lab.finish()
        }

        /// One file cannot be the data of two disks, and QEMU is kept off as from the image itself.
        @Test func aDataFileIsLockedAsAnImageIs() throws {
            let lab = try QCOWLab()
            try lab.run(
                """
                qemu-img create -q -f qcow2 -o data_file=data image 1M && cp image twin
                """)
            let grant = "data-file=\(lab.templates)/data"
            let disk = try lab.attachForWriting("image", options: grant)
            let device = try disk.connect()
            let twin = try lab.attachForWriting("twin", number: 51728, options: grant)
            try eventually("a refusal") { try twin.key("hotplug-error") != nil }
            #expect(try twin.key("hotplug-error")?.contains("another process has it open") == true)
            #expect(try lab.run("qemu-io -f raw -c 'write 0 512' data 2>&1 || true").contains("lock"))
            try device.close()
            try twin.detach()
            try disk.detach()
            try lab.lab.finish()
        }

        /// XBB, QEMU, XBB: each reads what the other wrote, and a raw data file is the disk.
        @Test(arguments: ["data_file_raw=on", "data_file_raw=off", "data_file_raw=off,cluster_size=512"])
        func qemuAndXBBTakeTurns(_ options: String) throws {
            let lab = try QCOWLab()
            let size = 3 << 20 | 512 * 3
            try lab.run("qemu-img create -q -f qcow2 -o data_file=data,\(options) image \(size)")
            for turn in 0..<2 {
                let disk = try lab.attachForWriting(
                    "image", number: 51712 + UInt32(turn) * 16, options: "data-file=\(lab.templates)/data")
                let device = try disk.connect()
                try device.queues[0].withQueue { (queue) throws in
                    for sector in stride(from: UInt64(turn), to: 4096, by: 131) {
                        #expect(
                            try queue.status(.write, sector: sector, byteCount: 8192, fill: UInt8(1 + turn * 2)) == 0)
                    }
                    #expect(try queue.status(.write, sector: UInt64(size / 512 - 1), byteCount: 512, fill: 9) == 0)
                    #expect(try queue.status(.flush, sector: 0, byteCount: 0) == 0)
                }
                try device.close()
                let contents = try lab.contents(disk)
                try disk.detach()
                let (status, words) = try lab.check()
                #expect(status == 0, "\(words)")
                #expect(try contents == lab.expected("image"))
                if options == "data_file_raw=on" { try lab.run("qemu-img compare -q -f qcow2 -F raw image data") }
                try lab.run(
                    """
                    qemu-io -f qcow2 -c 'write -P 7 100k 70k' -c 'write -z 300k 200k' -c 'discard 1M 128k' \
                    -c 'write -zu 600k 100k' image >/dev/null
                    """)
            }
            // Whoever only reads needs no word of the administrator where backing files may be.
            let reader = try lab.attach("image", number: 51760)
            #expect(try lab.contents(reader) == lab.expected("image"))
            try reader.detach()
            try lab.lab.finish()
        }
    }
}
