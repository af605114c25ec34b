// SPDX-License-Identifier: BSD-2-Clause
// The parts of the XenStore core that stand alone: bytes, paths, permissions, the queue of a client.
import TestSupport
import Testing
import Xen

@testable import XenLoopback

@Suite struct XenStoreWireTests {
    @Test(arguments: [1, 2, 3] as [UInt64])
    func messagesComeOutAsTheyWentInHoweverTheBytesAreCut(seed: UInt64) throws {
        var random = SplitMix64(seed: seed)
        var sent: [XenStoreMessage] = []
        var stream: [UInt8] = []
        for _ in 0..<200 {
            let length = Bool.random(using: &random) ? Int.random(in: 0...20, using: &random) : 4096
            let message = XenStoreMessage(
                type: .random(in: 0...30, using: &random), requestID: .random(in: 0 ... .max, using: &random),
                transactionID: .random(in: 0 ... .max, using: &random),
                payload: (0..<length).map { _ in .random(in: 0 ... .max, using: &random) })
            sent.append(message)
            message.serialize(into: &stream)
        }
        var decoder = XenStoreMessageDecoder()
        var received: [XenStoreMessage] = []
        var rest = stream[...]
        while !rest.isEmpty {
            let count = min(rest.count, .random(in: 1...6000, using: &random))
            decoder.append(rest.prefix(count))
            rest = rest.dropFirst(count)
            while let message = try decoder.next() { received.append(message) }
        }
        #expect(received == sent, "seed \(seed)")
        #expect(decoder.byteCount == 0)
    }

    @Test func aHeaderIsFourWordsAsInTheCStruct() {
        var bytes: [UInt8] = []
        XenStoreMessage(type: 2, requestID: 0x0102_0304, transactionID: 0xFFFF_FFFE, payload: [9])
            .serialize(into: &bytes)
        #expect(bytes == [2, 0, 0, 0, 4, 3, 2, 1, 0xFE, 0xFF, 0xFF, 0xFF, 1, 0, 0, 0, 9])
    }

    @Test(arguments: [4097, 1 << 31, .max] as [UInt32])
    func aLongerPayloadThanAllowedIsRefusedWithTheHeader(length: UInt32) {
        var decoder = XenStoreMessageDecoder()
        var bytes = [UInt8](repeating: 0, count: 12)
        for shift in stride(from: UInt32(0), to: 32, by: 8) { bytes.append(UInt8(truncatingIfNeeded: length >> shift)) }
        decoder.append(bytes[...])
        #expect(throws: XenStorePayloadTooLong.self) { try decoder.next() }
    }

    @Test func stringsEndWithNULAndNumbersAreDigits() {
        #expect(xenStoreStrings(wire("a||bc|rest")[...]).map(Array.init) == [wire("a"), [], wire("bc")])
        #expect(xenStoreStrings([]).isEmpty)
        #expect(xenStoreNumber(wire("65535")[...], as: UInt16.self) == 65535)
        for bad in ["", "65536", "-1", "+1", " 1", "1 ", "0x1", "a", "99999999999999999999"] {
            #expect(xenStoreNumber(wire(bad)[...], as: UInt16.self) == nil)
        }
    }
}

@Suite struct XenStorePathTests {
    private func parse(_ text: String, limit: Int = .max, special: Bool = false) throws -> String {
        try XenStorePath(wire(text)[...], from: 5, limit: limit, allowSpecial: special).description
    }

    @Test func goodPathsAreTakenAndRelativeOnesStartAtHome() throws {
        for good in ["/", "/a", "/a/b-c_d@E/9"] { #expect(try parse(good) == good) }
        #expect(try parse("device/vbd") == "/local/domain/5/device/vbd")
        #expect(try parse("@releaseDomain", special: true) == "@releaseDomain")
        #expect(try parse("/" + String(repeating: "a", count: 3071)).utf8.count == 3072)
    }

    @Test(arguments: [
        "", "//", "/a/", "/a//b", "a/", "a//b", "/a b", "/a.b", "/a:b", "/ä", "/a\n", "@introduceDomain", "/a|b",
        "/" + String(repeating: "a", count: 3072), String(repeating: "a", count: 3060),
    ])
    func badPathsAreInvalid(path: String) {
        #expect(throws: XenStoreFailure.invalid) { try parse(path) }
    }

    @Test func theLimitLeavesOutAHome() throws {
        let long = String(repeating: "a", count: 2048)
        #expect(try parse("/local/domain/7/" + long, limit: 2048).utf8.count == 2064)
        #expect(try parse(long, limit: 2048).utf8.count == 2064)
        #expect(throws: XenStoreFailure.invalid) { try parse("/" + long, limit: 2048) }
        #expect(throws: XenStoreFailure.invalid) { try parse(long + "a", limit: 2048) }
        #expect(throws: XenStoreFailure.invalid) { try parse("/local/domain/123456/" + long, limit: 2048) }
        #expect(throws: XenStoreFailure.invalid) { try parse("/local/domain/x/" + long, limit: 2048) }
    }

    @Test func parentsNamesAndChildren() throws {
        func path(_ text: String) throws -> XenStorePath {
            try XenStorePath(wire(text)[...], from: 0, limit: .max, allowSpecial: true)
        }
        #expect(try path("/a/b").parent == path("/a"))
        #expect(try path("/a").parent == .root)
        #expect(XenStorePath.root.parent == .root)
        #expect(XenStorePath.releaseDomain.parent == .root)
        #expect(try path("/a/bc").name == "bc")
        #expect(try path("/a").child("b") == path("/a/b"))
        #expect(try XenStorePath.root.child("b") == path("/b"))
        #expect(try path("/a").prefixBelow == "/a/")
        #expect(XenStorePath.root.prefixBelow == "/")
    }

    @Test(arguments: [
        ("/a", "/a", true), ("/a", "/a/b/c", true), ("/a", "/ab", false), ("/a/b", "/a", false), ("/", "/a", true),
        ("/", "/", true), ("/", "@releaseDomain", false), ("@releaseDomain", "@releaseDomain", true),
    ])
    func aWatchSeesItsPathAndAllBelow(watched: String, changed: String, isSeen: Bool) throws {
        func path(_ text: String) throws -> XenStorePath {
            try XenStorePath(wire(text)[...], from: 0, limit: .max, allowSpecial: true)
        }
        let watch = XenStoreWatch(path: try path(watched), token: [], home: nil)
        let change = XenStoreChange(path: try path(changed), reach: .nodeAndParents, audience: [])
        #expect(watch.sees(change) == isSeen)
        let own = XenStoreChange(path: try path(changed), reach: .nodeOnly, audience: [])
        #expect(watch.sees(own) == (watched == changed))
    }
}

@Suite struct XenStorePermissionsTests {
    private func parse(_ text: String) throws -> XenStoreNodePermissions {
        try XenStoreNodePermissions(xenStoreStrings(wire(text)[...])[...])
    }

