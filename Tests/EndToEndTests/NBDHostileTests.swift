// SPDX-License-Identifier: BSD-2-Clause
// Servers that break the protocol: words for the operator, nothing foreign for the guest, and all other disks go on.
import Blkfront
import CLinux
import Foundation
import Testing

extension EndToEnd {
    @Suite struct NBDHostileTests {
        /// A rule that a server breaks, and what is said of it.
        struct Breach: CustomTestStringConvertible, Sendable {
            var mode: String
            var words: String
            init(_ mode: String, _ words: String) { (self.mode, self.words) = (mode, words) }
            var testDescription: String { mode }
        }

        private static let handshakes = [
            Breach(
                "close-at-once",
                "the server closed the connection in the middle of its greeting: it may be no NBD server, or allow"),
            Breach("half-a-greeting", "the server closed the connection in the middle of its greeting"),
            Breach("silent", "did not answer within"),
            Breach("garbage", "the server does not speak NBD"),
            Breach("another-protocol", "the server does not speak NBD"),
            Breach("close-after-greeting", "the server closed the connection"),
            Breach("close-at-option", "the server closed the connection"),
            Breach("silent-option", "did not answer within"),
            Breach("another-option", "the NBD server breaks the protocol: it answers option 99"),
            Breach("large-answer", "the NBD server breaks the protocol: its reply to an option has 4294967295 bytes"),
            Breach("endless-answers", "the NBD server breaks the protocol: "),
            Breach("tls-without-asking", "the server demands TLS"),
            Breach("close-at-go", "the server closed the connection"),
            Breach("size-zero", "the export has 0 bytes, less than a sector"),
            Breach("size-without-bounds", "the NBD server breaks the protocol: the export's size"),
            Breach("no-size", "the NBD server breaks the protocol: it does not say how large the export is"),
            Breach("blocks-of-3", "the NBD server breaks the protocol: its minimum block size of 3"),
            Breach("bytes-after-go", "the NBD server breaks the protocol: it sends 64 bytes that nobody asked for"),
        ]

        /// All at once: none of them makes xbbd or another disk wait.
        @Test func eachStepOfTheHandshakeMayGoWrong() throws {
            let lab = try NBDLab()
            let good = try lab.serve(.nbdkit, .unix, ["file", "IMAGE"])
            let device = try lab.disk(good)
            var servers: [(number: Int, server: NBDServer, breach: Breach)] = []
            for (index, breach) in Self.handshakes.enumerated() {
                let server = try lab.serve(.hostile(breach.mode), .unix, [])
                let number = 51728 + 16 * index
                let result = try lab.control(
                    "attach \(lab.guest.id) \(number) 'nbd:\(server.uri())' --no-wait --option connect-timeout=2")
                #expect(result.status == 0, "\(result.text)")
                servers.append((number, server, breach))
            }
            for entry in servers {
                let path = "/local/domain/0/error/backend/vbd/\(lab.guest.id)/\(entry.number)/error"
                try eventually("what is said of \(entry.breach.mode)") { try lab.lab.store.text(path) != nil }
                let words = try lab.lab.store.text(path) ?? ""
                #expect(words.has(entry.breach.words), "\(entry.breach.mode): \(words)")
            }
            #expect(try LoadRun(device, mixedPlan { $0.count = 50 }).run().isGood)
            try device.close()
            #expect(!lab.lab.log.has("Fatal error"), "\(lab.lab.log)")
            lab.lab.stop()
        }

        /// What goes wrong on one connection is not in the way of the others, neither at first nor after a worker's death.
        @Test(arguments: [
            ("first-hangs-at-go", "of 5 connections 4 are used: the server did not answer within 2 s"),
            ("first-is-refused-at-go", "of 5 connections 4 are used: "),
        ])
        func oneConnectionMayGoWrong(_ mode: String, _ words: String) throws {
            let lab = try NBDLab()
            let server = try lab.serve(.hostile(mode), .unix, [])
            let device = try lab.disk(server) { $0.queues = 2 }
            try lab.awaitLog(words)
            func serves() throws {
                #expect(
                    try LoadRun(device, mixedPlan { ($0.count, $0.discardEvery, $0.barrierEvery) = (50, 0, 0) }).run()
                        .isGood)
            }
            try serves()
            server.end(SIGKILL)
            try server.start()
            try lab.awaitLog(words, times: 2)
            try serves()
            try lab.finish(device)
        }

