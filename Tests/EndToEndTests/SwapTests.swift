// SPDX-License-Identifier: BSD-2-Clause
// A guest gets other storage while it works; whatever fails or is killed, it has one image, the old one or the new one.
import Base
import Blkfront
import Blkif
import CLinux
import Foundation
import Support
import Testing
import Xen
import XenLoopback

/// A disk under xbbd whose image can be exchanged, and a guest that knows what it has written.
final class SwapLab {
    let lab: LibxlLab
    let guest: LoopbackDomain
    let disk: LibxlDisk
    let device: FrontDevice
    let image: String
    /// How many blocks of 4096 bytes the guest has marked.
    private var marks = 0

    /// `prepare`: commands of the shell in the folder of the images, before the disk is attached; `mount`: before the image is made, in
    /// its `subfolder`.
    init(
        bytes: Int = 16 << 20, kind: String = "vbd", format: String = "raw", options: String = "", mode: String = "w",
        mount: String = ":", subfolder: String = "", prepare: String = ":"
    ) throws {
        let folder = try makeTemporaryDirectory("swap")
        lab = try LibxlLab(kinds: [kind], options: ["--backing-dir", folder, "--stall-time", "2"])
        try Lab.describePlugins(in: lab.plugins)
        guest = try lab.guest()
        image = "\(folder)/\(subfolder)disk.\(format)"
        try LibxlLab.shell("cd \(folder) && \(mount)")
        let name = format == "vhd" ? "vpc" : format
        try LibxlLab.shell("qemu-img create -q -f \(name) \(image) \(bytes) && cd \(folder) && \(prepare)")
        var disk = LibxlDisk(kind: kind, guest: guest.id, params: "\(format)\(options):\(image)")
        disk.mode = mode
        self.disk = disk
        if kind == "qdisk" {
            try lab.makeNodes(disk)
            try lab.awaitState("2", of: disk)
        } else {
            let added = try lab.add(disk)
            guard added.status == 0 else { throw LabError("not attached: \(lab.log)") }
        }
        device = try lab.connect(disk, guest)
        let copy = "/libxl/\(guest.id)/device/vbd/\(disk.number)/params"
        try lab.store.write(copy, disk.params)
    }

    /// Ends the worker with SIGKILL; the one that serves then.
    func killWorker() throws -> Int32 {
        let worker = try #require(try lab.worker())
        #expect(kill(worker, SIGKILL) == 0)
        try eventually("another worker; log: \(lab.log)") {
            let now = try lab.worker()
            return now != nil && now != worker
        }
        try check()
        return try #require(try lab.worker())
    }

    /// The folder of the images.
    var folder: String { String(image[..<(image.lastIndex(of: "/") ?? image.startIndex)]) }

    /// Runs a command of the shell in the folder of the images.
    @discardableResult
    func run(_ command: String) throws -> String { try LibxlLab.shell("cd \(folder) && (\(command)) 2>&1") }

    /// xbbctl with the disk behind its subcommand.
    func control(_ command: String, _ rest: String = "") throws -> (status: Int32, text: String) {
        try lab.xbbctl("\(command) \(guest.id) \(disk.number) \(rest) --socket \(lab.directory)/run/xbbd.sock")
    }

    /// The same with a PATH of its own, so that another qemu-img is found, or none.
    func control(_ command: String, _ rest: String, path: String) throws -> (status: Int32, text: String) {
        let words = "\(command) \(guest.id) \(disk.number) \(rest) --loopback \(lab.xen.directory)"
        let output = try LibxlLab.shell(
            "\(buildDirectory)/xbbctl \(words) --socket \(lab.directory)/run/xbbd.sock 2>&1; echo \"\n$?\"",
            environment: ["PATH": path])
        let lines = output.split(separator: "\n").map(String.init)
        return (Int32(lines.last ?? "") ?? -1, output)
    }

