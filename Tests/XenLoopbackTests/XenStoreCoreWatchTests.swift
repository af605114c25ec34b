// SPDX-License-Identifier: BSD-2-Clause
// The XenStore core without sockets: watches, domains that come and go, clients that do not read.
import TestSupport
import Testing
import Xen

@testable import XenLoopback

@Suite struct XenStoreCoreWatchTests {
    @Test func aWatchTellsOfItsPathAndAllBelowIt() throws {
        let store = TestCore()
        let client = try store.connect()
        let watcher = try store.connect()
        #expect(store.ask(watcher, .watch, "/a/b|token with spaces \u{7F}|") == "OK|")
        #expect(store.ask(watcher, .watch, "/a/b|token with spaces \u{7F}|") == "EEXIST")
        #expect(store.takeEvents(watcher) == ["/a/b|token with spaces \u{7F}|"])
        func events(after type: XenStoreRequestType, _ payload: String) -> [String] {
            #expect(store.ask(client, type, payload) == "OK|")
            return store.takeEvents(watcher).map { String($0.prefix { $0 != "|" }) }
        }
        #expect(events(after: .write, "/a|x").isEmpty)
        #expect(events(after: .write, "/a/bc|x").isEmpty)
        #expect(events(after: .write, "/a/b/c/d|x") == ["/a/b/c/d"])
        #expect(events(after: .write, "/a/b|x") == ["/a/b"])
        #expect(events(after: .write, "/a/b|x") == ["/a/b"])
        #expect(events(after: .makeDirectory, "/a/b|").isEmpty)
        #expect(events(after: .makeDirectory, "/a/b/e|") == ["/a/b/e"])
        #expect(events(after: .setPermissions, "/a/b|r0|") == ["/a/b"])
        #expect(events(after: .remove, "/a/b/none|").isEmpty)
        #expect(events(after: .remove, "/a/b/c|") == ["/a/b/c"])
        #expect(events(after: .remove, "/a|") == ["/a/b"])
        #expect(events(after: .write, "/a/b|y") == ["/a/b"])
        #expect(store.ask(watcher, .unwatch, "/a/b|other|") == "ENOENT")
        #expect(store.ask(watcher, .unwatch, "/a/b|token with spaces \u{7F}|") == "OK|")
        #expect(events(after: .write, "/a/b|z").isEmpty)
    }

    @Test func ownChangesAreToldBeforeTheAnswerAndTheFirstEventAfterIt() throws {
        let store = TestCore()
        let client = try store.connect()
        store.core.receive(message(XenStoreRequestType.watch.rawValue, "/a|t|")[...], from: client)
        store.core.receive(message(XenStoreRequestType.write.rawValue, "/b|x")[...], from: client)
        store.core.receive(message(XenStoreRequestType.write.rawValue, "/a/b|x")[...], from: client)
        var decoder = XenStoreMessageDecoder()
        decoder.append(store.core.bytesToSend(to: client, about: 1000)[...])
        var types: [UInt32] = []
        while let message = try decoder.next() { types.append(message.type) }
        #expect(types == [4, 15, 11, 15, 11])
    }

    @Test func relativeWatchesGetRelativeEvents() throws {
        let store = TestCore(domains: 4)
        let control = try store.connect()
        let guest = try store.connect(as: 4)
        #expect(store.ask(guest, .watch, "device|t|") == "OK|")
        #expect(store.ask(guest, .watch, "/local/domain/4/device|u|") == "OK|")
        #expect(store.takeEvents(guest) == ["device|t|", "/local/domain/4/device|u|"])
        #expect(store.ask(control, .write, "/local/domain/4/device/vbd/1|x") == "OK|")
        #expect(store.takeEvents(guest) == ["device/vbd/1|t|", "/local/domain/4/device/vbd/1|u|"])
        #expect(store.ask(guest, .write, "device/vbd/2|x") == "OK|")
        #expect(store.takeEvents(guest) == ["device/vbd/2|t|", "/local/domain/4/device/vbd/2|u|"])
        #expect(store.ask(guest, .unwatch, "/local/domain/4/device|t|") == "OK|")
        #expect(store.ask(guest, .unwatch, "device|u|") == "OK|")
    }

