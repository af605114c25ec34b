// SPDX-License-Identifier: BSD-2-Clause
// Disks that are exports of real NBD servers, in confined workers under a real xbbd.
import Blkfront
import CLinux
import Foundation
import TestSupport
import Testing

extension EndToEnd {
    @Suite struct NBDTests {
        /// What a load of a guest says, with all kinds of requests.
        private func load(_ device: FrontDevice, count: UInt64 = 200) throws -> LoadReport {
            let plan = mixedPlan { $0.count = count }
            return try LoadRun(device, plan).run()
        }

        private func write(_ device: FrontDevice, _ byte: UInt8, sector: UInt64 = 8) throws {
            try device.queues[0].withQueue { (queue) throws in
                #expect(try queue.status(.write, sector: sector, byteCount: 4096, fill: byte) == 0)
            }
        }

        private func read(_ device: FrontDevice, sector: UInt64 = 8) throws -> Set<UInt8> {
            try device.queues[0].withQueue { (queue) throws in
                let (status, bytes) = try queue.read(sector: sector, byteCount: 4096)
                #expect(status == 0)
                return Set(bytes)
            }
        }

        // MARK: Reaching a server

        @Test func aGuestReadsWhatItWrote() throws {
            let lab = try NBDLab()
            // Over a Unix socket and both families of addresses, from both servers.
            var devices: [FrontDevice] = []
            let places: [(NBDServer.Program, NBDServer.Place)] = [
                (.nbdkit, .unix), (.qemuNBD, .unix), (.qemuNBD, .tcp("127.0.0.1")), (.nbdkit, .tcp("::1")),
            ]
            var servers: [NBDServer] = []
            for (index, (program, place)) in places.enumerated() {
                let words: [String]
                if case .qemuNBD = program { words = ["-f", "raw", "IMAGE"] } else { words = ["file", "IMAGE"] }
                servers.append(try lab.serve(program, place, words))
                devices.append(try lab.disk(servers[index], "xvd\(["a", "b", "c", "d"][index])"))
            }
            for (index, device) in devices.enumerated() {
                let report = try load(device)
                #expect(report.isGood && report.verifiedBlocks > 0, "\(places[index]): \(report.text) \(lab.lab.log)")
                try write(device, 0x5a)
            }
            #expect(!lab.lab.log.has("ERROR"), "\(lab.lab.log)")
            for device in devices { try device.close() }
            try lab.finish()
            withExtendedLifetime(servers) {}
        }

        /// What was answered is with the server, and the server's storage has it.
        @Test func whatWasAnsweredIsWithTheServer() throws {
            let lab = try NBDLab()
            let server = try lab.serve(.nbdkit, .unix, ["file", "IMAGE"])
            let device = try lab.disk(server)
            try write(device, 0x5a, sector: 0)
            kill(try lab.worker(), SIGKILL)
            let file = try FileHandle(forReadingFrom: URL(fileURLWithPath: lab.image()))
            #expect(try file.read(upToCount: 4096)?.allSatisfy { $0 == 0x5a } == true)
            #expect(try read(device, sector: 0) == [0x5a])
            try lab.finish(device)
        }

        @Test func exportsHaveNames() throws {
            let lab = try NBDLab()
            let folder = "\(lab.directory)/exports"
            try LibxlLab.shell("mkdir '\(folder)'; truncate -s 16M '\(folder)/red' '\(folder)/a bü'")
            let kit = try lab.serve(
                .nbdkit, .unix,
                [
                    "--filter=exportname", "file", "dir=\(folder)", "exportname=red", "exportname=a bü",
                    "exportname-strict=true",
                ])
            let qemu = try lab.serve(.qemuNBD, .unix, ["-e", "16", "-x", "blue", "-f", "raw", "IMAGE"])
            try lab.attach(kit.uri(name: "a%20b%C3%BC"), "xvda")
            let device = try lab.connect("xvda")
            #expect(try load(device, count: 50).isGood)
            try lab.attach(qemu.uri(name: "blue"), "xvdb")
            let other = try lab.connect("xvdb")
            #expect(try load(other, count: 50).isGood)
            for (uri, name) in [(kit.uri(name: "green"), "green"), (qemu.uri(name: "red"), "red")] {
                let words = try lab.refusal(uri)
                #expect(words.has("the server refuses the export '\(name)'"), "\(words)")
            }
            try lab.finish(device, other)
        }

