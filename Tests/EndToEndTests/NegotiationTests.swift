// SPDX-License-Identifier: BSD-2-Clause
// Frontends and toolstacks that write nonsense, or nothing, or too much into XenStore.
import Blkfront
import CLinux
import Foundation
import Synchronization
import Testing
import Xen

extension EndToEnd {
    @Suite struct NegotiationTests {
        /// A device whose keys are right but for `changes`, published in state 3.
        private func publish(_ disk: Disk, _ changes: [String: String?]) throws -> FrontDevice {
            let device = try disk.device()
            try device.findBackend()
            try device.start()
            try device.awaitInitWait()
            try device.makeQueues()
            try HostileFrontend(device).publish(changing: changes)
            try device.setState(.initialised)
            return device
        }

        /// Goes to Closed and waits until the backend has followed.
        private func leave(_ device: FrontDevice, _ disk: Disk) throws {
            try device.setState(.closing)
            try device.setState(.closed)
            try disk.awaitState(6)
            device.dismantle()
        }

        @Test func everyBadKeyIsNamedAndTheNextConnectionWorks() throws {
            let lab = try Lab()
            let disk = try lab.attach()
            let huge = String(repeating: "9", count: 2000)
            let cases: [(changes: [String: String?], key: String, rule: String)] = [
                (["event-channel": nil], "event-channel", "mandatory"),
                (["event-channel": "0"], "event-channel", "port 0"),
                (["event-channel": "131072"], "event-channel", "at most"),
                (["event-channel": "junk"], "event-channel", "decimal"),
                (["event-channel": huge], "event-channel", "expected"),
                (["event-channel": "\u{1b}[2J\n"], "event-channel", "decimal"),
                (["event-channel": "100000"], "", ""),
                (["ring-ref": nil], "ring-ref", "mandatory"),
                (["ring-ref": "-1"], "ring-ref", "decimal"),
                (["ring-ref": "4294967296"], "ring-ref", "at most"),
                (["ring-ref": "99999999"], "", ""),
                (["ring-ref": ""], "ring-ref", "decimal"),
                (["ring-page-order": "6"], "ring-page-order", "at most 32 pages"),
                (["ring-page-order": "32"], "ring-page-order", "at most 32 pages"),
                (["ring-page-order": "99"], "ring-page-order", "at most 32 pages"),
                (["ring-page-order": "4294967296"], "ring-page-order", "expected"),
                (["ring-page-order": huge], "ring-page-order", "expected"),
                (["num-ring-pages": "3"], "num-ring-pages", "power of two"),
                (["num-ring-pages": "0"], "num-ring-pages", "power of two"),
                (["num-ring-pages": "64"], "num-ring-pages", "at most 32 pages"),
                (["ring-page-order": "1", "num-ring-pages": "4"], "num-ring-pages", "ring-page-order"),
                (["ring-page-order": "1", "ring-ref0": "8", "ring-ref1": "8"], "ring-ref1", "of its own"),
                (["protocol": "sparc-abi"], "protocol", "x86_64-abi"),
                (["protocol": ""], "protocol", "x86_64-abi"),
                (["multi-queue-num-queues": "0"], "multi-queue-num-queues", "at least 1"),
                (["multi-queue-num-queues": "1000000000"], "multi-queue-num-queues", "at most"),
                (["feature-persistent": "perhaps"], "feature-persistent", "decimal"),
            ]
            for (changes, key, rule) in cases {
                try? lab.toolstack.remove(
                    "/local/domain/0/error/backend/vbd/\(lab.guest.id)/\(disk.number)/error", in: .none)
                let device = try publish(disk, changes)
                try disk.awaitError(key)
                let error = try #require(try disk.error())
                #expect(error.has(rule) && error.utf8.count <= 512, "\(changes): \(error)")
                #expect(error.utf8.allSatisfy { $0 >= 0x20 && $0 < 0x7f }, "\(error)")
                #expect(try disk.worker.ask("ping")["pid"] != nil)
                try HostileFrontend(device).publish(
                    changing: [
                        "ring-page-order": nil, "num-ring-pages": nil, "multi-queue-num-queues": nil, "ring-ref1": nil,
                        "ring-ref0": nil,
                    ])
                try leave(device, disk)
            }
            let device = try disk.connect()
            let report = try disk.load(device) { $0.count = 100 }
            #expect(report.isGood, "\(report.text)")
            try device.close()
            try lab.finish()
        }

