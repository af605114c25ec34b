// SPDX-License-Identifier: BSD-2-Clause
// The keeper of a worker's XenStore connection, beside a worker that has been taken over.
import Base
import Blkfront
import CLinux
import Foundation
import StoreBroker
import Support
import TestSupport
import Testing
import Xen
import XenLoopback

extension EndToEnd {
    @Suite struct StoreKeeperTests {
        private func pair() throws -> (Descriptor, Descriptor) {
            var ends: [Int32] = [-1, -1]
            try #require(socketpair(AF_UNIX, Int32(SOCK_SEQPACKET.rawValue | SOCK_CLOEXEC.rawValue), 0, &ends) == 0)
            return (Descriptor(owning: ends[0]), Descriptor(owning: ends[1]))
        }

        /// All of XenStore, as text.
        private func contents(_ lab: Lab) throws -> String {
            try LibxlLab.shell("xenstore-ls -f", environment: ["XENSTORED_PATH": "\(lab.xen.directory)/xenstored.sock"])
        }

        /// A worker that was taken over cannot fill the file system of all journals.
        @Test func aJournalHasItsSpaceAndNoMore() throws {
            let lab = try Lab()
            let disk = try lab.prepare(51712)
            let path = "\(lab.directory)/space.journal"
            let (calls, keepersCalls) = try pair()
            let (events, keepersEvents) = try pair()
            let keeper = StoreKeeper(
                try lab.xen.platform().openStore(), backendPath: disk.back, calls: keepersCalls, events: keepersEvents,
                journal: JournalSpace(path, most: 1 << 20), log: Log(name: "keeper", level: .error))
            let thread = try startThread(named: "keeper") { keeper.run() }
            let store = BrokeredStore(calls: calls, events: events)
            func blocks() throws -> (size: Int, allocated: Int) {
                var status = stat()
                try #require(stat(path, &status) == 0)
                return (Int(status.st_size), Int(status.st_blocks) * 512)
            }
            try store.reserveJournal(40960)
            #expect(try blocks() == (40960, 40960))
            for bytes in [(1 << 20) + 1, 1 << 30, Int(UInt32.max)] {
                #expect(throws: OperationError.self) { try store.reserveJournal(bytes) }
                #expect(try blocks().size == 40960)
            }
            try store.reserveJournal(1 << 20)
            #expect(try blocks().size == 1 << 20)
            try store.reserveJournal(8192)
            #expect(try blocks().size == 8192)
            shutdown(calls.raw, Int32(SHUT_RDWR))
            shutdown(events.raw, Int32(SHUT_RDWR))
            pthread_join(thread, nil)
            lab.stop()
        }

        /// Several keys are one message, and are what they are one by one; also where they do not fit into a message.
        @Test func manyKeysAreReadAtOnce() throws {
            let lab = try Lab()
            let disk = try lab.prepare(51712)
            let (calls, keepersCalls) = try pair()
            let (events, keepersEvents) = try pair()
            let keeper = StoreKeeper(
                try lab.xen.platform().openStore(), backendPath: disk.back, calls: keepersCalls, events: keepersEvents,
                log: Log(name: "keeper", level: .error))
            let thread = try startThread(named: "keeper") { keeper.run() }
            let store = BrokeredStore(calls: calls, events: events)
            func compare(_ keys: [String], below path: String) throws {
                let found = try store.values(of: keys, below: path)
                #expect(found.count == keys.count)
                for (key, value) in zip(keys, found) {
                    let alone = Result { () throws(OperationError) in try store.read("\(path)/\(key)", in: .none) }
                    switch (value, alone) {
                    case (.success(let one), .success(let other)): #expect(one == other)
                    case (.failure(let one), .failure(let other)): #expect(one == other)
                    default: Issue.record("\(key): \(value), and alone \(alone)")
                    }
                }
            }
            try compare(["state", "none", "frontend-id", "params", "state"], below: disk.back)
            try compare(["state", "backend", "ring-ref"], below: disk.front)
            for index in 0..<6 {
                try lab.toolstack.write(
                    "\(disk.front)/long-\(index)", [UInt8](repeating: UInt8(65 + index), count: 2000), in: .none)
            }
            try compare((0..<6).map { "long-\($0)" } + ["state"], below: disk.front)
            try compare((0..<700).map { "name-\($0)" } + ["state"], below: disk.front)
            // One key that is not its own, and nothing is read.
            let other = "/local/domain/0/backend/vbd/9/51712"
            for (keys, path) in [(["state"], other), (["state", "deep/er"], disk.back), (["", "state"], disk.back)] {
                #expect(throws: OperationError.self) { try store.values(of: keys, below: path) }
            }
            shutdown(calls.raw, Int32(SHUT_RDWR))
            pthread_join(thread, nil)
            lab.stop()
        }