    /// Puts a program of this name into a folder of its own; its PATH.
    func program(_ name: String, _ script: String) throws -> String {
        let bin = "\(folder)/bin"
        try run("mkdir -p bin")
        try "#!/bin/sh\n\(script)\n".write(toFile: "\(bin)/\(name)", atomically: true, encoding: .utf8)
        chmod("\(bin)/\(name)", 0o755)
        return "\(bin):/usr/bin:/bin"
    }

    /// Starts xbbctl, to be killed.
    func begin(_ command: String, _ rest: String = "", path: String = "/usr/bin:/bin") throws -> Process {
        let process = Process()
        process.executableURL = URL(fileURLWithPath: "\(buildDirectory)/xbbctl")
        process.arguments =
            [command, "\(guest.id)", "\(disk.number)"] + rest.split(separator: " ").map(String.init)
            + ["--loopback", lab.xen.directory, "--socket", "\(lab.directory)/run/xbbd.sock"]
        process.environment = ["PATH": path, "SWIFT_BACKTRACE": "enable=no"]
        process.standardError = FileHandle.nullDevice
        process.standardOutput = FileHandle.nullDevice
        try process.run()
        return process
    }

    /// The guest writes one more block, each with a content of its own.
    func mark() throws {
        marks += 1
        try device.queues[0].withQueue { (queue) throws in
            let sector = UInt64(marks * 8)
            #expect(try queue.status(.write, sector: sector, byteCount: 4096, fill: UInt8(marks)) == 0, "\(lab.log)")
        }
    }

    /// The guest finds all of its blocks.
    func check() throws {
        try device.queues[0].withQueue { (queue) throws in
            for mark in stride(from: 1, through: marks, by: 1) {
                let (status, bytes) = try queue.read(sector: UInt64(mark * 8), byteCount: 4096)
                #expect(status == 0 && bytes.allSatisfy { $0 == UInt8(mark) }, "block \(mark): \(lab.log.suffix(3000))")
            }
        }
    }

    /// The guest finds its blocks, writes another one, and finds that too.
    func goesOn() throws {
        try check()
        try mark()
        try check()
    }

    /// The guest writes and verifies until `isDone`, in runs of a second; `meanwhile` is called again and again beside them.
    func load(
        _ change: (inout LoadPlan) -> Void = { _ in }, until isDone: () -> Bool, meanwhile: () throws -> Void
    ) throws {
        let plan = mixedPlan {
            $0.duration = 1_000_000_000
            change(&$0)
        }
        repeat {
            let report = try inBackground({ [device] in try LoadRun(device, plan).run() }, meanwhile: meanwhile)
            #expect(report.isGood && report.verifiedBlocks > 0, "\(report.text) \(lab.log.suffix(4000))")
        } while !isDone()
    }

    /// Starts xbbctl with a qemu-img that does not end by itself, to be killed; returns when that runs.
    func beginStuck(_ command: String, _ rest: String = "") throws -> Process {
        let path = try program("qemu-img", "touch \(folder)/busy; exec sleep 60")
        let process = try begin(command, rest, path: path)
        try eventually("qemu-img works") { FileManager.default.fileExists(atPath: "\(folder)/busy") }
        return process
    }

    /// What the disk is served from.
    func served() throws -> String {
        var path: String?
        // Between two workers there is no answer.
        try eventually("an answer of a worker; log: \(lab.log.suffix(3000))") {
            let answer = try control("show", "--json")
            guard answer.status == 0 else { return false }
            let value = try JSONSerialization.jsonObject(with: Data(answer.text.utf8)) as? [String: Any]
            path = value?["path"] as? String ?? "nothing: \(answer.text)"
            return true
        }
        return path ?? ""
    }

    /// Waits until a worker serves the guest; and nothing is left of an exchange or a pause.
    func awaitQuiet() throws {
        try eventually("the disk is served; \(try control("list").text) \(lab.log.suffix(3000))") {
            let answer = try control("show", "--json")
            let value = try? JSONSerialization.jsonObject(with: Data(answer.text.utf8)) as? [String: Any]
            let isOver = try lab.key("xbb-swap", of: disk) == nil
            return value?["stage"] as? String == "connected" && value?["intake"] as? String == "running"
                && isOver
        }
    }

