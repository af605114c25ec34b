// SPDX-License-Identifier: BSD-2-Clause
// The open files of a disk outlive its worker: whatever their names lead to, the guest keeps its storage.
import Blkfront
import Blkif
import CLinux
import Foundation
import Testing
import Xen
import XenLoopback

extension EndToEnd {
    @Suite struct StorageKeepingTests {
        /// What happens to the name of an image while it is served.
        enum Change: String, CaseIterable {
            case renamed, removed, exchanged, linkRetargeted, replacedByDirectory
        }

        /// How the worker ends.
        enum End: String, CaseIterable {
            case killed, upgraded
        }

        /// A served disk: an image that has a second name, so that it can be looked at whatever happens to the first.
        private final class Served {
            let lab: LibxlLab
            let guest: LoopbackDomain
            let disk: LibxlDisk
            let device: FrontDevice
            /// The name that is served.
            let name: String
            /// Another name of the same file.
            let kept: String
            /// A file of the same size with other content.
            let other: String

            init(_ lab: LibxlLab, through link: Bool = false, options: String = "") throws {
                self.lab = lab
                guest = try lab.guest()
                let image = try lab.image()
                other = try lab.image("other.img")
                try Data(repeating: 0xee, count: 1 << 20).write(to: URL(fileURLWithPath: other), options: [])
                truncate(other, 16 << 20)
                kept = "\(lab.directory)/kept.img"
                try FileManager.default.linkItem(atPath: image, toPath: kept)
                name = link ? "\(lab.directory)/link.img" : image
                if link { #expect(symlink(image, name) == 0) }
                disk = LibxlDisk(guest: guest.id, params: "raw\(options):\(name)")
                #expect(try lab.add(disk).status == 0, "\(lab.log)")
                device = try lab.connect(disk, guest)
            }

            func change(_ change: Change) throws {
                switch change {
                case .renamed: #expect(rename(name, "\(name).moved") == 0)
                case .removed: #expect(unlink(name) == 0)
                case .exchanged: #expect(rename(other, name) == 0)
                case .linkRetargeted:
                    #expect(unlink(name) == 0)
                    #expect(symlink(other, name) == 0)
                case .replacedByDirectory:
                    #expect(unlink(name) == 0)
                    #expect(mkdir(name, 0o700) == 0)
                }
            }

            /// Ends the worker; another one serves when this returns.
            func end(_ end: End) throws {
                let worker = try #require(try lab.worker())
                switch end {
                case .killed: #expect(kill(worker, SIGKILL) == 0)
                case .upgraded: try lab.administer("upgrade \(guest.id) 51712")
                }
                try eventually("another worker; log: \(lab.log)") {
                    let now = try lab.worker()
                    return now != nil && now != worker
                }
            }

            func write(_ byte: UInt8) throws {
                try device.queues[0].withQueue { (queue) throws in
                    #expect(try queue.status(.write, sector: 8, byteCount: 4096, fill: byte) == 0, "\(lab.log)")
                }
            }

            func read() throws -> UInt8 {
                try device.queues[0].withQueue { (queue) throws in
                    let (status, bytes) = try queue.read(sector: 8, byteCount: 4096)
                    #expect(status == 0, "\(lab.log)")
                    #expect(bytes.allSatisfy { $0 == bytes[0] })
                    return bytes[0]
                }
            }

            /// What is in a file where the guest writes.
            func content(_ path: String) throws -> UInt8 {
                let file = try FileHandle(forReadingFrom: URL(fileURLWithPath: path))
                try file.seek(toOffset: 4096)
                return try #require(try file.read(upToCount: 1)?.first)
            }

            /// Processes that have the image open, of those that the lab has started.
            func holders() throws -> [String] {
                var status = stat()
                guard stat(kept, &status) == 0 else { return [] }
                return try LibxlLab.shell(
                    "for f in /proc/[0-9]*/fd/*; do [ \"$(stat -Lc %d:%i $f 2>/dev/null)\" = "
                        + "\(status.st_dev):\(status.st_ino) ] && echo $f; done; true"
                ).split(separator: "\n").map(String.init)
            }

            func finish() throws {
                try device.close()
                #expect(device.leakedGrants.isEmpty)
                try lab.remove(disk)
                lab.stop()
            }
        }