        @Test(arguments: [1, 2, 3] as [UInt64])
        func noiseChangesNothing(_ seed: UInt64) throws {
            let lab = try Lab()
            let disk = try lab.prepare(51712)
            let other = try lab.prepare(51728)
            let before = try contents(lab)
            let (calls, keepersCalls) = try pair()
            let (events, keepersEvents) = try pair()
            let log = Log(name: "keeper", level: .error)
            let keeper = StoreKeeper(
                try lab.xen.platform().openStore(), backendPath: disk.back, calls: keepersCalls, events: keepersEvents,
                log: log)
            let thread = try startThread(named: "keeper") { keeper.run() }
            var random = SplitMix64(seed: seed)
            let paths = [
                disk.front, other.back, "\(other.back)/state", "\(disk.back)/params", "/", "", "\(other.front)/state",
                "/local/domain/0/backend/vbd/1/1/state", "\(disk.back)/online", "\(disk.front)/state",
                "@introduceDomain",
            ]
            for _ in 0..<5000 {
                // Writes and removals are of what is not its own; the rest is anything.
                var message: [UInt8] = [UInt8.random(in: 0...11, using: &random), 0, 0, 0, 0]
                if Int.random(in: 0..<4, using: &random) == 0 { message[1] = UInt8.random(in: 0...3, using: &random) }
                message += Array((paths.randomElement(using: &random) ?? "").utf8) + [0]
                message += (0..<Int.random(in: 0..<40, using: &random)).map { _ in
                    UInt8.random(in: 0...255, using: &random)
                }
                if Int.random(in: 0..<8, using: &random) == 0 { message = message.shuffled(using: &random) }
                guard message.first != 0 || !message.isEmpty else { continue }
                try #require(send(calls.raw, message, message.count, Int32(MSG_NOSIGNAL)) == message.count)
                var reply = [UInt8](repeating: 0, count: 8192)
                try #require(recv(calls.raw, &reply, reply.count, 0) >= 4)
            }
            #expect(try contents(lab) == before)
            withExtendedLifetime(events) {}
            _ = shutdown(calls.raw, Int32(SHUT_RDWR))
            pthread_join(thread, nil)
            lab.stop()
        }

        /// A worker that takes no events does not make the keeper remember them one by one.
        @Test func eventsOfAWatchAreJoined() throws {
            let lab = try Lab()
            let disk = try lab.prepare(51712)
            let (calls, keepersCalls) = try pair()
            let (events, keepersEvents) = try pair()
            let keeper = StoreKeeper(
                try lab.xen.platform().openStore(), backendPath: disk.back, calls: keepersCalls, events: keepersEvents,
                log: Log(name: "keeper"))
            let thread = try startThread(named: "keeper") { keeper.run() }
            let store = BrokeredStore(calls: calls, events: events)
            try store.watch(disk.back, token: "backend")
            for value in 0..<20_000 { try disk.write("unknown", String(value)) }
            // It answers all the time, and a look at the node is due.
            #expect(try store.text("\(disk.back)/unknown") == "19999")
            var count = 0
            while let event = try store.nextWatchEvent() {
                #expect(event == XenStoreWatchEvent(path: disk.back, token: "backend"))
                count += 1
            }
            #expect((1..<2000).contains(count))
            _ = shutdown(calls.raw, Int32(SHUT_RDWR))
            pthread_join(thread, nil)
            lab.stop()
        }

        /// Without its keeper a worker has lost XenStore; its guest has not lost its disk.
        @Test func aDiskIsServedOnWithoutItsKeeper() throws {
            let lab = try Lab()
            let disk = try lab.attach()
            let device = try disk.connect()
            let keepers = try LibxlLab.shell("pgrep -x -P \(disk.worker.process) xbb-store")
            let keeper = try #require(Int32(keepers))
            #expect(kill(keeper, SIGTERM) == 0)
            #expect(try disk.load(device) { $0.count = 50 }.isGood)
            #expect(kill(keeper, SIGKILL) == 0)
            #expect(try disk.load(device) { $0.count = 50 }.isGood)
            try eventually("it is told", seconds: 30) { try disk.worker.show("xenstore") == "lost" }
            #expect(try disk.load(device) { $0.count = 50 }.isGood)
            lab.stop()
        }
    }
}
