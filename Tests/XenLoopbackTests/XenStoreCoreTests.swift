// SPDX-License-Identifier: BSD-2-Clause
// The XenStore core without sockets: requests, rights, watches, domains.
import Testing
import Xen

@testable import XenLoopback

@Suite struct XenStoreCoreRequestTests {
    @Test func aNewStoreHasTheHomeOfDomain0() throws {
        let store = TestCore()
        let client = try store.connect()
        #expect(store.ask(client, .directory, "/|") == "tool|local|")
        #expect(store.ask(client, .directory, "/local/domain/0|") == "domid|name|")
        #expect(store.ask(client, .read, "/local/domain/0/domid|") == "0")
        #expect(store.ask(client, .read, "name|") == "Domain-0")
        #expect(store.ask(client, .getPermissions, "/|") == "n0|")
        #expect(store.ask(client, .isDomainIntroduced, "0|") == "T|")
    }

    @Test func valuesAreBytesAndParentsAreMade() throws {
        let store = TestCore()
        let client = try store.connect()
        #expect(store.ask(client, .write, "/a/b/c|x|y|") == "OK|")
        #expect(store.ask(client, .read, "/a/b/c|") == "x|y|")
        #expect(store.ask(client, .read, "/a/b|") == "")
        #expect(store.ask(client, .directory, "/a|") == "b|")
        #expect(store.ask(client, .makeDirectory, "/a/b|") == "OK|")
        #expect(store.ask(client, .makeDirectory, "/a/b/c|") == "OK|")
        #expect(store.ask(client, .read, "/a/b/c|") == "x|y|")
        #expect(store.ask(client, .makeDirectory, "/a/d/e|") == "OK|")
        #expect(store.ask(client, .directory, "/a|") == "b|d|")
        #expect(store.ask(client, .write, "/a|") == "OK|")
        #expect(store.ask(client, .remove, "/a|") == "OK|")
        #expect(store.ask(client, .read, "/a/b/c|") == "ENOENT")
        #expect(store.ask(client, .remove, "/a|") == "OK|")
        #expect(store.ask(client, .remove, "/a/b|") == "ENOENT")
        #expect(store.ask(client, .remove, "/|") == "EINVAL")
    }

    @Test(
        arguments: [
            (.directory, ""), (.directory, "/"), (.directory, "/|/|"), (.read, "/a"), (.read, "|"), (.read, "/|x"),
            (.getPermissions, "/|n0|"), (.makeDirectory, "/x"), (.makeDirectory, "/x|y|"), (.remove, ""),
            (.write, "/x"), (.write, "x|y|z"), (.write, "@introduceDomain|x"), (.makeDirectory, "@x|"), (.read, "@x|"),
            (.setPermissions, "/|"), (.setPermissions, "/|q0|"), (.setPermissions, "/|n|"), (.setPermissions, "/|n0"),
            (.watch, ""), (.watch, "/a|"), (.watch, "/a|b|c|"), (.watch, "a b|c|"), (.unwatch, "/a|"),
            (.transactionEnd, "T|"), (.introduce, "1|2|"), (.introduce, "0|1|1|"), (.introduce, "32752|1|1|"),
            (.introduce, "1|1|0|"), (.introduce, "x|1|1|"), (.release, "0|"), (.release, ""), (.release, "x|"),
            (.getDomainPath, ""), (.getDomainPath, "65536|"), (.isDomainIntroduced, "y|"), (.setTarget, "1|"),
            (.setTarget, "1|x|"), (.directoryPart, "/|"), (.directoryPart, "/|x|"), (.directoryPart, "/|-1|"),
            (.control, ""), (.control, "live-update|-s|"), (.resume, "|"),
        ] as [(XenStoreRequestType, String)])
    func malformedRequestsChangeNothing(type: XenStoreRequestType, payload: String) throws {
        let store = TestCore(domains: 1)
        let client = try store.connect()
        let refused = type == .transactionEnd ? "ENOENT" : "EINVAL"
        if (type, payload) == (.write, "x|y|z") {
            #expect(store.ask(client, type, payload) == "OK|")
        } else {
            #expect(store.ask(client, type, payload) == refused)
        }
        #expect(store.ask(client, .directory, "/|") == "tool|local|")
        #expect(store.core.connections[client]?.watches.isEmpty == true)
    }

    @Test(arguments: [15, 16, 20, 23, 24, 25, 26, 65535, .max] as [UInt32])
    func unknownRequestsAreNotImplemented(type: UInt32) throws {
        let store = TestCore()
        let client = try store.connect()
        store.core.receive(message(type, "/|")[...], from: client)
        let answers = store.drain(client)
        #expect(answers.map { text($0.payload) } == ["ENOSYS|"])
        #expect(answers.map(\.type) == [XenStoreMessage.errorType])
    }