        @Test(arguments: Change.allCases, End.allCases)
        func aGuestKeepsItsStorage(_ change: Change, _ end: End) throws {
            let served = try Served(try LibxlLab(), through: change == .linkRetargeted)
            try served.write(1)
            try served.change(change)
            try served.end(end)
            #expect(try served.read() == 1)
            try served.write(2)
            // The one after it is given the same.
            try served.end(end == .killed ? .upgraded : .killed)
            #expect(try served.read() == 2)
            #expect(try served.content(served.kept) == 2)
            #expect(!served.lab.log.has("another image"), "\(served.lab.log)")
            try served.finish()
        }

        /// A reader's lock of all bytes that QEMU knows, until the result is closed.
        private func readersLock(_ path: String) throws -> Int32 {
            let file = open(path, O_RDONLY)
            for byte in off_t(100)..<300 {
                var lock = flock()
                lock.l_type = Int16(F_RDLCK)
                lock.l_whence = Int16(SEEK_SET)
                (lock.l_start, lock.l_len) = (byte, 1)
                try #require(clinux_fcntl_pointer(file, clinux_F_OFD_SETLK, &lock) == 0)
            }
            return file
        }

        /// Anybody who may read an image can lock it as a reader does; that must not take the disk away.
        @Test(arguments: End.allCases)
        func aReadersLockDoesNotTakeTheDiskAway(_ end: End) throws {
            let served = try Served(try LibxlLab())
            try served.write(1)
            let file = try readersLock(served.kept)
            defer { close(file) }
            try served.end(end)
            #expect(try served.read() == 1)
            try served.finish()
        }

        /// Between two workers nobody else gets the lock: it belongs to the open file, which xbbd has, too.
        @Test func theLockHasNoGap() throws {
            let served = try Served(try LibxlLab())
            try served.write(1)
            kill(served.lab.daemonProcess, SIGSTOP)
            kill(try #require(try workers(served.lab).first), SIGKILL)
            #expect(throws: LabError.self) {
                try LibxlLab.shell("qemu-io -c 'write 0 4k' -f raw \(served.kept) 2>&1")
            }
            kill(served.lab.daemonProcess, SIGCONT)
            #expect(try served.read() == 1)
            try served.finish()
        }

        /// Workers and standby processes of a lab, the former first.
        private func workers(_ lab: LibxlLab) throws -> [Int32] {
            try LibxlLab.shell("pgrep -x -P \(lab.daemonProcess) xbb-vbd").split(separator: "\n").compactMap {
                Int32($0)
            }
        }

        /// What the image is on can be unmounted as soon as the toolstack sees state 6.
        @Test(arguments: [false, true])
        func nobodyHasTheImageOpenWhenTheNodeSaysClosed(_ isSuccessor: Bool) throws {
            let served = try Served(try LibxlLab())
            try served.write(1)
            if isSuccessor { try served.end(.killed) }
            #expect(try served.read() == 1)
            #expect(try served.holders().contains { $0.hasPrefix("/proc/\(served.lab.daemonProcess)/") })
            try served.device.close()
            try served.lab.requestRemoval(served.disk)
            try served.lab.awaitState("6", of: served.disk)
            #expect(try served.holders() == [])
            served.lab.stop()
        }

        /// The layers below an image are kept, too.
        @Test(arguments: End.allCases)
        func aRenamedBackingFileIsServedOn(_ end: End) throws {
            let folder = try makeTemporaryDirectory("layers")
            defer { try? FileManager.default.removeItem(atPath: folder) }
            let lab = try LibxlLab(options: ["--backing-dir", folder])
            let guest = try lab.guest()
            try LibxlLab.shell(
                "'\(buildDirectory)/xbb-vbd' --describe-plugin '\(lab.plugins)/xbb-qcow.so' > "
                    + "'\(lab.plugins)/xbb-qcow.plugin'")
            try LibxlLab.shell(
                "cd \(folder) && head -c 1M /dev/zero | tr '\\0' b > base.raw && "
                    + "qemu-img create -q -f qcow2 -b base.raw -F raw middle.qcow2 1M && "
                    + "qemu-img create -q -f qcow2 -b middle.qcow2 -F qcow2 top.qcow2 1M")
            let disk = LibxlDisk(guest: guest.id, params: "qcow2:\(folder)/top.qcow2", mode: "r")
            #expect(try lab.add(disk).status == 0, "\(lab.log)")
            let device = try lab.connect(disk, guest)
            try LibxlLab.shell("cd \(folder) && mv base.raw old && head -c 1M /dev/zero > base.raw && rm middle.qcow2")
            let worker = try #require(try lab.worker())
            if end == .killed { kill(worker, SIGKILL) } else { try lab.administer("upgrade \(guest.id) 51712") }
            try device.queues[0].withQueue { (queue) throws in
                let (status, bytes) = try queue.read(sector: 8, byteCount: 4096)
                #expect(status == 0 && bytes.allSatisfy { $0 == UInt8(ascii: "b") }, "\(lab.log)")
            }
            #expect(try lab.worker() != worker)
            try device.close()
            try lab.remove(disk)
            lab.stop()
        }