        private static let reads = [
            Breach("bad-magic", "the NBD server breaks the protocol: a reply begins with 0xffffffff"),
            Breach("wrong-cookie", "it answers a request that was not sent"),
            Breach("read-without-data", "it answers a read with success before all of it has arrived"),
            Breach("half-of-a-read", "it answers a read with success before all of it has arrived"),
            Breach("half-and-close", "the server closed the connection"),
            Breach("data-twice", "bytes of a read arrive twice"),
            Breach("data-before", "a chunk is about bytes outside of the request"),
            Breach("data-behind", "a chunk is about bytes outside of the request"),
            Breach("hole-of-4-GiB", "a chunk is about bytes outside of the request"),
            Breach("simple-read", "it answers a read with a simple reply"),
            Breach("error-without-error", "an error chunk has no error"),
            Breach("long-error", "a chunk of type 32769 has 65535 bytes"),
            Breach("unknown-chunk", "a chunk of type 77 answers a read"),
            Breach("closes", "the server closed the connection"),
        ]

        /// The guest waits while a server answers wrongly, sees nothing of that, and has its data when the server is in order.
        @Test func aReadThatIsAnsweredWronglyIsDoneAgain() throws {
            let lab = try NBDLab()
            let good = try lab.serve(.nbdkit, .unix, ["file", "IMAGE"])
            let neighbour = try lab.disk(good)
            for (index, breach) in Self.reads.enumerated() {
                let server = try lab.serve(.hostile(breach.mode), .unix, [])
                let number = UInt32(51728 + 16 * index)
                try lab.attach(server.uri(), String(number))
                let device = try lab.lab.connect(LibxlDisk(guest: lab.guest.id, number: number, params: ""), lab.guest)
                try device.queues[0].withQueue { (queue) throws in
                    let id = try queue.slot()
                    queue.buffer(of: id)[0..<8192].initializeMemory(as: UInt8.self, repeating: 0xa5)
                    try queue.submit(id, .read, sector: 64, byteCount: 8192)
                    try queue.publish()
                }
                try eventually("what is said of \(breach.mode); log: \(lab.lab.log.suffix(3000))") {
                    lab.lab.log.split(separator: "\n").contains {
                        $0.contains(server.socket) && $0.contains(breach.words)
                    }
                }
                server.cure()
                try device.queues[0].withQueue { (queue) throws in
                    let completion = try queue.next()
                    #expect(completion.status == 0, "\(breach.mode)")
                    #expect(queue.buffer(of: completion.id)[0..<8192].allSatisfy { $0 == 0x5c }, "\(breach.mode)")
                    queue.release(completion.id)
                }
                try device.close()
                #expect(try lab.control("detach \(lab.guest.id) \(number)").status == 0)
            }
            #expect(try LoadRun(neighbour, mixedPlan { $0.count = 50 }).run().isGood)
            try lab.finish(neighbour)
        }

        /// An answer that comes twice: the first one counts, and the connection is given up.
        @Test func aSecondAnswerEndsTheConnection() throws {
            let lab = try NBDLab()
            let server = try lab.serve(.hostile("answer-twice"), .unix, [])
            let device = try lab.disk(server)
            try device.queues[0].withQueue { (queue) throws in
                let (status, bytes) = try queue.read(sector: 64, byteCount: 4096)
                #expect(status == 0 && bytes.allSatisfy { $0 == 0x5c })
            }
            try lab.awaitLog("it answers a request that was not sent, or a second time")
            server.cure()
            #expect(
                try LoadRun(device, mixedPlan { ($0.count, $0.discardEvery, $0.barrierEvery) = (50, 0, 0) }).run()
                    .isGood)
            try lab.finish(device)
        }

        /// One that never answers keeps its own disk waiting, which can be taken away.
        @Test func oneThatNeverAnswersIsTakenAway() throws {
            let lab = try NBDLab(options: ["--stall-time", "1"])
            let server = try lab.serve(.hostile("never"), .unix, [])
            let device = try lab.disk(server)
            try device.queues[0].withQueue { (queue) throws in
                try queue.submit(try queue.slot(), .read, sector: 64, byteCount: 4096)
                try queue.publish()
            }
            try eventually("it is told") { try lab.control("list").text.has("stalled") }
            #expect(try lab.control("detach \(lab.guest.id) xvda --force").status == 0)
            device.dismantle()
            try lab.finish()
        }

        /// An export that is smaller than it was when the connection is made anew.
        @Test func anExportThatShrinksCutsTheDiskOff() throws {
            let lab = try NBDLab()
            let server = try lab.serve(.hostile("shrinks"), .unix, [])
            let device = try lab.disk(server)
            #expect(try lab.key("sectors") == "32768")
            server.shrink()
            server.end(SIGKILL)
            try server.start()
            try eventually("the smaller size; \(lab.lab.log)") { try lab.key("sectors") == "16384" }
            try device.queues[0].withQueue { (queue) throws in
                #expect(try queue.status(.write, sector: 16384, byteCount: 4096, fill: 1) != 0)
                #expect(try queue.status(.write, sector: 0, byteCount: 4096, fill: 1) == 0)
            }
            try lab.finish(device)
        }
    }
}
