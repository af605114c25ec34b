// SPDX-License-Identifier: BSD-2-Clause
// Snapshots, their way back, sizes, and what an administrator does with a released image: with the tools that people use.
import Base
import Blkfront
import Blkif
import CLinux
import Foundation
import Support
import Testing
import Xen
import XenLoopback

extension EndToEnd {
    @Suite struct SnapshotTests {
        private func json(_ text: String) throws -> [String: Any] {
            let line = text.split(separator: "\n").last { $0.hasPrefix("{") } ?? ""
            return try #require(try JSONSerialization.jsonObject(with: Data(line.utf8)) as? [String: Any], "\(text)")
        }

        /// What an image holds for a guest.
        private func content(_ swap: SwapLab, _ image: String, _ format: String) throws -> Data {
            try swap.run("rm -f flat; qemu-img convert -U -f \(format) -O raw \(image) flat")
            return try Data(contentsOf: URL(fileURLWithPath: "\(swap.folder)/flat"))
        }

        @Test(arguments: ["raw", "qcow2"])
        func aSnapshotIsTakenReadAndWrittenBack(_ format: String) throws {
            let swap = try SwapLab(format: format)
            try swap.mark()
            try swap.mark()
            var pauses: [Int] = []
            for name in ["a.qcow2", "b.qcow2"] {
                let taken = try swap.control("snapshot", "\(swap.folder)/\(name) --json")
                #expect(taken.status == 0, "\(taken.text) \(swap.lab.log.suffix(3000))")
                pauses.append(try json(taken.text)["pause_ms"] as? Int ?? -1)
                try swap.mark()
            }
            #expect(pauses.allSatisfy { $0 >= 0 }, "\(pauses)")
            #expect(try swap.served() == "\(swap.folder)/b.qcow2")
            let target = "qcow2:\(swap.folder)/b.qcow2"
            #expect(try swap.configured() == [target, "\(swap.folder)/b.qcow2", target])
            try swap.check()

            // Block 3 was written between the two snapshots, block 4 after them; a cluster has 64 KiB.
            let between = try json(try swap.lab.xbbctl("changed \(swap.folder)/a.qcow2 --json").text)
            let socket = "--socket \(swap.lab.directory)/run/xbbd.sock"
            let since = try json(
                try swap.lab.xbbctl("changed \(swap.guest.id)/\(swap.disk.number) --json \(socket)").text)
            for answer in [between, since] {
                let ranges = try #require(answer["ranges"] as? [[String: Any]])
                #expect(ranges.count == 1 && ranges[0]["offset"] as? Int == 0, "\(answer)")
                #expect(
                    ranges.allSatisfy { $0["length"] as? Int == 65536 && $0["zero"] as? Bool == false }, "\(answer)")
            }