        /// An xbbd that follows on one that was killed has the files, too: from the worker, with nobody else's help.
        @Test(arguments: End.allCases) func theNextXbbdTakesTheFilesFromTheWorker(_ end: End) throws {
            let served = try Served(try LibxlLab())
            try served.write(1)
            let worker = try served.lab.worker()
            served.lab.killDaemon()
            try served.lab.start()
            try eventually("the worker is adopted; log: \(served.lab.log)") { try served.lab.worker() == worker }
            try served.change(.exchanged)
            let reader = try readersLock(served.kept)
            defer { close(reader) }
            try served.end(end)
            #expect(try served.read() == 1)
            try served.write(2)
            try served.end(.killed)
            #expect(try served.read() == 2)
            #expect(try served.content(served.kept) == 2)
            try served.finish()
        }

        /// rawdisk has a device open twice.
        @Test(.enabled(if: geteuid() == 0, "loop devices take root"))
        func theNextXbbdTakesADeviceFromTheWorker() throws {
            let lab = try LibxlLab()
            let image = try lab.image()
            let loop = try LibxlLab.shell("losetup --find --show '\(image)'")
            defer { _ = try? LibxlLab.shell("losetup -d \(loop)") }
            let guest = try lab.guest()
            let disk = LibxlDisk(guest: guest.id, params: "raw:\(loop)")
            #expect(try lab.add(disk).status == 0, "\(lab.log)")
            let device = try lab.connect(disk, guest)
            for _ in 0..<2 {
                let worker = try lab.worker(disk)
                lab.killDaemon()
                try lab.start()
                try eventually("the worker is adopted; log: \(lab.log)") { try lab.worker() == worker }
                #expect(kill(worker, SIGKILL) == 0)
                try eventually("another worker; log: \(lab.log)") {
                    let now = try lab.worker()
                    return now != nil && now != worker
                }
                try device.queues[0].withQueue { (queue) throws in
                    #expect(try queue.status(.write, sector: 8, byteCount: 4096, fill: 3) == 0, "\(lab.log)")
                }
            }
            #expect(!lab.log.has("is not what the process before this one had open"), "\(lab.log)")
            #expect(!lab.log.has("broke the rules"), "\(lab.log)")
            try device.close()
            try lab.remove(disk)
            lab.stop()
        }

        /// Other storage is configured while no guest has the disk: the next worker opens that, and leaves it for its successor.
        @Test func aWorkerThatRefusesWhatItIsGivenLeavesItsOwn() throws {
            let served = try Served(try LibxlLab())
            try served.write(1)
            try served.device.close()
            try served.lab.store.write("\(served.disk.back)/physical-device-path", served.other)
            try served.end(.killed)
            let device = try served.lab.connect(served.disk, served.guest)
            try device.queues[0].withQueue { (queue) throws in
                #expect(try queue.read(sector: 8, byteCount: 4096).bytes.allSatisfy { $0 == 0xee })
            }
            #expect(!served.lab.log.has("broke the rules"), "\(served.lab.log)")
            // It was left for the one after it: the name leads nowhere.
            #expect(rename(served.other, "\(served.other).moved") == 0)
            try served.end(.killed)
            try device.queues[0].withQueue { (queue) throws in
                #expect(try queue.read(sector: 8, byteCount: 4096).bytes.allSatisfy { $0 == 0xee }, "\(served.lab.log)")
            }
            try device.close()
            try served.lab.remove(served.disk)
            served.lab.stop()
        }