    /// What a toolstack reads back.
    func configured() throws -> [String?] {
        [
            try lab.key("params", of: disk), try lab.key("physical-device-path", of: disk),
            try lab.store.text("/libxl/\(guest.id)/device/vbd/\(disk.number)/params"),
        ]
    }

    func finish() throws {
        try device.close()
        #expect(device.leakedGrants.isEmpty)
        try lab.remove(disk)
        lab.stop()
        try? FileManager.default.removeItem(atPath: folder)
    }
}

extension EndToEnd {
    @Suite struct SwapTests {
        @Test(arguments: ["vbd", "qdisk"])
        func aGuestGetsAnotherImageWhileItWorks(_ kind: String) throws {
            let swap = try SwapLab(kind: kind)
            try swap.mark()
            var names: [String] = []
            try swap.load({ $0.offset = 8 << 20 }, until: { names.count == 4 }) {
                usleep(100_000)
                guard names.count < 4 else { return }
                let below: String = names.last ?? "disk.raw"
                let name = "over\(names.count).qcow2"
                let format = names.isEmpty ? "raw" : "qcow2"
                try swap.run("qemu-img create -q -u -f qcow2 -b \(swap.folder)/\(below) -F \(format) \(name) 16M")
                let result = try swap.control("swap", "--image qcow2:\(swap.folder)/\(name)")
                #expect(result.status == 0, "\(result.text) \(swap.lab.log.suffix(4000))")
                names.append(name)
            }
            try swap.check()
            #expect(try swap.served() == "\(swap.folder)/over3.qcow2")
            let target = "qcow2:\(swap.folder)/over3.qcow2"
            let path = kind == "vbd" ? "\(swap.folder)/over3.qcow2" : nil
            #expect(try swap.configured() == [target, path, target])
            // A killed worker's successor has the new one, also an upgraded one's.
            for _ in 0..<2 {
                #expect(kill(try swap.lab.worker(swap.disk), SIGKILL) == 0)
                try swap.mark()
                try swap.awaitQuiet()
            }
            #expect(try swap.control("upgrade").status == 0)
            try swap.check()
            try swap.finish()
        }

        @Test func aLargerImageIsSeenAsLarger() throws {
            let swap = try SwapLab()
            try swap.mark()
            try swap.run("cp --sparse=always disk.raw big.raw; truncate -s 24M big.raw")
            #expect(try swap.control("swap", "--image raw:\(swap.folder)/big.raw").status == 0, "\(swap.lab.log)")
            try eventually("the guest is told") { try swap.lab.key("sectors", of: swap.disk) == "49152" }
            try swap.check()
            try swap.finish()
        }

        /// Limits belong to the disk and not to the image that it has for now; what is wrong with new ones is found out before the
        /// guest waits.
        @Test func settingsOfTheDiskGoOn() throws {
            let swap = try SwapLab()
            try swap.mark()
            try swap.lab.store.write(
                "\(swap.disk.back)/xbb-options", "total-iops-sec=5000,on-enospc=stop,max-queues=2,block=512")
            try swap.run("cp disk.raw other.raw; cp disk.raw third.raw")
            func swaps(_ image: String) throws -> (status: Int32, text: String) {
                try swap.control("swap", "--image \(image)")
            }
            #expect(try swaps("raw:\(swap.folder)/other.raw").status == 0, "\(swap.lab.log.suffix(3000))")
            #expect(try swap.lab.key("xbb-options", of: swap.disk) == "total-iops-sec=5000,on-enospc=stop,max-queues=2")
            #expect(try swap.control("show").text.has("5000"))
            let refused = try swaps("raw,on-enospc=perhaps:\(swap.folder)/third.raw")
            #expect(refused.status == 64 && refused.text.has("on-enospc"), "\(refused)")
            #expect(try swaps("raw,read-bytes-sec=64M:\(swap.folder)/third.raw").status == 0)
            #expect(try swap.lab.key("xbb-options", of: swap.disk) == "read-bytes-sec=64M,on-enospc=stop,max-queues=2")
            try swap.check()
            try swap.finish()
        }

