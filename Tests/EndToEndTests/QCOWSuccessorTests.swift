// SPDX-License-Identifier: BSD-2-Clause
// What a worker of a written qcow2 image leaves to its successor: that all tables were read, or that nothing may be written any more.
import Blkfront
import Foundation
import Testing

extension EndToEnd {
    @Suite struct QCOWSuccessorTests {
        /// An image that was found damaged is read on, whatever happens to its workers, and nothing is written to it.
        @Test func aDamagedImageIsReadOn() throws {
            // The L1 table stands in a cluster with the refcount 0.
            let damage = "printf '\\0\\0' | dd of=disk.qcow2 bs=1 seek=\(0x20006) conv=notrunc status=none"
            let swap = try SwapLab(
                format: "qcow2", prepare: "qemu-io -f qcow2 -c 'write -P 5 0 1M' disk.qcow2 && \(damage)")
            // The mark may be there already: tables are read from the start on.
            let before = try Data(contentsOf: URL(fileURLWithPath: swap.image))
            func look(_ moment: String) throws {
                try swap.device.queues[0].withQueue { (queue) throws in
                    #expect(try queue.status(.write, sector: 8, byteCount: 4096, fill: 9) != 0, "\(moment)")
                    #expect(try queue.status(.flush, sector: 0, byteCount: 0) != 0, "\(moment)")
                    #expect(
                        try queue.read(sector: 8, byteCount: 4096) == (0, [UInt8](repeating: 5, count: 4096)),
                        "\(moment)")
                }
            }
            try look("at first")
            try eventually("it is told: \(try swap.control("show").text)") {
                try swap.control("show").text.contains("the image is damaged")
            }
            _ = try swap.killWorker()
            try look("after a kill")
            #expect(swap.lab.log.has("nothing is written to it until the disk is attached again"))
            let killed = try #require(try swap.lab.worker())
            #expect(try swap.control("upgrade").status == 0, "\(swap.lab.log)")
            try eventually("another worker") { try swap.lab.worker().map { $0 != killed } ?? false }
            try look("after an upgrade")
            #expect(try LibxlLab.positions(of: swap.image, in: swap.lab.daemonProcess).contains("7"))
            try swap.device.close()
            try swap.lab.remove(swap.disk)
            #expect(try swap.lab.add(swap.disk).status != 0)
            #expect(swap.lab.log.has("marked as corrupt"))
            swap.lab.stop()
            // The mark at byte 79 is all that has changed.
            let after = try Data(contentsOf: URL(fileURLWithPath: swap.image))
            let changed = before.indices.filter { $0 >= after.count || before[$0] != after[$0] }
            #expect(changed.allSatisfy { $0 == 79 }, "\(changed.prefix(20)) changed")
            #expect(after.count == before.count && after[79] & 2 != 0)
            try FileManager.default.removeItem(atPath: swap.folder)
        }

        /// The mark comes with the first change, and xbbd has it with the open file that a successor gets.
        @Test func theMarkOfAPredecessorGoesOnWithTheOpenFile() throws {
            let swap = try SwapLab(format: "qcow2")
            #expect(
                !(try LibxlLab.positions(of: swap.image, in: swap.lab.daemonProcess)).contains("3"),
                "nothing was read to the end yet")
            try swap.mark()
            #expect(try LibxlLab.positions(of: swap.image, in: swap.lab.daemonProcess).contains("3"))
            #expect(try LibxlLab.positions(of: swap.image, in: try swap.killWorker()).contains("3"))
            try swap.mark()
            try swap.check()
            // Who has the image for himself may write to it.
            #expect(try swap.control("pause", "--release").status == 0, "\(swap.lab.log)")
            try swap.run("qemu-io -f qcow2 -c 'write 8M 64k' disk.qcow2")
            #expect(try swap.control("resume").status == 0, "\(swap.lab.log)")
            try swap.check()
            try swap.mark()
            try swap.check()
            try swap.device.close()
            try swap.lab.remove(swap.disk)
            swap.lab.stop()
            try swap.run("qemu-img check -f qcow2 disk.qcow2")
            try FileManager.default.removeItem(atPath: swap.folder)
        }
    }
}