        @Test func keysThatChangeDuringNegotiationHarmNobody() throws {
            let lab = try Lab()
            let disk = try lab.attach()
            for round in 0..<20 {
                let device = try publish(disk, round % 2 == 0 ? [:] : ["ring-ref": "0"])
                let hostile = HostileFrontend(device, seed: UInt64(round))
                for value in ["1", "0", "99999999", "x", "", "7"] {
                    try hostile.write("ring-ref", value)
                    try hostile.write("event-channel", value)
                    try hostile.write("protocol", value)
                    try hostile.write("ring-page-order", value)
                }
                #expect(try disk.worker.ask("ping")["pid"] != nil)
                for key in ["ring-page-order", "protocol"] { try hostile.remove(key) }
                try leave(device, disk)
            }
            let device = try disk.connect()
            let report = try disk.load(device) { $0.count = 100 }
            #expect(report.isGood, "\(report.text)")
            try device.close()
            try lab.finish()
        }

        @Test func aFrontendThatNeverAnswersCanBeDetached() throws {
            let lab = try Lab()
            let disk = try lab.attach()
            try disk.awaitState(2)
            #expect(try disk.worker.show("stage") != "connected")
            try lab.finish()
        }

        @Test(arguments: [false, true])
        func aStateThatTogglesEndlesslyCostsNothingAndIsForgiven(loaded: Bool) throws {
            let lab = try Lab()
            let disk = try lab.attach()
            let device = try disk.connect()
            let hostile = HostileFrontend(device, seed: 5)
            if loaded {
                // Requests are on their way while the state says anything.
                try device.queues[0].withQueue { (queue) throws in
                    for _ in 0..<16 { try queue.submit(try queue.slot(), .read, sector: 0, byteCount: 45056) }
                    try queue.publish()
                }
            }
            _ = try hostile.writeRandomStates(20_000)
            #expect(try disk.worker.ask("ping")["pid"] != nil)
            let memory = try disk.worker.descriptors()
            #expect(memory < 100, "\(memory) descriptors")
            try hostile.writeState(5)
            try hostile.writeState(6)
            try disk.awaitState(6)
            device.dismantle()
            #expect(device.leakedGrants.isEmpty)
            let again = try disk.connect()
            let report = try disk.load(again) { $0.count = 100 }
            #expect(report.isGood, "\(report.text)")
            try again.close()
            try lab.finish()
        }

        /// Asks a worker, which may have ended.
        private static func isAnswered(_ command: String, _ socket: String) -> Bool {
            let descriptor = clinux_unix_connect(socket, Int32(SOCK_STREAM.rawValue))
            guard descriptor >= 0 else {
                usleep(1000)
                return false
            }
            defer { close(descriptor) }
            let line = Array("\(command)\n".utf8)
            guard send(descriptor, line, line.count, Int32(MSG_NOSIGNAL)) == line.count else { return false }
            var byte: UInt8 = 0
            while read(descriptor, &byte, 1) == 1 { if byte == UInt8(ascii: "\n") { return true } }
            return false
        }

        /// Who asks for statistics, and for all else of a disk, meets it in every state between open and gone (CVE-2026-100082).
        @Test func statisticsAreReadWhileTheDiskIsTakenDown() throws {
            let lab = try Lab()
            let disk = try lab.attach()
            let (worker, socket) = (disk.worker, disk.worker.socketPath)
            let done = Mutex(false)
            let answers = Mutex(0)
            var threads: [Thread] = []
            for command in ["stats", "stats", "show", "ping"] {
                let thread = Thread {
                    while !done.withLock({ $0 }) {
                        if Self.isAnswered(command, socket) { answers.withLock { $0 += 1 } }
                    }
                }
                thread.start()
                threads.append(thread)
            }
            defer { done.withLock { $0 = true } }
            for round in 0..<12 {
                let before = answers.withLock { $0 }
                let device = try disk.connect { $0.queues = 1 }
                try device.queues[0].withQueue { (queue) throws in
                    for _ in 0..<8 { try queue.submit(try queue.slot(), .read, sector: 0, byteCount: 45056) }
                    try queue.publish()
                }
                if round % 2 == 0 { try eventually("an answer") { answers.withLock { $0 } > before } }
                try device.setState(.closing)
                try device.setState(.closed)
                try disk.awaitState(6)
                device.dismantle()
                #expect(device.leakedGrants.isEmpty)
            }
            let last = try disk.connect()
            try disk.requestDetach()
            try last.close()
            #expect(try worker.awaitExit() == .exited(0), "\(worker.log.suffix(2000))")
            done.withLock { $0 = true }
            try eventually("the end of those who ask") { threads.allSatisfy(\.isFinished) }
            #expect(answers.withLock { $0 } > 12)
            try lab.finish()
        }