    @Test(
        arguments: [.control, .introduce, .release, .isDomainIntroduced, .resume, .setTarget] as [XenStoreRequestType])
    func requestsForTheControlDomainAreDeniedToOthers(type: XenStoreRequestType) throws {
        let store = TestCore(domains: 1)
        let client = try store.connect(as: 1)
        #expect(store.ask(client, type, "1|1|1|") == "EACCES")
    }

    @Test func aListThatIsTooLongComesInParts() throws {
        let store = TestCore()
        let client = try store.connect()
        let names = (0..<1500).map { "child-\($0 * 7919)" }
        for name in names { #expect(store.ask(client, .makeDirectory, "/list/\(name)|") == "OK|") }
        #expect(store.ask(client, .directory, "/list|") == "E2BIG")
        var list = ""
        var generations: Set<String> = []
        repeat {
            let part = store.ask(client, .directoryPart, "/list|\(list.utf8.count)|")
            #expect(part.utf8.count <= 4096)
            let end = try #require(part.firstIndex(of: "|"))
            generations.insert(String(part[..<end]))
            list += part[part.index(after: end)...]
        } while !list.hasSuffix("||")
        #expect(list.split(separator: "|").map(String.init) == names)
        #expect(generations.count == 1)
        #expect(store.ask(client, .directoryPart, "/list|4294967295|").hasSuffix("||"))
        #expect(store.ask(client, .makeDirectory, "/list/more|") == "OK|")
        let part = store.ask(client, .directoryPart, "/list|0|")
        #expect(!generations.contains(String(part.prefix { $0 != "|" })))
    }

    @Test func theDeepestPathCanBeMadeAndRemoved() throws {
        let store = TestCore()
        let client = try store.connect()
        let path = String(repeating: "/a", count: 1536)
        #expect(store.ask(client, .write, "\(path)|x") == "OK|")
        #expect(store.ask(client, .read, "\(path)|") == "x")
        let transaction = try store.start(client)
        #expect(store.ask(client, .remove, "/a|", transaction: transaction) == "OK|")
        #expect(store.ask(client, .read, "\(path)|", transaction: transaction) == "ENOENT")
        #expect(store.ask(client, .transactionEnd, "T|", transaction: transaction) == "OK|")
        #expect(store.ask(client, .read, "\(path)|") == "ENOENT")
    }

    @Test func controlAnswersAndTargetsCount() throws {
        let store = TestCore(domains: 1, 2)
        let control = try store.connect()
        let stub = try store.connect(as: 1)
        #expect(store.ask(control, .control, "check|") == "OK|")
        #expect(store.ask(control, .control, "help|").hasPrefix("Supported"))
        #expect(store.ask(stub, .write, "/local/domain/2/data/x|1") == "EACCES")
        #expect(store.ask(control, .setTarget, "1|9|") == "ENOENT")
        #expect(store.ask(control, .setTarget, "1|2|") == "OK|")
        #expect(store.ask(stub, .write, "/local/domain/2/data/x|1") == "OK|")
        #expect(store.ask(control, .getPermissions, "/local/domain/2/data/x|") == "n1|")
        #expect(store.ask(control, .resume, "1|") == "OK|")
        #expect(store.ask(control, .resume, "9|") == "ENOENT")
    }
}

@Suite struct XenStoreCoreRightsTests {
    @Test func rightsAreThoseOfTheNodeAndHideWhatIsBelow() throws {
        let store = TestCore(domains: 1, 2)
        let control = try store.connect()
        let owner = try store.connect(as: 1)
        let other = try store.connect(as: 2)
        #expect(store.ask(owner, .write, "data/x|1") == "OK|")
        #expect(store.ask(control, .getPermissions, "/local/domain/1/data/x|") == "n1|")
        let node = "/local/domain/1/data/x"
        #expect(store.ask(other, .read, "\(node)|") == "EACCES")
        #expect(store.ask(other, .read, "\(node)/none|") == "EACCES")
        #expect(store.ask(other, .getPermissions, "\(node)|") == "EACCES")
        #expect(store.ask(owner, .setPermissions, "\(node)|n1|r2|") == "OK|")
        #expect(store.ask(other, .read, "\(node)|") == "1")
        #expect(store.ask(other, .read, "\(node)/none|") == "ENOENT")
        #expect(store.ask(other, .write, "\(node)|2") == "EACCES")
        #expect(store.ask(other, .write, "\(node)/none|2") == "EACCES")
        #expect(store.ask(other, .remove, "\(node)|") == "EACCES")
        #expect(store.ask(other, .setPermissions, "\(node)|n1|b2|") == "EACCES")
        #expect(store.ask(owner, .setPermissions, "\(node)|n1|b2|") == "OK|")
        #expect(store.ask(other, .write, "\(node)/new|2") == "OK|")
        #expect(store.ask(control, .getPermissions, "\(node)/new|") == "n2|b2|")
        #expect(store.ask(other, .setPermissions, "\(node)|n1|b2|") == "EACCES")
        #expect(store.ask(owner, .setPermissions, "\(node)|n2|") == "EPERM")
        #expect(store.ask(control, .setPermissions, "\(node)|n2|") == "OK|")
        #expect(store.ask(owner, .read, "\(node)|") == "EACCES")
        #expect(store.ask(other, .remove, "\(node)|") == "OK|")
    }