        /// A worker that was taken over names no other file: xbbd takes those that it wrote down, or none.
        @Test func whatTheWorkerHasIsNotBelieved() throws {
            let served = try Served(try LibxlLab())
            try served.write(1)
            served.lab.killDaemon()
            let path = "\(served.lab.directory)/run/vbd-vbd-\(served.guest.id)-51712.storage"
            var status = stat()
            #expect(stat(served.other, &status) == 0)
            try Data("\(status.st_dev):\(status.st_ino)\0raw\0\(served.other)\0".utf8).write(
                to: URL(fileURLWithPath: path), options: [])
            try served.lab.start()
            try eventually("the worker is adopted; log: \(served.lab.log)") { try served.lab.worker() != nil }
            let holders = try served.holders()
            #expect(!holders.contains { $0.hasPrefix("/proc/\(served.lab.daemonProcess)/") }, "\(holders)")
            #expect(try served.read() == 1)
            try served.finish()
        }

        /// Without xbbd's copies the names count, and another file is not served.
        @Test func withoutTheOpenFilesTheIdentityIsCompared() throws {
            let served = try Served(try LibxlLab())
            try served.write(1)
            served.lab.killDaemon()
            try served.change(.exchanged)
            kill(try #require(try pid(served)), SIGKILL)
            try served.lab.start()
            try eventually("the disk is closed; log: \(served.lab.log)") {
                try served.lab.key("state", of: served.disk) == "5"
            }
            #expect(served.lab.log.has("another image stands in the place"))
            #expect(try served.content(served.name) == 0xee)
            try served.finish()
        }

        /// The worker's process, when nobody can be asked.
        private func pid(_ served: Served) throws -> Int32? {
            try served.holders().lazy.compactMap { Int32($0.split(separator: "/")[1]) }.first
        }

        /// An image that is absent for a moment is waited for.
        @Test func anAbsentImageIsWaitedFor() throws {
            let served = try Served(try LibxlLab())
            try served.write(1)
            served.lab.killDaemon()
            try served.change(.renamed)
            kill(try #require(try pid(served)), SIGKILL)
            try served.lab.start()
            try eventually("it is waited for; log: \(served.lab.log)") { served.lab.log.has("tried again for 10 s") }
            #expect(rename("\(served.name).moved", served.name) == 0)
            #expect(try served.read() == 1)
            try served.finish()
        }

        /// A guest that is between two drivers has its disk afterwards, though somebody looked at the image when the worker and xbbd died.
        @Test func aLockedImageIsWaitedForByWhomHadIt() throws {
            let served = try Served(try LibxlLab())
            try served.write(1)
            try served.device.close()
            served.lab.killDaemon()
            let worker = try #require(try pid(served))
            let reader = try readersLock(served.kept)
            kill(worker, SIGKILL)
            try served.lab.start()
            // Nothing is opened before the guest is back, which waits until it is connected.
            let log = "\(served.lab.directory)/log"
            Thread {
                for _ in 0..<3000 {
                    if (try? String(contentsOfFile: log, encoding: .utf8))?.has("tried again for 10 s") == true {
                        break
                    }
                    usleep(10_000)
                }
                close(reader)
            }.start()
            let device = try served.lab.connect(served.disk, served.guest)
            try device.queues[0].withQueue { (queue) throws in
                #expect(try queue.read(sector: 8, byteCount: 4096).bytes.allSatisfy { $0 == 1 })
            }
            #expect(served.lab.log.has("tried again for 10 s"))
            try device.close()
            try served.lab.remove(served.disk)
            served.lab.stop()
        }

        // MARK: xbbd's own end

        /// What the service manager keeps of one message.
        private struct Stored {
            var name: String
            var files: [Int32]
        }

        /// Takes what xbbd has sent to the manager's socket: what is stored afterwards.
        private func takeStored(_ socket: Int32, _ stored: inout [Stored]) {
            while true {
                var bytes = [UInt8](repeating: 0, count: 4096)
                var files = [Int32](repeating: -1, count: Int(CLINUX_MOST_DESCRIPTORS))
                var fileCount = 0
                let count = clinux_receive_descriptors(socket, &bytes, bytes.count, &files, &fileCount)
                guard count > 0 else { return }
                let lines = String(decoding: bytes[..<count], as: UTF8.self).split(separator: "\n").map(String.init)
                guard let name = lines.first(where: { $0.hasPrefix("FDNAME=") })?.dropFirst(7) else { continue }
                if lines.contains("FDSTORE=1") {
                    stored.append(Stored(name: String(name), files: Array(files[..<fileCount])))
                } else if lines.contains("FDSTOREREMOVE=1") {
                    stored.removeAll { $0.name == name }
                }
            }
        }

        /// What a service manager gives back to an xbbd that was killed.
        enum Returned: String, CaseIterable {
            case sameFiles, anotherDisksFile
        }

        @Test(arguments: Returned.allCases)
        func theServiceManagerKeepsTheFilesOfAnXbbdThatDied(_ returned: Returned) throws {
            let lab = try LibxlLab()
            let path = "\(lab.directory)/manager"
            let socket = try #require(clinuxDatagramSocket(path))
            defer { close(socket) }
            lab.killDaemon()
            try lab.start(environment: ["NOTIFY_SOCKET": path])
            let served = try Served(lab)
            try served.write(1)
            var stored: [Stored] = []
            try eventually("the files to be stored") {
                takeStored(socket, &stored)
                // The image, and the second open file of it.
                return stored.first?.files.count == 2
            }
            #expect(stored.first?.name == "storage-vbd-\(served.guest.id)-51712")
            let worker = try #require(try lab.worker())
            lab.killDaemon()
            kill(worker, SIGKILL)
            try served.change(.exchanged)
            let file = returned == .sameFiles ? try #require(stored.first?.files.first) : open(served.name, O_RDWR)
            try lab.startAgain(
                with: file, environment: ["NOTIFY_SOCKET": path, "LISTEN_FDNAMES": try #require(stored.first?.name)])
            if returned == .sameFiles {
                #expect(try served.read() == 1)
                #expect(!lab.log.has("another image"))
            } else {
                try eventually("the disk is closed; log: \(lab.log)") { try lab.key("state", of: served.disk) == "5" }
                #expect(lab.log.has("the service manager's descriptors are not those of this disk"), "\(lab.log)")
                #expect(try served.content(served.name) == 0xee)
            }
            try served.device.close()
            try lab.remove(served.disk)
            try eventually("nothing is stored any more") {
                takeStored(socket, &stored)
                return stored.isEmpty
            }
            // It has what the manager gave back no longer open either.
            #expect(try served.holders().filter { !$0.hasPrefix("/proc/\(getpid())/") } == [])
            lab.stop()
        }

        private func clinuxDatagramSocket(_ path: String) -> Int32? {
            let socket = socket(AF_UNIX, Int32(SOCK_DGRAM.rawValue | SOCK_CLOEXEC.rawValue), 0)
            var address = sockaddr_un()
            address.sun_family = sa_family_t(AF_UNIX)
            withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: Array(path.utf8)) }
            let size = socklen_t(MemoryLayout<sockaddr_un>.size)
            let result = withUnsafePointer(to: &address) {
                $0.withMemoryRebound(to: sockaddr.self, capacity: 1) { bind(socket, $0, size) }
            }
            return result == 0 ? socket : nil
        }

        /// A new worker that could not have the storage is refused while the old one still has it.
        @Test func anUpgradeIsRefusedBeforeAnythingIsLetGo() throws {
            let served = try Served(try LibxlLab())
            try served.write(1)
            served.lab.killDaemon()
            // The next xbbd does not know which files to take from the worker.
            #expect(unlink("\(served.lab.directory)/run/vbd-vbd-\(served.guest.id)-51712.storage") == 0)
            try served.lab.start()
            try eventually("the worker is adopted; log: \(served.lab.log)") { try served.lab.worker() != nil }
            try served.change(.exchanged)
            let worker = try served.lab.worker()
            #expect(throws: LabError.self) { try served.lab.administer("upgrade \(served.guest.id) 51712") }
            #expect(served.lab.log.has("another image stands in the place"), "\(served.lab.log)")
            #expect(try served.lab.worker() == worker)
            #expect(try served.read() == 1)
            try served.finish()
        }
    }
}