        /// Whatever is wrong with a place is said when the disk is attached.
        @Test func reasonsAreTold() throws {
            let lab = try NBDLab()
            let reading = try lab.serve(.nbdkit, .unix, ["-r", "file", "IMAGE"])
            for (uri, text) in [
                ("nbd:///x", "host"),
                ("http://server/x", "an export's URI begins with nbd://"),
                ("nbd://no-such-host.invalid/", "host 'no-such-host.invalid'"),
                ("nbd://127.0.0.1:9/", "cannot connect to nbd://127.0.0.1:9/: Connection refused"),
                ("nbd+unix:///?socket=\(lab.directory)/none", "No such file or directory"),
                ("nbd+unix:///?socket=\(lab.directory)/none&colour=red", "colour"),
                (reading.uri(), "the export is read-only: attach the disk read-only"),
            ] {
                let words = try lab.refusal(uri)
                #expect(words.has(text), "\(uri): \(words)")
            }
            lab.lab.stop()
        }

        @Test func readOnlyExportsAreRead() throws {
            let lab = try NBDLab()
            let server = try lab.serve(.nbdkit, .unix, ["-r", "pattern", "16M"])
            try lab.attach(server.uri(), "xvda", "--readonly")
            let device = try lab.connect()
            try device.queues[0].withQueue { (queue) throws in
                // Each eight bytes are their offset.
                let (status, bytes) = try queue.read(sector: 16, byteCount: 4096)
                #expect(status == 0 && Array(bytes[8..<16]) == [0, 0, 0, 0, 0, 0, 0x20, 8])
                #expect(try queue.status(.write, sector: 16, byteCount: 4096, fill: 1) != 0)
            }
            try lab.finish(device)
        }

        // MARK: What servers know

        @Test(arguments: ["structured", "simple"]) func bothFormsOfRepliesAreRead(_ form: String) throws {
            let lab = try NBDLab()
            let server = try lab.serve(.nbdkit, .unix, (form == "simple" ? ["--no-sr"] : []) + ["file", "IMAGE"])
            let device = try lab.disk(server)
            let report = try load(device)
            #expect(report.isGood && report.verifiedBlocks > 0, "\(report.text) \(lab.lab.log)")
            try lab.finish(device)
        }

        /// One connection for each queue, where the server promises that a flush of one is a flush of all.
        @Test(arguments: [true, false]) func eachQueueHasItsConnection(_ isAllowed: Bool) throws {
            let lab = try NBDLab()
            let mode = isAllowed ? "auto" : "disable"
            let server = try lab.serve(
                .nbdkit, .unix,
                ["--filter=log", "--filter=multi-conn", "file", "IMAGE", "multi-conn-mode=\(mode)"] + NBDServer.logging)
            let device = try lab.disk(server) { $0.queues = 2 }
            #expect(device.queues.count == 2)
            let report = try load(device, count: 400)
            #expect(report.isGood, "\(report.text) \(lab.lab.log)")
            let connections = Set(server.requests.filter { $0.has(" Write id=") }.compactMap(connection))
            #expect(isAllowed ? connections.count > 1 : connections.count == 1, "\(connections)")
            try lab.finish(device)
        }

        /// The number of a connection in a line of nbdkit's log filter.
        private func connection(_ line: String) -> String? {
            line.split(separator: " ").first { $0.hasPrefix("connection=") }.map(String.init)
        }