        /// Commands that prepare an image, its name, and what is said.
        static let refusals: [(prepare: String, image: String, words: String, reason: String)] = [
            ("truncate -s 8M small.raw", "raw:small.raw", "", "16384 sectors"),
            ("true", "raw:missing.raw", "", "No such file"),
            ("qemu-img create -q -f qcow2 a.qcow2 16M", "qcow:a.qcow2", "", "qcow"),
            ("truncate -s 16M plain", "qcow2:plain", "", "QFI"),
            ("mkdir d", "raw:d", "", "directory"),
            (
                "qemu-img create -q -u -f qcow2 -b b.qcow2 -F qcow2 a.qcow2 16M; "
                    + "qemu-img create -q -u -f qcow2 -b a.qcow2 -F qcow2 b.qcow2 16M", "qcow2:a.qcow2", "",
                "in the chain already"
            ),
            ("qemu-img create -q -u -f qcow2 -b /etc/passwd -F raw a.qcow2 16M", "qcow2:a.qcow2", "", "backing"),
            ("true", "raw:disk.raw", "", "is what the device is served from"),
            ("truncate -s 16M other.raw", "nosuch:other.raw", "", "nosuch"),
        ]

        @Test(arguments: refusals)
        func whatCannotBeServedLeavesTheOldImage(
            _ refusal: (prepare: String, image: String, words: String, reason: String)
        ) throws {
            let swap = try SwapLab()
            try swap.mark()
            try swap.run(refusal.prepare)
            let parts = refusal.image.split(separator: ":").map(String.init)
            let before = try swap.configured()
            // First as it is told, then past what xbbctl finds out beforehand.
            for force in ["", "--force"] where force.isEmpty || parts[1] != "disk.raw" {
                let result = try swap.control("swap", "--image \(parts[0]):\(swap.folder)/\(parts[1]) \(force)")
                #expect(result.status == 1 && result.text.has(refusal.reason), "\(result) \(swap.lab.log.suffix(3000))")
            }
            try swap.awaitQuiet()
            try swap.check()
            try swap.mark()
            #expect(try swap.served() == swap.image)
            #expect(try swap.configured() == before)
            #expect(try swap.lab.store.text("/local/domain/0/error/\(swap.disk.busPath)/error") == nil)
            try swap.finish()
        }

        @Test func aLockedImageIsRefused() throws {
            let swap = try SwapLab()
            try swap.run("truncate -s 16M other.raw")
            // All bytes that QEMU locks, as one who writes and shares with nobody.
            let file = open("\(swap.folder)/other.raw", O_RDWR)
            defer { close(file) }
            var lock = flock()
            lock.l_type = Int16(F_WRLCK)
            lock.l_whence = Int16(SEEK_SET)
            lock.l_start = 100
            lock.l_len = 200
            #expect(clinux_fcntl_pointer(file, clinux_F_OFD_SETLK, &lock) == 0)
            for force in ["", "--force"] {
                let result = try swap.control("swap", "--image raw:\(swap.folder)/other.raw \(force)")
                #expect(result.status == 1, "\(result)")
                #expect(result.text.has("locked") || result.text.has("in use"), "\(result)")
            }
            try swap.awaitQuiet()
            #expect(try swap.served() == swap.image)
            try swap.finish()
        }

        @Test func anImageBelowIsRefused() throws {
            let swap = try SwapLab()
            try swap.run("qemu-img create -q -u -f qcow2 -b \(swap.image) -F raw over.qcow2 16M")
            #expect(try swap.control("swap", "--image qcow2:\(swap.folder)/over.qcow2").status == 0, "\(swap.lab.log)")
            let result = try swap.control("swap", "--image raw:\(swap.image)")
            #expect(result.status == 1 && result.text.has("would be lost"), "\(result)")
            try swap.check()
            try swap.finish()
        }

