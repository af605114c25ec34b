// SPDX-License-Identifier: BSD-2-Clause
// Errors of writing back, from a real file system whose device has no room: whoever syncs first, the guest's flush fails.
import Base
import Blkfront
import CLinux
import Foundation
import Testing

/// An ext4 on a loop device whose file stands in a tmpfs. While that is full, what is written to a new place of the ext4 fails when it is
/// written back: the kernel tells an error of it once to each open file.
private final class FullDevice {
    let swap: SwapLab

    /// Serves a disk of 32 MiB from there, which has room in the ext4 and none in the tmpfs.
    init(format: String) throws {
        // All of the image has its place in the ext4.
        let reserve =
            switch format {
            case "raw": "fallocate -l 32M files/disk.raw"
            case "vhd": "qemu-img create -q -f vpc -o force_size=on,subformat=fixed files/disk.vhd 32M"
            default: "qemu-img create -q -f qcow2 -o preallocation=falloc files/disk.qcow2 32M"
            }
        swap = try SwapLab(
            bytes: 32 << 20, format: format, options: ",direct=off",
            mount: """
                mkdir memory files && mount -t tmpfs -o size=64M tmpfs memory && truncate -s 256M memory/device &&
                mkfs.ext4 -q -F -E nodiscard,lazy_itable_init=0,lazy_journal_init=0 -J size=4 -O ^metadata_csum memory/device &&
                mount -o loop,noatime memory/device files && chmod 755 files
                """, subfolder: "files/", prepare: reserve)
        try swap.mark()
        #expect(try flush() == 0)
        try swap.run("sync; cat /dev/zero > ../memory/filler 2>/dev/null; true")
    }

    func flush() throws -> Int16 {
        try swap.device.queues[0].withQueue { (queue) throws in
            try queue.status(.flush, sector: 0, byteCount: 0)
        }
    }

    /// Writes 4 MiB, which are answered.
    func write() throws {
        try swap.device.queues[0].withQueue { (queue) throws in
            for step in 0..<128 {
                #expect(try queue.status(.write, sector: 8192 + UInt64(step) * 64, byteCount: 32_768, fill: 7) == 0)
            }
        }
    }

    /// Syncs by the very open file that the worker writes by: 0, or the errno of one that failed.
    func syncByFile(of worker: Int32) throws -> Int32 {
        let process = Descriptor(owning: clinux_pidfd_open(worker))
        var failure: Int32 = 0
        for name in try FileManager.default.contentsOfDirectory(atPath: "/proc/\(worker)/fd") {
            let link = try? FileManager.default.destinationOfSymbolicLink(atPath: "/proc/\(worker)/fd/\(name)")
            guard link == swap.image, let number = Int32(name) else { continue }
            let file = Descriptor(owning: clinux_pidfd_getfd(process.raw, number))
            guard fcntl(file.raw, F_GETFL) & O_ACCMODE == O_RDWR else { continue }
            if fdatasync(file.raw) != 0 { failure = errno }
        }
        return failure
    }

    func finish() throws {
        try swap.device.close()
        _ = try? swap.lab.remove(swap.disk)
        swap.lab.stop()
        let folder = swap.folder.replacingOccurrences(of: "/files", with: "")
        try LibxlLab.shell("cd \(folder) && umount files && umount -l memory")
        try FileManager.default.removeItem(atPath: folder)
    }
}

extension EndToEnd {
    @Suite(.enabled(if: geteuid() == 0, "mounting takes root")) struct WritebackErrorTests {
        /// A command that syncs takes no error away from the guest.
        @Test(arguments: ["raw", "qcow2", "vhd"])
        func aPauseLeavesTheErrorToTheGuest(format: String) throws {
            let full = try FullDevice(format: format)
            try full.write()
            let paused = try full.swap.control("pause", "--timeout 60 --release")
            #expect(paused.status != 0 && paused.text.has("the disk is not paused"), "\(paused)")
            #expect(try full.flush() != 0, "\(full.swap.lab.log)")
            if format != "raw" { #expect(try full.flush() != 0, "an image is not written to any more") }
            try full.finish()
        }

        /// The kernel may have told the process that died.
        @Test(arguments: ["raw", "qcow2", "vhd"])
        func theErrorIsNotLostWithTheWorker(format: String) throws {
            let full = try FullDevice(format: format)
            try full.write()
            let worker = try #require(try full.swap.lab.worker())
            // What a command has found is not what a successor has to go by.
            #expect(try full.swap.control("pause", "--timeout 60").status != 0)
            // As a flush does whose process is killed before it returns: by the very open file that the worker has.
            #expect(try full.syncByFile(of: worker) != 0)
            _ = try full.swap.killWorker()
            // Nor is it forgotten by a second death, or an upgrade, before the guest was told.
            let second = try full.swap.killWorker()
            #expect(try full.swap.control("upgrade").status == 0, "\(full.swap.lab.log)")
            try eventually("another worker") { try full.swap.lab.worker().map { $0 != second } ?? false }
            #expect(full.swap.lab.log.has("writing back failed while a process before died"), "\(full.swap.lab.log)")
            #expect(try full.flush() != 0, "\(full.swap.lab.log)")
            if format != "raw" { #expect(try full.flush() != 0, "an image is not written to any more") }
            try full.finish()
        }
    }
}