        /// A guest's barrier is a write with FUA, its discard a trim, its flush a flush.
        @Test func aServerIsAskedForWhatItKnows() throws {
            let lab = try NBDLab()
            let server = try lab.serve(.nbdkit, .unix, ["--filter=log", "file", "IMAGE"] + NBDServer.logging)
            let device = try lab.disk(server)
            try device.queues[0].withQueue { (queue) throws in
                #expect(try queue.status(.write, sector: 8, byteCount: 4096, fill: 1) == 0)
                #expect(try queue.status(.writeBarrier, sector: 16, byteCount: 4096, fill: 2) == 0)
                #expect(try queue.status(.flush, sector: 0, byteCount: 0) == 0)
                let id = try queue.slot()
                try queue.submitDiscard(id, sector: 32, sectorCount: 128)
                try queue.publish()
                #expect(try queue.finish(id) == 0)
            }
            for text in [
                "Write id=", "offset=0x1000 count=0x1000", "offset=0x2000 count=0x1000 fua=1", "Flush id=",
                "Trim id=", "offset=0x4000 count=0x10000",
            ] {
                #expect(server.requests.contains { $0.has(text) }, "\(text): \(server.requests)")
            }
            try lab.finish(device)
        }

        /// With detect-zeroes the server writes zeroes of which none are sent, and with unmap it may make holes.
        @Test func zeroesAreWrittenAsSuch() throws {
            let lab = try NBDLab()
            let server = try lab.serve(.nbdkit, .unix, ["--filter=log", "file", "IMAGE"] + NBDServer.logging)
            let device = try lab.disk(server)
            try device.queues[0].withQueue { (queue) throws in
                #expect(try queue.status(.write, sector: 0, byteCount: 65536, fill: 1) == 0)
                for (mode, sector, words) in [
                    ("off", 0, nil), ("on", 16, "offset=0x2000 count=0x1000 trim=0"),
                    ("unmap", 32, "offset=0x4000 count=0x1000 trim=1"),
                ] as [(String, UInt64, String?)] {
                    #expect(try lab.control("set \(lab.guest.id) xvda detect-zeroes=\(mode)").status == 0)
                    #expect(try queue.status(.write, sector: sector, byteCount: 4096, fill: 0) == 0)
                    #expect(
                        try queue.read(sector: sector, byteCount: 8192).bytes == [UInt8](repeating: 0, count: 4096)
                            + [UInt8](repeating: 1, count: 4096))
                    let zeroes = server.requests.filter { $0.has("Zero id=") }
                    #expect(words.map { words in zeroes.contains { $0.has(words) } } ?? zeroes.isEmpty, "\(zeroes)")
                }
            }
            try lab.finish(device)
        }

        /// A server without flush, FUA and trim: what it has not is not asked for.
        @Test func aServerThatKnowsLittleIsServed() throws {
            let lab = try NBDLab()
            let server = try lab.serve(
                .nbdkit, .unix,
                [
                    "eval", "get_size=echo 16M", "pread=head -c $3 /dev/zero", "pwrite=cat >/dev/null",
                    "can_write=exit 0",
                ])
            let device = try lab.disk(server)
            #expect(lab.lab.log.has("knows no flush"), "\(lab.lab.log)")
            try write(device, 1)
            #expect(try lab.key("feature-discard") != "1")
            try lab.finish(device)
        }

        @Test func limitsOfRequestsAreKept() throws {
            let lab = try NBDLab()
            let server = try lab.serve(
                .nbdkit, .unix,
                [
                    "--filter=blocksize-policy", "--filter=log", "file", "IMAGE", "blocksize-minimum=4096",
                    "blocksize-preferred=8192",
                    "blocksize-maximum=16384", "blocksize-error-policy=error",
                ] + NBDServer.logging)
            let device = try lab.disk(server)
            #expect(try lab.key("physical-sector-size") == "8192")
            let report = try load(device)
            #expect(report.isGood && report.verifiedBlocks > 0, "\(report.text) \(lab.lab.log)")
            // Parts of a block, too, for guests that count in sectors of 512 bytes.
            try device.queues[0].withQueue { (queue) throws in
                #expect(try queue.status(.write, sector: 11, byteCount: 1024, fill: 7) == 0)
                #expect(try queue.read(sector: 11, byteCount: 1024).bytes.allSatisfy { $0 == 7 })
            }
            for line in server.requests where line.has("Write id=") || line.has("Read id=") {
                guard let count = line.split(separator: " ").first(where: { $0.hasPrefix("count=0x") })?.dropFirst(8)
                else { continue }
                #expect((Int(count, radix: 16) ?? 0) <= 16384, "\(line)")
            }
            try lab.finish(device)
        }