    @Test func eventsGoToWhoMayReadTheNodeBeforeOrAfterOrItsParent() throws {
        let store = TestCore(domains: 1)
        let control = try store.connect()
        let guest = try store.connect(as: 1)
        #expect(store.ask(control, .write, "/secret/node|x") == "OK|")
        #expect(store.ask(guest, .watch, "/secret|t|") == "OK|")
        #expect(store.takeEvents(guest) == ["/secret|t|"])
        func events(after type: XenStoreRequestType, _ payload: String) -> [String] {
            #expect(store.ask(control, type, payload) == "OK|")
            return store.takeEvents(guest)
        }
        #expect(events(after: .write, "/secret/node|y").isEmpty)
        #expect(events(after: .setPermissions, "/secret/node|n0|r1|") == ["/secret/node|t|"])
        #expect(events(after: .write, "/secret/node|z") == ["/secret/node|t|"])
        #expect(events(after: .write, "/secret/node/hidden|z") == ["/secret/node/hidden|t|"])
        #expect(events(after: .setPermissions, "/secret/node/hidden|n0|") == ["/secret/node/hidden|t|"])
        #expect(events(after: .setPermissions, "/secret/node|n0|") == ["/secret/node|t|"])
        #expect(events(after: .write, "/secret/node|z").isEmpty)
        #expect(events(after: .setPermissions, "/secret/node|r0|") == ["/secret/node|t|"])
        #expect(events(after: .remove, "/secret/node|") == ["/secret/node|t|"])
        #expect(events(after: .write, "/secret/node|z").isEmpty)
        #expect(events(after: .remove, "/secret|").isEmpty)
    }

    @Test func anEventThatDoesNotFitIsLeftOut() throws {
        let store = TestCore()
        let client = try store.connect()
        let token = String(repeating: "t", count: 4000)
        #expect(store.ask(client, .watch, "/a|\(token)|") == "OK|")
        #expect(store.takeEvents(client).count == 1)
        #expect(store.ask(client, .write, "/a/\(String(repeating: "b", count: 200))|") == "OK|")
        #expect(store.takeEvents(client).isEmpty)
        #expect(store.ask(client, .write, "/a/b|") == "OK|")
        #expect(store.takeEvents(client).count == 1)
    }

    @Test func domainsComeAndGo() throws {
        let store = TestCore()
        let control = try store.connect()
        #expect(store.ask(control, .watch, "@introduceDomain|i|") == "OK|")
        #expect(store.ask(control, .watch, "@releaseDomain|r|") == "OK|")
        #expect(store.takeEvents(control) == ["@introduceDomain|i|", "@releaseDomain|r|"])
        store.core.addDomain(1)
        store.core.addDomain(2)
        #expect(store.takeEvents(control) == ["@introduceDomain|i|", "@introduceDomain|i|"])
        let guest = try store.connect(as: 1)
        let other = try store.connect(as: 2)
        #expect(store.ask(other, .watch, "@releaseDomain|r|") == "OK|")
        #expect(store.ask(other, .watch, "/local/domain/2/data/shared|s|") == "OK|")
        #expect(store.ask(other, .write, "data/shared|x") == "OK|")
        #expect(store.ask(other, .setPermissions, "data/shared|n2|b1|") == "OK|")
        #expect(store.ask(guest, .write, "/local/domain/2/data/shared/mine|x") == "OK|")
        #expect(store.ask(guest, .setPermissions, "/local/domain/2/data/shared/mine|n1|r2|") == "OK|")
        #expect(store.ask(control, .write, "/mixed/below|x") == "OK|")
        #expect(store.ask(control, .setPermissions, "/mixed|n1|") == "OK|")
        #expect(store.ask(control, .setPermissions, "/|r1|") == "OK|")
        #expect(store.ask(control, .watch, "/local/domain/1/device|d|") == "OK|")
        _ = store.takeEvents(other)
        _ = store.takeEvents(control)

        store.core.removeDomain(1)
        #expect(store.takeEvents(control) == ["/local/domain/1/device|d|", "@releaseDomain|r|"])
        #expect(store.takeEvents(other) == ["/local/domain/2/data/shared/mine|s|"])
        #expect(!store.core.isConnected(guest))
        #expect(store.core.connect(as: 1) == nil)
        #expect(store.ask(control, .directory, "/local/domain|") == "0|2|")
        #expect(store.ask(control, .directory, "/local/domain/2/data/shared|") == "")
        #expect(store.ask(control, .getPermissions, "/local/domain/2/data/shared|") == "n2|")
        #expect(store.ask(control, .read, "/mixed/below|") == "ENOENT")
        #expect(store.ask(control, .getPermissions, "/|") == "r0|")
        #expect(store.core.nodes.nodeCount(ownedBy: 1, in: nil) == 0)
        #expect(store.ask(control, .isDomainIntroduced, "1|") == "F|")
        #expect(store.ask(control, .isDomainIntroduced, "2|") == "T|")
        #expect(store.ask(control, .isDomainIntroduced, "32752|") == "T|")
        store.core.removeDomain(1)
        store.core.removeDomain(0)
        #expect(store.takeEvents(control).isEmpty)
        store.core.addDomain(1)
        let next = try store.connect(as: 1)
        #expect(store.ask(next, .read, "/local/domain/2/data/shared|") == "EACCES")
    }