        @Test func aRenamedImageIsServedAgainWhereTheNewOneFails() throws {
            let swap = try SwapLab()
            try swap.mark()
            try swap.run("truncate -s 1M small.raw; mv disk.raw moved.raw")
            #expect(try swap.control("swap", "--image raw:\(swap.folder)/small.raw").status == 1)
            try swap.awaitQuiet()
            try swap.check()
            // Its lock is held again.
            #expect((try? swap.run("qemu-io -f raw -c 'read 0 512' moved.raw")) == nil)
            try swap.finish()
        }

        // MARK: Kills

        /// Where the worker that is to serve the new image is killed.
        static let points = [
            "prepared", "called", "inherited", "opened", "mapped", "bound", "connected", "exchanged", "started",
        ]

        @Test(arguments: points)
        func aKilledWorkerLeavesOneImage(_ point: String) throws {
            let swap = try SwapLab()
            try swap.mark()
            try swap.run("qemu-img create -q -u -f qcow2 -b \(swap.image) -F raw over.qcow2 16M")
            // Workers of this xbbd are killed at that place, the first time that they come there; then another xbbd serves.
            swap.lab.killDaemon()
            try swap.lab.start(environment: ["XBB_KILL_POINT": point])
            try eventually("it is adopted") { (try? swap.lab.worker(swap.disk)) != nil }
            let client = try inBackground(
                { try swap.control("swap", "--image qcow2:\(swap.folder)/over.qcow2 --timeout 5") }
            ) { usleep(100_000) }
            swap.lab.killDaemon()
            try swap.lab.start()
            try swap.awaitQuiet()
            let served = try swap.served()
            let isNew = served == "\(swap.folder)/over.qcow2"
            #expect(isNew || served == swap.image, "\(served) \(client)")
            #expect(isNew || client.status != 0, "\(client)")
            let target = isNew ? "qcow2:\(swap.folder)/over.qcow2" : "raw:\(swap.image)"
            #expect(try swap.configured() == [target, served, target], "\(client)")
            try swap.goesOn()
            try swap.finish()
        }

        /// xbbd is killed so many ms after it was asked, alone or with every worker.
        static let moments = [0, 2, 5, 10, 20, 40, 80, 160]

        @Test(arguments: moments, [false, true])
        func aKilledXbbdLeavesOneImage(_ moment: Int, _ withWorkers: Bool) throws {
            let swap = try SwapLab()
            try swap.mark()
            try swap.run("qemu-img create -q -u -f qcow2 -b \(swap.image) -F raw over.qcow2 16M")
            var isKilled = false
            let client = try inBackground(
                { try swap.control("swap", "--image qcow2:\(swap.folder)/over.qcow2 --force --timeout 5") }
            ) {
                if isKilled { return }
                isKilled = true
                // xbbctl takes a while to begin.
                try eventually("it is asked") { swap.lab.log.has("pausing") }
                usleep(UInt32(moment * 1000))
                let daemon = swap.lab.daemonProcess
                let workers = try String(contentsOfFile: "/proc/\(daemon)/task/\(daemon)/children", encoding: .utf8)
                swap.lab.killDaemon()
                if withWorkers { for worker in workers.split(separator: " ") { kill(pid_t(worker) ?? 0, SIGKILL) } }
                try swap.lab.start()
            }
            try swap.awaitQuiet()
            let served = try swap.served()
            let isNew = served == "\(swap.folder)/over.qcow2"
            #expect(isNew || served == swap.image, "\(served) \(client)")
            let target = isNew ? "qcow2:\(swap.folder)/over.qcow2" : "raw:\(swap.image)"
            #expect(try swap.configured() == [target, served, target], "\(client)")
            try swap.goesOn()
            try swap.finish()
        }
    }
}