        @Test func whatIsAllocatedIsListed() throws {
            let lab = try NBDLab()
            let server = try lab.serve(.nbdkit, .unix, ["file", "IMAGE"])
            try LibxlLab.shell("truncate -s 0 '\(lab.image())'; truncate -s 16M '\(lab.image())'")
            let device = try lab.disk(server)
            try device.queues[0].withQueue { (queue) throws in
                #expect(try queue.status(.write, sector: 2048, byteCount: 65536, fill: 1) == 0)
            }
            let list = try lab.control("changed \(lab.guest.id)/xvda")
            #expect(list.status == 0 && list.text.has("1048576"), "\(list.text)")
            try lab.finish(device)
        }

        @Test func anotherSizeIsSeenAfterARestart() throws {
            let lab = try NBDLab()
            let server = try lab.serve(.nbdkit, .unix, ["file", "IMAGE"])
            let device = try lab.disk(server)
            #expect(try lab.key("sectors") == "32768")
            for (bytes, sectors) in [("32M", "65536"), ("8M", "16384")] {
                server.end()
                try LibxlLab.shell("truncate -s \(bytes) '\(lab.image())'")
                try server.start()
                try eventually("the new size; log: \(lab.lab.log)") { try lab.key("sectors") == sectors }
            }
            try device.queues[0].withQueue { (queue) throws in
                #expect(try queue.status(.write, sector: 16384, byteCount: 4096, fill: 1) != 0)
                #expect(try queue.status(.write, sector: 0, byteCount: 4096, fill: 1) == 0)
            }
            try lab.finish(device)
        }

        @Test func errorsOfAServerReachTheGuest() throws {
            let lab = try NBDLab()
            let server = try lab.serve(
                .nbdkit, .unix,
                ["--filter=error", "file", "IMAGE", "error=EIO", "error-rate=100%", "error-file=BASE.bad"])
            let device = try lab.disk(server)
            let trigger = "\(lab.directory)/1.bad"
            try write(device, 1)
            _ = FileManager.default.createFile(atPath: trigger, contents: nil)
            try device.queues[0].withQueue { (queue) throws in
                #expect(try queue.status(.write, sector: 8, byteCount: 4096, fill: 2) == -1)
                #expect(try queue.read(sector: 8, byteCount: 4096).status == -1)
            }
            #expect(try lab.control("list").text.has("Input/output error"))
            unlink(trigger)
            #expect(try read(device) == [1])
            try lab.finish(device)
        }

        /// A server that is full: the guest gets an error, or waits, as it is configured.
        @Test func aFullServerIsLikeAFullFileSystem() throws {
            let lab = try NBDLab()
            let server = try lab.serve(
                .nbdkit, .unix,
                ["--filter=error", "file", "IMAGE", "error=ENOSPC", "error-pwrite-rate=100%", "error-file=BASE.full"])
            let device = try lab.disk(server, "xvda", "--option on-enospc=stop")
            let trigger = "\(lab.directory)/1.full"
            _ = FileManager.default.createFile(atPath: trigger, contents: nil)
            try device.queues[0].withQueue { (queue) throws in
                let id = try queue.slot()
                queue.buffer(of: id)[0..<4096].initializeMemory(as: UInt8.self, repeating: 3)
                try queue.submit(id, .write, sector: 8, byteCount: 4096)
                try queue.publish()
            }
            try eventually("it is told") { try lab.control("list").text.has("space") }
            unlink(trigger)
            #expect(try lab.control("resume \(lab.guest.id) xvda").status == 0)
            try device.queues[0].withQueue { (queue) throws in
                let completion = try queue.next()
                #expect(completion.status == 0)
                queue.release(completion.id)
            }
            #expect(try read(device) == [3])
            try lab.finish(device)
        }
    }
}
