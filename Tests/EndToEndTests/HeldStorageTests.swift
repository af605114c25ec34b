// SPDX-License-Identifier: BSD-2-Clause
// Storage that an administrator's command has for a while: how the disk goes on when that ends, in whatever way.
import Base
import Blkfront
import CLinux
import Foundation
import Support
import Testing

extension EndToEnd {
    @Suite struct HeldStorageTests {
        private func member(_ swap: SwapLab, _ name: String) throws -> String? {
            let answer = try swap.control("show", "--json")
            let value = try JSONSerialization.jsonObject(with: Data(answer.text.utf8)) as? [String: Any]
            return value?[name] as? String
        }

        /// A lock on all bytes that QEMU locks, as of one who writes and shares with nobody; it lasts until it is closed.
        private func lock(_ path: String) throws -> Descriptor {
            let file = Descriptor(owning: open(path, O_RDWR | O_CLOEXEC))
            var lock = flock()
            lock.l_type = Int16(F_WRLCK)
            lock.l_whence = Int16(SEEK_SET)
            lock.l_start = 100
            lock.l_len = 200
            #expect(clinux_fcntl_pointer(file.raw, clinux_F_OFD_SETLK, &lock) == 0)
            return file
        }

        /// Whatever keeps the image from being opened when an administrator gives it back: the guest waits until it can be.
        @Test(arguments: [
            ("an empty file", "mv disk.raw kept && touch disk.raw", "mv kept disk.raw"),
            ("a copy that is not complete", "mv disk.raw kept && head -c 5M kept > disk.raw", "mv kept disk.raw"),
            ("a link to nothing", "mv disk.raw kept && ln -s disk.raw disk.raw", "mv kept disk.raw"),
            ("a directory", "mv disk.raw kept && mkdir disk.raw", "rmdir disk.raw && mv kept disk.raw"),
        ])
        func anImageThatCannotBeOpenedIsWaitedFor(_ name: String, _ spoil: String, _ mend: String) throws {
            let swap = try SwapLab()
            try swap.mark()
            #expect(try swap.control("pause", "--timeout 600 --release").status == 0, "\(swap.lab.log)")
            try swap.run(spoil)
            #expect(try swap.control("resume").status == 0)
            try eventually("it is told") {
                try swap.lab.xbbctl("list --json --socket \(swap.lab.directory)/run/xbbd.sock").text
                    .has("the guest waits until it can be opened")
            }
            #expect(try swap.lab.key("state", of: swap.disk) == "4", "the guest sees nothing of it: \(name)")
            try swap.run(mend)
            try swap.goesOn()
            try swap.device.close()
            try swap.lab.remove(swap.disk)
            swap.lab.stop()
            try FileManager.default.removeItem(atPath: swap.folder)
        }

        /// The same of an image below.
        @Test func aMissingBackingFileIsWaitedFor() throws {
            let swap = try SwapLab(
                format: "qcow2",
                prepare: "mv disk.qcow2 base && qemu-img create -q -f qcow2 -b base -F qcow2 disk.qcow2")
            try swap.mark()
            #expect(try swap.control("pause", "--timeout 600 --release").status == 0, "\(swap.lab.log)")
            try swap.run("mv base kept")
            #expect(try swap.control("resume").status == 0)
            try eventually("it is told") {
                try swap.lab.xbbctl("list --json --socket \(swap.lab.directory)/run/xbbd.sock").text
                    .has("the guest waits until it can be opened")
            }
            try swap.run("mv kept base")
            try swap.goesOn()
            try swap.device.close()
            try swap.lab.remove(swap.disk)
            swap.lab.stop()
            try FileManager.default.removeItem(atPath: swap.folder)
        }

