// SPDX-License-Identifier: BSD-2-Clause
// What a worker of a written qcow2 image leaves to its successor: that all tables were read.
import Blkfront
import Foundation
import Testing

extension EndToEnd {
    @Suite struct QCOWSuccessorTests {
        /// The positions of a process's open files of the image.
        private func positions(_ swap: SwapLab, _ process: Int32) throws -> Set<String> {
            let script = """
                wanted=$(stat -Lc %d:%i \(swap.image))
                for file in /proc/\(process)/fd/*; do
                    [ "$(stat -Lc %d:%i $file 2>/dev/null)" = "$wanted" ] || continue
                    sed -n 's/^pos:[[:space:]]*//p' /proc/\(process)/fdinfo/${file##*/}
                done; true
                """
            return Set(try LibxlLab.shell(script).split(separator: "\n").map(String.init))
        }

        /// Ends the worker with SIGKILL; the one that serves then.
        private func killWorker(_ swap: SwapLab) throws -> Int32 {
            let worker = try #require(try swap.lab.worker())
            #expect(kill(worker, SIGKILL) == 0)
            try eventually("another worker; log: \(swap.lab.log)") {
                let now = try swap.lab.worker()
                return now != nil && now != worker
            }
            try swap.check()
            return try #require(try swap.lab.worker())
        }

        /// The mark comes with the first change, and xbbd has it with the open file that a successor gets.
        @Test func theMarkOfAPredecessorGoesOnWithTheOpenFile() throws {
            let swap = try SwapLab(format: "qcow2")
            #expect(!(try positions(swap, swap.lab.daemonProcess)).contains("3"), "nothing was read to the end yet")
            try swap.mark()
            #expect(try positions(swap, swap.lab.daemonProcess).contains("3"))
            #expect(try positions(swap, try killWorker(swap)).contains("3"))
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
