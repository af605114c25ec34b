// SPDX-License-Identifier: BSD-2-Clause
// detect-zeroes on storage of all kinds that are files: the guest reads zeroes, other readers too, and unmap makes room.
import Blkfront
import Blkif
import Foundation
import TestSupport
import Testing

extension EndToEnd {
    @Suite struct DetectZeroesTests {
        static let images = [
            ("raw", "truncate -s 20M image"), ("qcow2", "qemu-img create -q -f qcow2 -o cluster_size=16k image 20M"),
            ("vhd", "qemu-img create -q -f vpc -o subformat=dynamic,force_size=on image 20M"),
        ]

        @Test(arguments: images) func zeroesAreWrittenAsSuch(_ format: String, _ make: String) throws {
            let lab = try QCOWLab()
            try lab.run(make)
            let disk = try lab.lab.attach(
                51712, Storage(path: "\(lab.templates)/image", mode: "w", format: format, options: nil),
                arguments: ["--backing-dir", lab.templates])
            let device = try disk.connect()
            let size = 4 << 20
            func fill(_ byte: UInt8) throws {
                try device.queues[0].withQueue { (queue) throws in
                    for place in stride(from: 0, to: size, by: 32768) {
                        let sector = UInt64(place / 512)
                        #expect(try queue.status(.write, sector: sector, byteCount: 32768, fill: byte) == 0)
                    }
                    #expect(try queue.status(.flush, sector: 0, byteCount: 0) == 0)
                }
            }
            func zeroWrites() throws -> UInt64 { UInt64(try disk.worker.total("zero_writes")) }
            try fill(7)
            try fill(0)
            #expect(try zeroWrites() == 0, "nobody asked for it")
            for mode in ["on", "unmap"] {
                #expect(try disk.worker.ask("set detect_zeroes \(mode)")["error"] == nil)
                let before = try zeroWrites()
                try fill(7)
                #expect(try zeroWrites() == before)
                try fill(0)
                #expect(try zeroWrites() == before + UInt64(size / 32768))
                // Around one block that has data.
                try device.queues[0].withQueue { (queue) throws in
                    #expect(try queue.status(.write, sector: 64, byteCount: 4096, fill: 9) == 0)
                    let read = try queue.read(sector: 56, byteCount: 12288).bytes
                    #expect(read[..<4096].allSatisfy { $0 == 0 } && read[4096..<8192].allSatisfy { $0 == 9 })
                    #expect(read[8192...].allSatisfy { $0 == 0 })
                }
            }
            try device.close()
            try disk.detach()
            // 4 MiB in use before; a VHD has no holes in its blocks of 2 MiB but those of the file system.
            let used = Int(try lab.run("du -k image | cut -f1").trimmingCharacters(in: .whitespacesAndNewlines)) ?? .max
            #expect(used < 3000, "\(format): \(used) KiB")
            let driver = format == "vhd" ? "vpc" : format
            #expect(
                try lab.run(
                    "qemu-io -r -f \(driver) -c 'read -P 0 0 32k' -c 'read -P 9 32k 4k' -c 'read -P 0 36k 4000k' image"
                )
                .components(separatedBy: "bytes at offset").count == 4)
            try lab.lab.finish()
        }
    }
}