        @Test func aFrontendNodeThatIsRemovedEndsTheConnection() throws {
            let lab = try Lab()
            let disk = try lab.attach()
            let device = try disk.connect()
            try device.queues[0].withQueue { (queue) throws in
                for _ in 0..<8 { try queue.submit(try queue.slot(), .read, sector: 0, byteCount: 45056) }
                try queue.publish()
            }
            try lab.toolstack.remove(disk.front, in: .none)
            try disk.awaitState(6)
            device.dismantle()
            #expect(device.leakedGrants.isEmpty)
            try lab.finish()
        }

        @Test func aBackendNodeThatIsRemovedEndsTheWorker() throws {
            let lab = try Lab()
            let disk = try lab.attach()
            let device = try disk.connect()
            try lab.toolstack.remove(disk.back, in: .none)
            #expect(try disk.worker.awaitExit() == .exited(0))
            device.dismantle()
            #expect(device.leakedGrants.isEmpty)
            try lab.finish()
        }

        @Test func aGuestThatStaysConnectedCannotHoldTheDevice() throws {
            let lab = try Lab()
            let disk = try lab.attach()
            let other = try lab.attach(51728)
            let device = try disk.connect()
            try disk.requestDetach()
            usleep(200_000)
            #expect(try disk.worker.ask("ping")["pid"] != nil)
            #expect(try disk.key("state") == "5")
            try device.queues[0].withQueue { (queue) throws in
                #expect(try queue.status(.read, sector: 0, byteCount: 4096) == 0, "what still comes is served")
            }
            let second = try other.connect()
            #expect(try other.load(second) { $0.count = 100 }.isGood)
            try second.close()
            // Forced removal: libxl takes away both nodes, the frontend's first.
            try lab.toolstack.remove(disk.front, in: .none)
            #expect(try disk.worker.awaitExit() == .exited(0))
            #expect(try disk.key("state") == "6")
            device.dismantle()
            #expect(device.leakedGrants.isEmpty)
            try lab.finish()
        }

        @Test func theDeathOfAGuestDuringIOEndsInSilence() throws {
            let lab = try Lab()
            let disk = try lab.attach()
            let device = try disk.connect { $0.ringPages = 4 }
            try device.queues[0].withQueue { (queue) throws in
                for _ in 0..<32 { try queue.submit(try queue.slot(), .write, sector: 0, byteCount: 45056) }
                try queue.publish()
            }
            try lab.control.destroyDomain(lab.guest.id)
            #expect(try disk.worker.ask("ping")["pid"] != nil)
            try disk.requestDetach()
            // A domain's nodes may go with it.
            try? lab.toolstack.remove(disk.front, in: .none)
            #expect(try disk.worker.awaitExit() == .exited(0))
            #expect(disk.log.utf8.count < 65536)
            let left = try lab.control.domains().filter { $0.id == lab.guest.id }
            #expect(left.allSatisfy { $0.mappedGrants == 0 && $0.boundPorts == 0 }, "\(left)")
            lab.stop()
        }

        @Test func twentyConnectionsLeaveNothingBehind() throws {
            let lab = try Lab()
            let disk = try lab.attach()
            var descriptors: [Int] = []
            for round in 0..<20 {
                let device = try disk.connect { $0.ringPages = 1 << (round % 6) }
                let report = try disk.load(device) {
                    $0.count = 20
                    $0.size = 1 << 20
                }
                #expect(report.isGood, "\(report.text)")
                try device.close()
                try disk.awaitState(6)
                descriptors.append(try disk.worker.descriptors())
                let left = try #require(try lab.control.domain(lab.guest.id))
                #expect(left.mappedGrants == 0 && left.grantedReferences == 0 && left.boundPorts == 0)
            }
            // One descriptor stays for each size of ring; after a round of all sizes nothing is added.
            #expect(descriptors.last == descriptors[7], "\(descriptors)")
            try lab.finish()
        }
    }
}