    @Test func everybodysRightsAreThoseOfTheFirstEntry() throws {
        let store = TestCore(domains: 1)
        let control = try store.connect()
        let guest = try store.connect(as: 1)
        #expect(store.ask(control, .write, "/public|x") == "OK|")
        #expect(store.ask(guest, .read, "/public|") == "EACCES")
        #expect(store.ask(control, .setPermissions, "/public|r0|") == "OK|")
        #expect(store.ask(guest, .read, "/public|") == "x")
        #expect(store.ask(guest, .write, "/public|y") == "EACCES")
        #expect(store.ask(control, .setPermissions, "/public|b0|n1|") == "OK|")
        #expect(store.ask(guest, .read, "/public|") == "EACCES")
    }

    @Test func aGuestReadsItsHomeAndWritesItsDirectories() throws {
        let store = TestCore(domains: 3)
        let guest = try store.connect(as: 3)
        #expect(store.ask(guest, .read, "domid|") == "3")
        #expect(store.ask(guest, .directory, "/local/domain/3|") == "domid|name|device|data|drivers|error|")
        #expect(store.ask(guest, .write, "name|me") == "EACCES")
        #expect(store.ask(guest, .write, "new|me") == "EACCES")
        #expect(store.ask(guest, .write, "device/vbd/51712/state|1") == "OK|")
        #expect(store.ask(guest, .getPermissions, "device/vbd|") == "n3|")
        #expect(store.ask(guest, .read, "/local/domain/0/name|") == "EACCES")
        #expect(store.ask(guest, .getDomainPath, "3|") == "/local/domain/3|")
    }