        /// What ends the wait for an image that somebody has locked.
        @Test(arguments: ["the lock goes", "another image", "another pause", "a kill", "a detach"])
        func aLockedImageIsWaitedForAfterAPause(_ end: String) throws {
            let swap = try SwapLab()
            try swap.mark()
            try swap.run("cp disk.raw copy.raw")
            #expect(try swap.control("pause", "--timeout 600 --release").status == 0, "\(swap.lab.log)")
            var held: Descriptor? = try lock(swap.image)
            #expect(try swap.control("resume").status == 0)
            try eventually("it is told") {
                try swap.lab.xbbctl("list --json --socket \(swap.lab.directory)/run/xbbd.sock").text
                    .has("the guest waits until it can be opened")
            }
            let events = try swap.lab.xbbctl("events --json --socket \(swap.lab.directory)/run/xbbd.sock").text
            #expect(events.has("the guest waits until it can be opened"), "\(events)")
            #expect(try swap.control("wait", "running --timeout 0").status == 75)
            #expect(try swap.lab.key("state", of: swap.disk) == "4", "the guest sees nothing of it")
            switch end {
            case "the lock goes":
                // Longer than a successor waits where no administrator had the image.
                usleep(11_000_000)
                held = nil
            case "another image":
                let result = try swap.control("swap", "--image raw:\(swap.folder)/copy.raw")
                #expect(result.status == 0, "\(result) \(swap.lab.log.suffix(3000))")
                #expect(try swap.served() == "\(swap.folder)/copy.raw")
            case "another pause":
                #expect(try swap.control("pause", "--timeout 600 --release").status == 0, "\(swap.lab.log)")
                held = nil
                #expect(try swap.control("resume").status == 0)
            case "a kill":
                kill(try swap.lab.worker(swap.disk), SIGKILL)
                held = nil
            default:
                try swap.lab.requestRemoval(swap.disk)
                try swap.device.close()
                try swap.lab.remove(swap.disk)
                swap.lab.stop()
                return
            }
            try swap.awaitQuiet()
            #expect(try swap.control("wait", "running").status == 0)
            try swap.goesOn()
            withExtendedLifetime(held) {}
            try swap.finish()
        }

        /// The guest goes on at once, and not when the time limit of the pause is over.
        @Test(arguments: ["commit", "rebase"])
        func aDiskGoesOnWhenItsCommandIsKilled(_ command: String) throws {
            let swap = try SwapLab()
            try swap.mark()
            for name in ["first", "over"] {
                #expect(try swap.control("snapshot", "\(swap.folder)/\(name).qcow2").status == 0, "\(swap.lab.log)")
                try swap.mark()
            }
            let words = command == "commit" ? "" : "--below raw:\(swap.image)"
            let process = try swap.beginStuck(command, words)
            // Ctrl-C ends it in the same way, but this process may block that signal for its children.
            kill(process.processIdentifier, SIGKILL)
            process.waitUntilExit()
            try swap.awaitQuiet()
            #expect(try swap.served() == "\(swap.folder)/over.qcow2")
            #expect(try swap.lab.key("xbb-held", of: swap.disk) == nil)
            try swap.goesOn()
            try swap.finish()
        }

        /// An administrator's pause is as it was, whether the command succeeds, fails or is killed.
        @Test(arguments: ["succeeds", "fails", "is killed"])
        func aCommandLeavesAPausedDiskPaused(_ outcome: String) throws {
            let swap = try SwapLab()
            try swap.mark()
            #expect(try swap.control("snapshot", "\(swap.folder)/over.qcow2").status == 0, "\(swap.lab.log)")
            try swap.mark()
            #expect(try swap.control("pause", "--timeout 600").status == 0, "\(swap.lab.log)")
            let before = try swap.lab.key("xbb-paused", of: swap.disk)
            #expect(before != nil)
            switch outcome {
            case "succeeds": #expect(try swap.control("commit").status == 0, "\(swap.lab.log.suffix(3000))")
            case "fails":
                let path = try swap.program("qemu-img", "exit 1")
                #expect(try swap.control("commit", "", path: path).status == 1)
            default:
                let process = try swap.beginStuck("commit")
                kill(process.processIdentifier, SIGKILL)
                process.waitUntilExit()
            }
            try eventually("a worker has it; \(swap.lab.log.suffix(3000))") {
                let isConnected = try member(swap, "stage") == "connected"
                return try isConnected && swap.lab.key("xbb-swap", of: swap.disk) == nil
            }
            #expect(try member(swap, "intake") == "paused")
            #expect(try swap.lab.key("xbb-paused", of: swap.disk) == before)
            #expect(try swap.control("resume").status == 0)
            let served = try swap.served()
            #expect(served == (outcome == "succeeds" ? swap.image : "\(swap.folder)/over.qcow2"))
            try swap.goesOn()
            try swap.finish()
        }