            // A backup program reads the state of the first snapshot over NBD, while the guest goes on.
            let export = Process()
            export.executableURL = URL(fileURLWithPath: "/usr/bin/qemu-nbd")
            export.arguments = [
                "--read-only", "--shared=4", "--persistent", "--socket=\(swap.folder)/nbd.sock", "-f", "qcow2",
                "\(swap.folder)/a.qcow2",
            ]
            try export.run()
            defer { if export.isRunning { kill(export.processIdentifier, SIGKILL) } }
            try eventually("qemu-nbd listens") {
                FileManager.default.fileExists(atPath: "\(swap.folder)/nbd.sock")
            }
            try swap.mark()
            try swap.run("qemu-img convert -f raw -O raw 'nbd+unix:///?socket=\(swap.folder)/nbd.sock' export")
            let exported = try Data(contentsOf: URL(fileURLWithPath: "\(swap.folder)/export"))
            for block in 1...3 { #expect(exported[block * 8 * 512] == UInt8(block)) }
            #expect(exported[4 * 8 * 512] == 0 && exported[5 * 8 * 512] == 0)
            // Signals that this process blocks are blocked there, too.
            kill(export.processIdentifier, SIGKILL)
            export.waitUntilExit()

            // The way back, twice.
            for (name, below) in [("a.qcow2", "qcow2"), ("disk.\(format)", format)] {
                let done = try swap.control("commit", "--json")
                #expect(done.status == 0, "\(done.text) \(swap.lab.log.suffix(3000))")
                try swap.awaitQuiet()
                #expect(try swap.served() == "\(swap.folder)/\(name)")
                #expect(try swap.lab.key("params", of: swap.disk) == "\(below):\(swap.folder)/\(name)")
                try swap.check()
                try swap.mark()
            }
            try swap.check()
            let flat = try content(swap, "disk.\(format)", format)
            for block in 1...6 { #expect(flat[block * 8 * 512] == UInt8(block), "block \(block)") }
            #expect(try swap.control("commit").text.has("no qcow2 image above another one"))
            try swap.finish()
        }

        @Test func aSnapshotUnderLoadLosesNothing() throws {
            let swap = try SwapLab(bytes: 64 << 20)
            var count = 0
            try swap.load(until: { count == 5 }) {
                usleep(300_000)
                guard count < 5 else { return }
                let taken = try swap.control("snapshot", "\(swap.folder)/\(count).qcow2 --json")
                #expect(taken.status == 0, "\(taken.text) \(swap.lab.log.suffix(3000))")
                count += 1
            }
            try swap.finish()
        }

        /// What goes wrong, and what is said; `script` is what stands in for qemu-img.
        static let failures: [(name: String, script: String?, overlay: String, reason: String)] = [
            ("an existing file", nil, "there.qcow2", "File exists"),
            ("no qemu-img", "none", "new.qcow2", "qemu-utils"),
            ("a killed qemu-img", "kill -9 $$", "new.qcow2", "signal 9"),
            (
                "a killed qemu-img with half an image",
                "printf 'QFI' >\"$(eval echo \\${$(($# - 1))})\"; kill -9 $$", "new.qcow2", "signal 9"
            ),
            ("a qemu-img that fails", "echo no >&2; exit 1", "new.qcow2", "status 1"),
            ("a full file system", nil, "full/new.qcow2", "qemu-img create"),
            ("a folder that there is not", nil, "no/new.qcow2", "No such file"),
            ("an image that is none", "exit 0", "new.qcow2", "new.qcow2"),
        ]

        @Test(arguments: failures)
        func aSnapshotThatFailsLeavesTheOldImage(
            _ failure: (name: String, script: String?, overlay: String, reason: String)
        ) throws {
            let swap = try SwapLab()
            try swap.mark()
            try swap.run("echo mine > there.qcow2; mkdir full")
            try swap.run("mount -t tmpfs -o size=64k tmpfs full")
            defer { _ = try? LibxlLab.shell("umount -l \(swap.folder)/full") }
            let result: (status: Int32, text: String)
            switch failure.script {
            case nil: result = try swap.control("snapshot", "\(swap.folder)/\(failure.overlay)")
            case "none": result = try swap.control("snapshot", "\(swap.folder)/\(failure.overlay)", path: "/nowhere")
            case let script?:
                let path = try swap.program("qemu-img", script)
                result = try swap.control("snapshot", "\(swap.folder)/\(failure.overlay)", path: path)
            }
            #expect(result.status == 1 && result.text.has(failure.reason), "\(result) \(swap.lab.log.suffix(2000))")
            try swap.awaitQuiet()
            #expect(try swap.served() == swap.image)
            #expect(try swap.run("cat there.qcow2") == "mine")
            #expect(!FileManager.default.fileExists(atPath: "\(swap.folder)/new.qcow2"), "\(result)")
            #expect(try swap.run("ls full") == "")
            try swap.check()
            try swap.mark()
            try swap.run("umount full")
            try swap.finish()
        }

        @Test(arguments: [20, 60, 100, 150, 250, 400])
        func aKilledXbbctlLeavesOneImage(_ moment: Int) throws {
            let swap = try SwapLab()
            try swap.mark()
            for command in ["snapshot \(swap.folder)/over.qcow2", "commit"] {
                let words = command.split(separator: " ").map(String.init)
                let client = try swap.begin(words[0], words.dropFirst().joined(separator: " "))
                usleep(UInt32(moment * 1000))
                kill(client.processIdentifier, SIGKILL)
                client.waitUntilExit()
                _ = try? swap.control("resume")
                try swap.awaitQuiet()
                let served = try swap.served()
                #expect([swap.image, "\(swap.folder)/over.qcow2"].contains(served), "\(served)")
                try swap.check()
                try swap.mark()
            }
            try swap.check()
            try swap.finish()
        }

        /// Who is killed while qemu-img writes an image back.
        @Test(arguments: ["qemu-img", "xbbctl", "xbbd", "xbbd and xbbctl"])
        func aCommitThatIsKilledLeavesTheImagesAsTheyWere(_ victim: String) throws {
            let swap = try SwapLab()
            try swap.mark()
            #expect(try swap.control("snapshot", "\(swap.folder)/over.qcow2").status == 0, "\(swap.lab.log)")
            try swap.mark()
            // It is in the middle of it when it is killed.
            let process = try swap.beginStuck("commit")
            #expect(try swap.lab.xbbctl("list --socket \(swap.lab.directory)/run/xbbd.sock").text.has("released"))
            switch victim {
            case "qemu-img":
                let children = try String(
                    contentsOfFile: "/proc/\(process.processIdentifier)/task/\(process.processIdentifier)/children",
                    encoding: .utf8)
                for child in children.split(separator: " ") { kill(pid_t(child) ?? 0, SIGKILL) }
                process.waitUntilExit()
            case "xbbctl":
                kill(process.processIdentifier, SIGKILL)
                process.waitUntilExit()
            default:
                if victim != "xbbd" { kill(process.processIdentifier, SIGKILL) }
                swap.lab.killDaemon()
                try swap.lab.start()
                // The new one keeps it released.
                #expect(try swap.lab.xbbctl("list --socket \(swap.lab.directory)/run/xbbd.sock").text.has("released"))
                kill(process.processIdentifier, SIGKILL)
                process.waitUntilExit()
                // It may have asked the new xbbd already, which sees its end then.
                _ = try swap.control("resume")
            }
            try swap.awaitQuiet()
            #expect(try swap.served() == "\(swap.folder)/over.qcow2")
            try swap.check()
            try swap.mark()
            #expect(try swap.control("commit").status == 0, "\(swap.lab.log.suffix(3000))")
            try swap.awaitQuiet()
            try swap.check()
            #expect(try swap.served() == swap.image)
            try swap.finish()
        }

        @Test func imagesBetweenAreLeftOut() throws {
            let swap = try SwapLab()
            try swap.mark()
            for name in ["first", "second"] {
                #expect(try swap.control("snapshot", "\(swap.folder)/\(name).qcow2").status == 0, "\(swap.lab.log)")
                try swap.mark()
            }
            // What the worker might refuse is not taken: the guest would have no disk.
            try swap.run("cp disk.raw copy.raw")
            let refused = try swap.control("rebase", "--below raw:\(swap.folder)/copy.raw")
            #expect(refused.status == 1 && refused.text.has("is not below"), "\(refused)")
            #expect(try swap.control("rebase", "--below qcow2:\(swap.image)").status == 1)
            let done = try swap.control("rebase", "--below raw:\(swap.image)")
            #expect(done.status == 0, "\(done) \(swap.lab.log.suffix(3000))")
            try swap.awaitQuiet()
            try swap.check()
            #expect(try !swap.control("show").text.has("first.qcow2"))
            try swap.run("rm first.qcow2")
            try swap.mark()
            try swap.check()
            try swap.finish()
        }

        /// What the guest wrote after that is in the overlay alone.
        @Test func aCommitWhosePauseEndedIsNotTaken() throws {
            let swap = try SwapLab()
            try swap.mark()
            let overlay = "\(swap.folder)/over.qcow2"
            #expect(try swap.control("snapshot", overlay).status == 0, "\(swap.lab.log)")
            try swap.mark()
            let resume =
                "\(buildDirectory)/xbbctl resume \(swap.guest.id) \(swap.disk.number) --loopback \(swap.lab.xen.directory) "
                + "--socket \(swap.lab.directory)/run/xbbd.sock"
            let path = try swap.program("qemu-img", "/usr/bin/qemu-img \"$@\" && \(resume) && sleep 2")
            let result = try swap.control("commit", "", path: path)
            #expect(result.status == 1 && result.text.has("went on meanwhile"), "\(result)")
            try swap.awaitQuiet()
            #expect(try swap.served() == overlay)
            try swap.goesOn()
            try swap.finish()
        }

        /// An overlay is of the image that the disk had when it was made.
        @Test func aSnapshotOfADiskThatGotAnotherImageIsNotTaken() throws {
            let swap = try SwapLab()
            try swap.mark()
            let other =
                "\(buildDirectory)/xbbctl snapshot \(swap.guest.id) \(swap.disk.number) \(swap.folder)/other.qcow2 "
                + "--loopback \(swap.lab.xen.directory) --socket \(swap.lab.directory)/run/xbbd.sock"
            let path = try swap.program(
                "qemu-img",
                "/usr/bin/qemu-img \"$@\" || exit 1; [ -e \(swap.folder)/other.qcow2 ] && exit 0; PATH=/usr/bin:/bin exec \(other)"
            )
            let result = try swap.control("snapshot", "\(swap.folder)/over.qcow2", path: path)
            #expect(result.status == 1 && result.text.has("got another worker"), "\(result)")
            try swap.awaitQuiet()
            #expect(try swap.served() == "\(swap.folder)/other.qcow2")
            #expect(!FileManager.default.fileExists(atPath: "\(swap.folder)/over.qcow2"))
            try swap.goesOn()
            try swap.finish()
        }

        // MARK: Pauses

        @Test func aReleasedImageIsTheAdministrators() throws {
            let swap = try SwapLab()
            try swap.mark()
            let lock = "qemu-io -f raw -c 'read 0 512' disk.raw"
            #expect((try? swap.run(lock)) == nil, "it is locked while it is served")
            #expect(try swap.control("pause", "--timeout 60 --release").status == 0, "\(swap.lab.log)")
            try swap.run(lock)
            // Whoever kills xbbd, or asks again, changes nothing.
            swap.lab.killDaemon()
            try swap.lab.start()
            try swap.run(lock)
            #expect(try swap.control("pause", "--timeout 60 --release").status == 0)
            // The administrator puts a copy in its place.
            try swap.run("cp disk.raw copy; mv copy disk.raw")
            #expect(try swap.control("resume").status == 0)
            try swap.awaitQuiet()
            try swap.check()
            try swap.mark()
            // The time limit ends it, too, for xbbd and for the next one.
            for isKilled in [false, true] {
                #expect(try swap.control("pause", "--timeout 2 --release").status == 0, "\(swap.lab.log)")
                if isKilled {
                    swap.lab.killDaemon()
                    try swap.lab.start()
                }
                try swap.mark()
                try swap.awaitQuiet()
                #expect(try swap.lab.key("xbb-released", of: swap.disk) == nil)
                #expect(try swap.lab.key("xbb-paused", of: swap.disk) == nil)
            }
            // A disk whose storage is released can be taken away.
            #expect(try swap.control("pause", "--timeout 60 --release").status == 0)
            try swap.lab.requestRemoval(swap.disk)
            try swap.device.close()
            try swap.lab.remove(swap.disk)
            swap.lab.stop()
        }

        @Test func aPauseOutlivesXbbdAndWorkers() throws {
            let swap = try SwapLab()
            try swap.mark()
            #expect(try swap.control("pause", "--timeout 600").status == 0, "\(swap.lab.log)")
            func isPaused() throws -> Bool { try swap.control("show", "--json").text.has("\"intake\":\"paused\"") }
            #expect(try isPaused())
            kill(try swap.lab.worker(swap.disk), SIGKILL)
            try eventually("the next one is paused; \(swap.lab.log.suffix(2000))") { try isPaused() }
            let worker = try swap.lab.worker(swap.disk)
            swap.lab.killDaemon()
            kill(worker, SIGKILL)
            try swap.lab.start()
            try eventually("the next one is paused; \(swap.lab.log.suffix(2000))") { try isPaused() }
            #expect(try swap.control("upgrade").status == 0)
            #expect(try isPaused())
            // Other storage does not end it.
            try swap.run("cp disk.raw copy.raw")
            #expect(try swap.control("swap", "--image raw:\(swap.folder)/copy.raw").status == 0, "\(swap.lab.log)")
            #expect(try isPaused())
            #expect(try swap.control("resume").status == 0)
            try swap.mark()
            try swap.check()
            try swap.finish()
        }

        // MARK: Sizes

        @Test(arguments: ["raw", "qcow2"])
        func aDiskGrowsWhileItsGuestUsesIt(_ format: String) throws {
            let swap = try SwapLab(format: format)
            try swap.mark()
            var sectors = 32768
            let part: (inout LoadPlan) -> Void = { ($0.offset, $0.size) = (8 << 20, 8 << 20) }
            var steps = [("+4M", 8192), ("24M", 8192), ("\((24 << 20) + 1)", 1)][...]
            try swap.load(part, until: { steps.isEmpty }) {
                usleep(100_000)
                guard let (size, more) = steps.popFirst() else { return }
                let result = try swap.control("resize", size)
                #expect(result.status == 0, "\(result)")
                sectors += more
                try eventually("the guest is told of \(sectors)") {
                    try swap.lab.key("sectors", of: swap.disk) == "\(sectors)"
                }
            }
            for wrong in ["0", "-0", "1X", "", "+", "18446744073709551616", "-1T", "9223372036854775807", "1.5G"] {
                #expect(try swap.control("resize", "'\(wrong)'").status == 64, "\(wrong)")
            }
            let shrunk = try swap.control("resize", "8M")
            #expect(shrunk.status == 1 && shrunk.text.has("would be lost"), "\(shrunk)")
            #expect(try swap.control("resize", "8E").status != 0)
            try swap.check()
            // A killed worker's successor has the same size.
            kill(try swap.lab.worker(swap.disk), SIGKILL)
            try swap.mark()
            try swap.awaitQuiet()
            #expect(try swap.lab.key("sectors", of: swap.disk) == "\(sectors)")
            let forced = try swap.control("resize", "8M --force")
            if format == "raw" {
                #expect(forced.status == 0, "\(forced)")
                try eventually("the guest is told") { try swap.lab.key("sectors", of: swap.disk) == "16384" }
                // Somebody else enlarges it.
                try swap.run("truncate -s 32M disk.raw")
                #expect(try swap.control("resize").status == 0)
                try eventually("the guest is told") { try swap.lab.key("sectors", of: swap.disk) == "65536" }
            } else {
                #expect(forced.status == 1 && forced.text.has("can only grow"), "\(forced)")
            }
            try swap.check()
            try swap.finish()
        }
    }
}