    @Test func listsAreReadAndWritten() throws {
        let list = try parse("n0|r1|w2|b3|")
        #expect(list.owner == 0)
        #expect(list.count == 4)
        #expect(text(list.payload) == "n0|r1|w2|b3|")
        #expect(try parse("b65535|").first == XenStorePermission(domain: 65535, read: true, write: true))
        for bad in ["", "|", "n|", "x1|", "n1x|", "r-1|", "r65536|", "n0|q|"] {
            #expect(throws: XenStoreFailure.invalid) { try parse(bad) }
        }
    }

    @Test func theFirstEntryThatFitsCounts() throws {
        let list = try parse("r1|w2|b2|n3|")
        func rights(_ domain: DomainID, target: DomainID? = nil) -> XenStoreRights {
            list.rights(of: XenStoreIdentity(domain: domain, target: target))
        }
        #expect(rights(0) == .all)
        #expect(rights(1) == .all)
        #expect(rights(2) == .write)
        #expect(rights(3) == [])
        #expect(rights(4) == .read)
        #expect(rights(4, target: 1) == .all)
        #expect(rights(4, target: 2) == .write)
    }
}

@Suite struct XenStoreOutboxTests {
    /// #expect cannot call what changes a value.
    private final class Box {
        var outbox = XenStoreOutbox()

        func add(_ event: String, limit: Int = 1000) -> Bool { outbox.appendEvent(wire(event), limit: limit) }
    }

    private func reply(_ text: String) -> XenStoreMessage {
        XenStoreMessage(type: 2, requestID: 0, transactionID: 0, payload: wire(text))
    }

    @Test func anEventThatWaitsIsNotAddedAgainAndOneThatWasSentIs() {
        let box = Box()
        #expect(box.add("/a|t|"))
        let size = box.outbox.byteCount
        #expect(box.add("/a|t|"))
        #expect(box.outbox.byteCount == size)
        #expect(box.add("/a|u|"))
        #expect(box.outbox.byteCount == 2 * size)
        box.outbox.didSend(3)
        #expect(box.add("/a|t|"))
        #expect(box.outbox.byteCount == 2 * size)
        box.outbox.didSend(18)
        #expect(box.outbox.byteCount == size)
        #expect(box.add("/a|t|"))
        #expect(box.outbox.byteCount == 2 * size)
    }

    @Test func specialEventsAreAllTold() {
        let box = Box()
        #expect(box.add("@releaseDomain|t|"))
        let size = box.outbox.byteCount
        #expect(box.add("@releaseDomain|t|"))
        #expect(box.outbox.byteCount == 2 * size)
    }

    @Test func eventsStopAtTheLimitAndRepliesDoNot() {
        let box = Box()
        var count = 0
        while box.add("/a/\(count)|t|", limit: 10000) { count += 1 }
        #expect(count > 50)
        #expect(box.outbox.byteCount <= 10000)
        box.outbox.append(reply("x"))
        #expect(box.outbox.byteCount <= 10200)
    }

    @Test(arguments: [1, 2, 3] as [UInt64])
    func bytesLeaveInOrderHoweverTheyAreCut(seed: UInt64) {
        var random = SplitMix64(seed: seed)
        var outbox = XenStoreOutbox()
        var expected: [UInt8] = []
        var sent: [UInt8] = []
        for index in 0..<2000 {
            let message = reply(String(repeating: "x", count: .random(in: 0...40, using: &random)) + "\(index)")
            outbox.append(message)
            message.serialize(into: &expected)
            if Int.random(in: 0..<3, using: &random) == 0 {
                let bytes = outbox.bytes(about: .random(in: 1...3000, using: &random))
                let count = Int.random(in: 0...bytes.count, using: &random)
                sent += bytes.prefix(count)
                outbox.didSend(count)
            }
        }
        while !outbox.isEmpty {
            let bytes = outbox.bytes(about: 100)
            sent += bytes
            outbox.didSend(bytes.count)
        }
        #expect(sent == expected, "seed \(seed)")
        #expect(outbox.byteCount == 0)
    }
}