        /// The image is moved to another place while the guest waits.
        @Test func aReleasedDiskGetsAnotherImage() throws {
            let swap = try SwapLab()
            try swap.mark()
            #expect(try swap.control("pause", "--timeout 600 --release").status == 0, "\(swap.lab.log)")
            try swap.run("mv disk.raw moved.raw")
            let result = try swap.control("swap", "--image raw:\(swap.folder)/moved.raw")
            #expect(result.status == 0, "\(result) \(swap.lab.log.suffix(3000))")
            #expect(try member(swap, "intake") == "paused")
            #expect(try swap.control("resume").status == 0)
            try swap.awaitQuiet()
            #expect(try swap.served() == "\(swap.folder)/moved.raw")
            try swap.goesOn()
            try swap.finish()
        }

        @Test func waitSaysWhatHoldsNow() throws {
            let swap = try SwapLab()
            for _ in 0..<5 {
                for words in ["--timeout 600", "--timeout 600 --release"] {
                    #expect(try swap.control("pause", words).status == 0, "\(swap.lab.log)")
                    #expect(try swap.control("wait", "running --timeout 0").status == 75)
                    #expect(try swap.control("wait", "paused").status == 0)
                    #expect(try swap.control("resume").status == 0)
                    #expect(try swap.control("wait", "paused --timeout 0").status == 75)
                    #expect(try swap.control("wait", "running").status == 0)
                    #expect(try member(swap, "intake") == "running")
                    #expect(try member(swap, "path") == swap.image)
                }
            }
            try swap.mark()
            try swap.check()
            try swap.finish()
        }

        @Test func imagesOfAReadOnlyDiskAreNotWritten() throws {
            let swap = try SwapLab(mode: "r")
            #expect(try swap.control("snapshot", "\(swap.folder)/over.qcow2").status == 0, "\(swap.lab.log)")
            for command in ["commit", "rebase"] {
                let words = command == "rebase" ? "--below raw:\(swap.image)" : ""
                let result = try swap.control(command, words)
                #expect(result.status == 1 && result.text.has("read-only"), "\(result)")
            }
            #expect(try swap.served() == "\(swap.folder)/over.qcow2")
            try swap.finish()
        }

        @Test func theLoserOfTwoSnapshotsLeavesNothing() throws {
            let swap = try SwapLab()
            try swap.mark()
            for round in 0..<4 {
                let names = ["a", "b"].map { "\(swap.folder)/\($0)\(round).qcow2" }
                let clients = try names.map { try swap.begin("snapshot", $0) }
                for client in clients { client.waitUntilExit() }
                try swap.awaitQuiet()
                var isServed = false
                for (name, client) in zip(names, clients) {
                    let isThere = FileManager.default.fileExists(atPath: name)
                    #expect(isThere == (client.terminationStatus == 0), "\(name) \(swap.lab.log.suffix(3000))")
                    if try swap.served() == name { isServed = true }
                }
                let served = try swap.served()
                #expect(isServed, "\(served)")
                try swap.check()
                try swap.mark()
            }
            try swap.check()
            try swap.finish()
        }

        /// The option that names the file is of the image that has it, and is asked for where the device gets that again.
        @Test func anImageWithADataFileIsCommittedWithItsOption() throws {
            let swap = try SwapLab()
            try swap.run("qemu-img create -q -f qcow2 -o data_file=\(swap.folder)/data base.qcow2 16M")
            let option = "data-file=\(swap.folder)/data"
            let base = "\(swap.folder)/base.qcow2"
            let first = try swap.control("swap", "--image qcow2,\(option):\(base)")
            #expect(first.status == 0, "\(first) \(swap.lab.log.suffix(3000))")
            try swap.mark()
            let taken = try swap.control("snapshot", "\(swap.folder)/over.qcow2")
            #expect(taken.status == 0, "\(taken) \(swap.lab.log.suffix(3000))")
            try swap.mark()
            let refused = try swap.control("commit")
            #expect(refused.status == 1 && refused.text.has("--option data-file=PATH"), "\(refused)")
            let done = try swap.control("commit", "--option \(option)")
            #expect(done.status == 0, "\(done) \(swap.lab.log.suffix(3000))")
            try swap.awaitQuiet()
            #expect(try swap.served() == base)
            try swap.check()
            try swap.finish()
        }
    }
}