    @Test func introduceAndReleaseOverTheWireLeaveTheHomeAlone() throws {
        let store = TestCore()
        let control = try store.connect()
        #expect(store.ask(control, .watch, "@introduceDomain|i|") == "OK|")
        _ = store.takeEvents(control)
        #expect(store.ask(control, .write, "/local/domain/8/name|x") == "OK|")
        #expect(store.ask(control, .introduce, "8|100|5|") == "OK|")
        #expect(store.takeEvents(control) == ["@introduceDomain|i|"])
        #expect(store.ask(control, .introduce, "8|100|5|") == "OK|")
        #expect(store.takeEvents(control).isEmpty)
        _ = try store.connect(as: 8)
        #expect(store.ask(control, .release, "8|") == "OK|")
        #expect(store.ask(control, .release, "8|") == "ENOENT")
        #expect(store.ask(control, .read, "/local/domain/8/name|") == "x")
        #expect(store.core.connections.count == 1)
    }

    @Test func specialEventsAreForTheControlDomainUnlessItSaysOtherwise() throws {
        let store = TestCore(domains: 1)
        let control = try store.connect()
        let guest = try store.connect(as: 1)
        #expect(store.ask(guest, .watch, "@introduceDomain|i|") == "OK|")
        #expect(store.takeEvents(guest) == ["@introduceDomain|i|"])
        store.core.addDomain(2)
        #expect(store.takeEvents(guest).isEmpty)
        #expect(store.ask(guest, .setPermissions, "@introduceDomain|r1|") == "EACCES")
        #expect(store.ask(control, .setPermissions, "@introduceDomain|n0|r1|") == "OK|")
        #expect(store.ask(control, .getPermissions, "@introduceDomain|") == "n0|r1|")
        _ = store.takeEvents(guest)
        store.core.addDomain(3)
        #expect(store.takeEvents(guest) == ["@introduceDomain|i|"])
    }
}

@Suite struct XenStoreCoreFlowTests {
    @Test func requestsWaitWhileAnswersAreNotRead() throws {
        let store = TestCore()
        let client = try store.connect()
        #expect(store.ask(client, .write, "/v|\(String(repeating: "x", count: 4000))") == "OK|")
        let request = message(XenStoreRequestType.read.rawValue, "/v|")
        var sent = 0
        while store.core.wantsInput(from: client) {
            store.core.receive(request[...], from: client)
            sent += 1
        }
        #expect((10...30).contains(sent))
        // What comes nevertheless waits too.
        store.core.receive((request + request)[...], from: client)
        let waiting = try #require(store.core.connections[client]?.outbox.byteCount)
        #expect(waiting < (1 << 16) + 5000)
        #expect(store.drain(client).count == sent + 2)
        #expect(store.core.wantsInput(from: client))
    }