    @Test func limitsHoldForGuestsAlone() throws {
        var limits = XenStoreLimits()
        limits.nodes = 20
        limits.watches = 5
        limits.transactions = 3
        limits.transactionNodes = 10
        limits.connections = 2
        let store = TestCore(limits: limits, domains: 1)
        let guest = try store.connect(as: 1)
        let second = try store.connect(as: 1)
        let control = try store.connect()
        #expect(store.core.connect(as: 1) == nil)
        #expect(store.core.connect(as: 2) == nil)

        // A node: 16 bytes, 8 for the owner, the value.
        let largest = String(repeating: "x", count: 2048 - 24)
        #expect(store.ask(guest, .write, "data/a|\(largest)x") == "ENOSPC")
        #expect(store.ask(guest, .read, "data/a|") == "ENOENT")
        #expect(store.ask(guest, .write, "data/a|\(largest)") == "OK|")
        #expect(store.ask(guest, .makeDirectory, "data/a/b|") == "ENOSPC")
        #expect(store.ask(guest, .write, "data/a|\(largest)x") == "ENOSPC")
        #expect(store.ask(guest, .setPermissions, "data/a|n1|r0|") == "ENOSPC")
        #expect(store.ask(guest, .write, "data/a|") == "OK|")
        #expect(store.ask(guest, .setPermissions, "data/a|n1|r2|r3|r4|r5|") == "OK|")
        #expect(store.ask(guest, .setPermissions, "data/a|n1|r2|r3|r4|r5|r6|") == "ENOSPC")
        #expect(store.ask(control, .write, "/local/domain/1/data/a|\(largest)xxx") == "OK|")

        // Five nodes are there: device, data, drivers, error, data/a.
        #expect(store.ask(guest, .write, "data/1/2/3/4/5/6/7/8/9/10/11/12/13/14/15/16|") == "ENOSPC")
        #expect(store.ask(guest, .directory, "data|") == "a|")
        #expect(store.ask(guest, .write, "data/1/2/3/4/5/6/7/8/9/10/11/12/13/14/15|") == "OK|")
        #expect(store.ask(second, .makeDirectory, "device/x|") == "ENOSPC")
        #expect(store.ask(control, .makeDirectory, "/local/domain/1/device/x|") == "OK|")
        #expect(store.ask(guest, .remove, "data/1|") == "OK|")
        #expect(store.core.nodes.nodeCount(ownedBy: 1, in: nil) == 6)

        for token in 0..<5 { #expect(store.ask(token < 3 ? guest : second, .watch, "data|\(token)|") == "OK|") }
        #expect(store.ask(guest, .watch, "data|5|") == "ENOSPC")
        #expect(store.ask(second, .unwatch, "data|4|") == "OK|")
        #expect(store.ask(guest, .watch, "data|5|") == "OK|")
        for token in 0..<50 { #expect(store.ask(control, .watch, "/|\(token)|") == "OK|") }

        var transactions: [UInt32] = []
        for _ in 0..<3 { transactions.append(try store.start(guest)) }
        #expect(store.ask(guest, .transactionStart, "|") == "ENOSPC")
        #expect(store.ask(guest, .transactionEnd, "F|", transaction: transactions[0]) == "OK|")
        transactions[0] = try store.start(guest)
        let path = (0..<12).map { "/\($0)" }.joined()
        #expect(store.ask(guest, .read, "data\(path)|", transaction: transactions[0]) == "ENOSPC")
        #expect(store.ask(guest, .transactionEnd, "T|", transaction: transactions[0]) == "OK|")
    }

    @Test func nodesOfATransactionCountWhenItIsMadeAndWhenItEnds() throws {
        var limits = XenStoreLimits()
        limits.nodes = 10
        let store = TestCore(limits: limits, domains: 1)
        let guest = try store.connect(as: 1)
        let first = try store.start(guest)
        let second = try store.start(guest)
        for index in 0..<6 {
            #expect(store.ask(guest, .makeDirectory, "data/\(index)|", transaction: first) == "OK|")
        }
        #expect(store.ask(guest, .makeDirectory, "data/6|", transaction: first) == "ENOSPC")
        #expect(store.ask(guest, .makeDirectory, "device/0|", transaction: second) == "OK|")
        #expect(store.ask(guest, .transactionEnd, "T|", transaction: first) == "OK|")
        #expect(store.ask(guest, .transactionEnd, "T|", transaction: second) == "ENOSPC")
        #expect(store.ask(guest, .directory, "device|") == "")
        #expect(store.core.nodes.nodeCount(ownedBy: 1, in: nil) == 10)
        let third = try store.start(guest)
        #expect(store.ask(guest, .remove, "data/0|", transaction: third) == "OK|")
        #expect(store.ask(guest, .makeDirectory, "device/0|", transaction: third) == "OK|")
        #expect(store.ask(guest, .transactionEnd, "T|", transaction: third) == "OK|")
        #expect(store.core.nodes.nodeCount(ownedBy: 1, in: nil) == 10)
        #expect(store.core.nodes.isConsistent)
    }
}

@Suite struct XenStoreCoreTransactionTests {
    @Test func aTransactionSeesItselfAndOthersSeeItAtItsEnd() throws {
        let store = TestCore()
        let client = try store.connect()
        let other = try store.connect()
        let transaction = try store.start(client)
        #expect(store.ask(client, .write, "/a/b|1", transaction: transaction) == "OK|")
        #expect(store.ask(client, .read, "/a/b|", transaction: transaction) == "1")
        #expect(store.ask(client, .directory, "/|", transaction: transaction) == "tool|local|a|")
        #expect(store.ask(client, .read, "/a/b|") == "ENOENT")
        #expect(store.ask(other, .read, "/a/b|", transaction: transaction) == "ENOENT")
        #expect(store.ask(client, .transactionStart, "|", transaction: transaction) == "EBUSY")
        #expect(store.ask(client, .transactionEnd, "X|", transaction: transaction) == "EINVAL")
        #expect(store.ask(client, .transactionEnd, "T|", transaction: transaction) == "OK|")
        #expect(store.ask(other, .read, "/a/b|") == "1")
        #expect(store.ask(client, .transactionEnd, "T|", transaction: transaction) == "ENOENT")
        #expect(store.ask(client, .read, "/a/b|", transaction: transaction) == "ENOENT")
        let aborted = try store.start(client)
        #expect(store.ask(client, .remove, "/a|", transaction: aborted) == "OK|")
        #expect(store.ask(client, .transactionEnd, "F|", transaction: aborted) == "OK|")
        #expect(store.ask(client, .read, "/a/b|") == "1")
    }

    /// What the transaction does, what another client does then, whether both can be.
    @Test(arguments: [
        ("read /k", "write /k", false), ("read /k", "write /l", true), ("read /k", "remove /k", false),
        ("read /none", "write /none", false), ("read /none", "write /k/x", true), ("write /k", "write /k", false),
        ("write /k", "write /k/x", false), ("write /k", "write /k/c", true), ("write /k/y", "write /k/x", false),
        ("write /k", "write /l", true),
        ("directory /k", "write /k/x", false), ("directory /k", "write /k/c", true),
        ("directory /k", "remove /k/c", false), ("remove /k", "write /k/c", false), ("remove /k", "write /k/x", false),
        ("remove /k/c", "write /l/x", true), ("remove /none", "write /none", false), ("perms /k", "chmod /k", false),
        ("read /k", "chmod /k", false), ("chmod /k", "read /k", true), ("mkdir /k/c", "write /k/c", false),
    ])
    func conflictsAreSeen(does: String, meanwhile: String, fits: Bool) throws {
        let store = TestCore()
        let client = try store.connect()
        let other = try store.connect()
        for path in ["/k", "/k/c", "/l"] { #expect(store.ask(client, .write, "\(path)|1") == "OK|") }
        func run(_ words: String, _ id: XenStoreConnectionID, _ transaction: UInt32 = 0) {
            let (verb, path) = (words.prefix { $0 != " " }, words.drop { $0 != " " }.dropFirst())
            let type: XenStoreRequestType =
                switch verb {
                case "write": .write
                case "remove": .remove
                case "directory": .directory
                case "perms": .getPermissions
                case "chmod": .setPermissions
                case "mkdir": .makeDirectory
                default: .read
                }
            let rest = verb == "write" ? "2" : verb == "chmod" ? "r0|" : ""
            _ = store.ask(id, type, "\(path)|\(rest)", transaction: transaction)
        }
        let transaction = try store.start(client)
        run(does, client, transaction)
        run(meanwhile, other)
        #expect(store.ask(client, .transactionEnd, "T|", transaction: transaction) == (fits ? "OK|" : "EAGAIN"))
        #expect(store.ask(client, .transactionEnd, "T|", transaction: transaction) == "ENOENT")
    }

    @Test func eventsComeAtTheEndOnceEachAndOnlyForWhatLasted() throws {
        let store = TestCore()
        let client = try store.connect()
        let watcher = try store.connect()
        #expect(store.ask(client, .write, "/k/old|1") == "OK|")
        #expect(store.ask(watcher, .watch, "/k|t|") == "OK|")
        #expect(store.ask(watcher, .watch, "/k/old|o|") == "OK|")
        #expect(store.takeEvents(watcher) == ["/k|t|", "/k/old|o|"])
        let transaction = try store.start(client)
        for request in ["/k/a|1", "/k/b|1", "/k/a|2", "/k/gone|1"] {
            #expect(store.ask(client, .write, request, transaction: transaction) == "OK|")
        }
        #expect(store.ask(client, .remove, "/k/gone|", transaction: transaction) == "OK|")
        #expect(store.ask(client, .remove, "/k/old|", transaction: transaction) == "OK|")
        #expect(store.takeEvents(watcher).isEmpty)
        #expect(store.ask(client, .transactionEnd, "T|", transaction: transaction) == "OK|")
        #expect(store.takeEvents(watcher) == ["/k/a|t|", "/k/b|t|", "/k/old|t|", "/k/old|o|"])
        let aborted = try store.start(client)
        #expect(store.ask(client, .write, "/k/c|1", transaction: aborted) == "OK|")
        #expect(store.ask(client, .transactionEnd, "F|", transaction: aborted) == "OK|")
        #expect(store.takeEvents(watcher).isEmpty)
    }

    @Test func aClientThatGoesOrResetsLeavesNothing() throws {
        let store = TestCore()
        let client = try store.connect()
        let watcher = try store.connect()
        let transaction = try store.start(client)
        #expect(store.ask(client, .watch, "/|t|") == "OK|")
        #expect(store.ask(client, .write, "/x|1", transaction: transaction) == "OK|")
        #expect(store.ask(client, .resetWatches, "|") == "OK|")
        #expect(store.ask(client, .transactionEnd, "T|", transaction: transaction) == "ENOENT")
        #expect(store.ask(client, .unwatch, "/|t|") == "ENOENT")
        #expect(store.ask(client, .watch, "/|t|") == "OK|")
        store.core.disconnect(client)
        #expect(store.ask(watcher, .write, "/y|1") == "OK|")
        #expect(store.ask(watcher, .read, "/x|") == "ENOENT")
        #expect(store.core.connections.count == 1)
        #expect(store.core.bytesToSend(to: client, about: 100).isEmpty)
    }
}