    @Test func aWatcherThatNeverReadsCostsABoundedAmountAndLosesItsConnection() throws {
        let store = TestCore()
        let writer = try store.connect()
        let lazy = try store.connect()
        let reader = try store.connect()
        #expect(store.ask(lazy, .watch, "/w|t|") == "OK|")
        #expect(store.ask(reader, .watch, "/w|t|") == "OK|")
        // The same node over and over is one event.
        for value in 0..<10000 { #expect(store.ask(writer, .write, "/w/same|\(value)") == "OK|") }
        let one = try #require(store.core.connections[lazy]?.outbox.byteCount)
        #expect(one < 500)
        var most = 0
        var writes = 0
        while store.core.isConnected(lazy) && writes < 100_000 {
            #expect(store.ask(writer, .write, "/w/\(writes)|x") == "OK|")
            #expect(store.ask(writer, .remove, "/w/\(writes)|") == "OK|")
            writes += 1
            most = max(most, store.core.connections[lazy]?.outbox.byteCount ?? 0)
            if writes % 100 == 0 { #expect(store.takeEvents(reader).count >= 100) }
        }
        #expect(!store.core.isConnected(lazy))
        #expect(most <= 1 << 20)
        #expect(store.core.takeTouched().contains(lazy))
        #expect(store.core.isConnected(reader))
    }

    @Test func aHeaderThatIsTooLongEndsTheConnectionAndWhatCameBeforeIsAnswered() throws {
        let store = TestCore()
        let client = try store.connect()
        let broken = message(XenStoreRequestType.read.rawValue, "/|")[..<12] + [1, 16, 0, 0]
        store.core.receive((message(XenStoreRequestType.write.rawValue, "/x|1") + broken)[...], from: client)
        #expect(!store.core.isConnected(client))
        let other = try store.connect()
        #expect(store.ask(other, .read, "/x|") == "1")
    }

    @Test(arguments: [1, 2, 3, 4] as [UInt64])
    func junkNeverHarms(seed: UInt64) throws {
        var random = SplitMix64(seed: seed)
        let store = TestCore(domains: 1)
        let control = try store.connect()
        for _ in 0..<1000 {
            let guest = try store.connect(as: 1)
            for _ in 0..<Int.random(in: 1...4, using: &random) where store.core.isConnected(guest) {
                let alphabet = Array("/|abdev01n@-TF\u{1}".utf8)
                let junk = (0..<Int.random(in: 0...40, using: &random)).map { _ in
                    Int.random(in: 0..<50, using: &random) == 0
                        ? UInt8.random(in: 0 ... .max, using: &random)
                        : alphabet.randomElement(using: &random).map { $0 == UInt8(ascii: "|") ? 0 : $0 } ?? 0
                }
                var bytes: [UInt8] = []
                XenStoreMessage(
                    type: .random(in: 0...24, using: &random), requestID: 0,
                    transactionID: .random(in: 0...3, using: &random), payload: junk
                ).serialize(into: &bytes)
                if Int.random(in: 0..<20, using: &random) == 0 {
                    bytes[Int.random(in: 0..<16, using: &random)] = .random(in: 0 ... .max, using: &random)
                }
                store.core.receive(bytes[...], from: guest)
                _ = store.drain(guest)
            }
            store.core.disconnect(guest)
        }
        #expect(store.ask(control, .read, "/local/domain/0/name|") == "Domain-0", "seed \(seed)")
        #expect(store.core.connections.count == 1)
        #expect(store.core.nodes.nodeCount(ownedBy: 1, in: nil) <= 1000)
        #expect(store.core.nodes.isConsistent, "seed \(seed)")
        store.core.removeDomain(1)
        #expect(store.core.nodes.nodeCount(ownedBy: 1, in: nil) == 0)
        #expect(store.core.nodes.isConsistent, "seed \(seed)")
    }
}
