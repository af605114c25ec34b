// SPDX-License-Identifier: BSD-2-Clause
// Random operations of three clients with transactions, against a model of ten lines per operation.
import Base
import CLinux
import Glibc
import TestSupport
import Testing
import Xen

@testable import XenLoopback

/// What a client does, in or outside of a transaction.
private enum Operation: CustomStringConvertible {
    case write(String, String)
    case makeDirectory(String)
    case remove(String)
    case read(String)
    case list(String)

    var description: String {
        switch self {
        case .write(let path, let value): "write \(path) \(value)"
        case .makeDirectory(let path): "mkdir \(path)"
        case .remove(let path): "rm \(path)"
        case .read(let path): "read \(path)"
        case .list(let path): "ls \(path)"
        }
    }

    static func random(using random: inout SplitMix64) -> Operation {
        let depth = Int.random(in: 1...3, using: &random)
        let names = (0..<depth).map { _ in ["a", "b", "c"][Int.random(in: 0..<3, using: &random)] }
        let path = "/m/" + names.joined(separator: "/")
        switch Int.random(in: 0..<10, using: &random) {
        case 0...3: return .write(path, "\(Int.random(in: 0..<1000, using: &random))")
        case 4: return .makeDirectory(path)
        case 5: return .remove(path)
        case 6...7: return .read(path)
        default: return .list(path)
        }
    }
}

/// One client at a time, no transactions, no rights: what a store is.
private struct Model: Equatable {
    var values: [String: String] = ["/m": ""]

    /// What a client is told.
    mutating func perform(_ operation: Operation) -> String {
        switch operation {
        case .write(let path, let value):
            makeParents(path)
            values[path] = value
            return "OK"
        case .makeDirectory(let path):
            makeParents(path)
            if values[path] == nil { values[path] = "" }
            return "OK"
        case .remove(let path):
            guard values[Self.parent(path)] != nil else { return "ENOENT" }
            values = values.filter { $0.key != path && !$0.key.hasPrefix(path + "/") }
            return "OK"
        case .read(let path):
            return values[path] ?? "ENOENT"
        case .list(let path):
            guard values[path] != nil else { return "ENOENT" }
            let children = values.keys.filter { Self.parent($0) == path && $0 != path }
            return children.map { String($0.dropFirst(path.count + 1)) }.sorted().joined(separator: " ")
        }
    }

    /// Paths that a watch of all is told of.
    func changed(by operation: Operation) -> [String] {
        switch operation {
        case .write(let path, _): [path]
        case .makeDirectory(let path): values[path] == nil ? [path] : []
        case .remove(let path): values[path] != nil ? [path] : []
        case .read, .list: []
        }
    }

    private mutating func makeParents(_ path: String) {
        var parent = Self.parent(path)
        while values[parent] == nil {
            values[parent] = ""
            parent = Self.parent(parent)
        }
    }

    private static func parent(_ path: String) -> String { String(path[..<(path.lastIndex(of: "/") ?? path.endIndex)]) }
}

/// A store under test with three clients.
private protocol Subject: AnyObject {
    func perform(_ operation: Operation, client: Int, transaction: UInt32) throws -> String
    func start(client: Int) throws -> UInt32
    /// False if it conflicted.
    func end(_ transaction: UInt32, client: Int, commit: Bool) throws -> Bool
    /// Paths that the watch of "/m" was told of since the last call, in their order.
    func takeEvents() throws -> [String]
    /// True if the store says that it is in order.
    func isConsistent() throws -> Bool
}

/// A transaction that did not end yet.
private struct Open {
    let id: UInt32
    /// What it did and was told.
    var done: [(Operation, String)] = []
    /// How many changes there had been when it started.
    let version: Int
}

/// Runs random operations; a transaction that took effect must have seen what it would have seen had it run all at
/// once at its end.
private func check(_ subject: some Subject, seed: UInt64, steps: Int) throws {
    var random = SplitMix64(seed: seed)
    var model = Model()
    var version = 0
    var open: [[Open]] = [[], [], []]
    var outcomes = (committed: 0, conflicted: 0, aborted: 0)
    for step in 0..<steps {
        let client = Int.random(in: 0..<3, using: &random)
        var told: [String] = []
        let place: Comment = "seed \(seed) step \(step) client \(client)"
        switch Int.random(in: 0..<12, using: &random) {
        case 0 where open[client].count < 3:
            open[client].append(Open(id: try subject.start(client: client), version: version))
        case 1 where !open[client].isEmpty:
            let ended = open[client].remove(at: .random(in: 0..<open[client].count, using: &random))
            if Int.random(in: 0..<4, using: &random) == 0 {
                #expect(try subject.end(ended.id, client: client, commit: false), place)
                outcomes.aborted += 1
            } else if try subject.end(ended.id, client: client, commit: true) {
                let before = model
                for (operation, result) in ended.done {
                    told += model.changed(by: operation)
                    #expect(model.perform(operation) == result, "\(place) \(operation) in a transaction")
                }
                if model != before || !told.isEmpty { version += 1 }
                // Nodes that came and went within it were never there; one event for each of the others.
                told = told.reduce(into: []) { list, path in if !list.contains(path) { list.append(path) } }
                told = told.filter { before.values[$0] != nil || model.values[$0] != nil }
                outcomes.committed += 1
            } else {
                #expect(ended.version != version, "\(place) conflicted with nothing")
                outcomes.conflicted += 1
            }
        case 2...6 where !open[client].isEmpty:
            let index = Int.random(in: 0..<open[client].count, using: &random)
            let operation = Operation.random(using: &random)
            let result = try subject.perform(operation, client: client, transaction: open[client][index].id)
            open[client][index].done.append((operation, result))
        default:
            let operation = Operation.random(using: &random)
            told = model.changed(by: operation)
            if !told.isEmpty { version += 1 }
            let expected = model.perform(operation)
            let result = try subject.perform(operation, client: client, transaction: 0)
            #expect(result == expected, "\(place) \(operation)")
        }
        #expect(try subject.takeEvents() == told, place)
    }
    for path in model.values.keys.sorted() {
        #expect(try subject.perform(.read(path), client: 0, transaction: 0) == model.values[path])
        let expected = model.perform(.list(path))
        #expect(try subject.perform(.list(path), client: 0, transaction: 0) == expected)
    }
    #expect(try subject.isConsistent())
    #expect(outcomes.committed > 0 && outcomes.conflicted > 0 && outcomes.aborted > 0, "seed \(seed) \(outcomes)")
}

private final class CoreSubject: Subject {
    let store = TestCore()
    let clients: [XenStoreConnectionID]
    let watcher: XenStoreConnectionID

    init() throws {
        let store = store
        clients = try (0..<3).map { _ in try store.connect() }
        watcher = try store.connect()
        _ = store.ask(clients[0], .makeDirectory, "/m|")
        _ = store.ask(watcher, .watch, "/m|t|")
        _ = store.takeEvents(watcher)
    }

    func perform(_ operation: Operation, client: Int, transaction: UInt32) -> String {
        func ask(_ type: XenStoreRequestType, _ payload: String) -> String {
            store.ask(clients[client], type, payload, transaction: transaction)
        }
        switch operation {
        case .write(let path, let value): return ask(.write, "\(path)|\(value)") == "OK|" ? "OK" : "refused"
        case .makeDirectory(let path): return ask(.makeDirectory, "\(path)|") == "OK|" ? "OK" : "refused"
        case .remove(let path):
            let answer = ask(.remove, "\(path)|")
            return answer == "OK|" ? "OK" : answer
        case .read(let path): return ask(.read, "\(path)|")
        case .list(let path):
            let answer = ask(.directory, "\(path)|")
            return answer == "ENOENT" ? answer : answer.split(separator: "|").sorted().joined(separator: " ")
        }
    }

    func start(client: Int) throws -> UInt32 { try store.start(clients[client]) }

    func end(_ transaction: UInt32, client: Int, commit: Bool) -> Bool {
        store.ask(clients[client], .transactionEnd, commit ? "T|" : "F|", transaction: transaction) == "OK|"
    }

    func isConsistent() -> Bool { store.core.nodes.isConsistent }

    func takeEvents() -> [String] { store.takeEvents(watcher).map { String($0.dropLast(3)) } }
}

private final class LibrarySubject: Subject {
    let daemon: TestDaemon
    let clients: [any XenStore]
    let watcher: any XenStore
    private var marks = 0

    init() throws {
        let daemon = try TestDaemon()
        self.daemon = daemon
        clients = try (0..<3).map { _ in try daemon.open() }
        watcher = try daemon.open()
        try clients[0].makeDirectory("/m", in: .none)
        try watcher.watch("/m", token: "t")
        try watcher.watch("/mark", token: "")
        _ = try takeEvents()
    }

    func perform(_ operation: Operation, client: Int, transaction: UInt32) throws -> String {
        let store = clients[client]
        let transaction = XenStoreTransaction(id: transaction)
        do throws(OperationError) {
            switch operation {
            case .write(let path, let value): try store.write(path, value, in: transaction)
            case .makeDirectory(let path): try store.makeDirectory(path, in: transaction)
            case .remove(let path): try store.remove(path, in: transaction)
            case .read(let path): return String(decoding: try store.read(path, in: transaction), as: UTF8.self)
            case .list(let path): return try store.list(path, in: transaction).sorted().joined(separator: " ")
            }
            return "OK"
        } catch {
            guard error.isNotFound else { throw error }
            return "ENOENT"
        }
    }

    func start(client: Int) throws -> UInt32 { try clients[client].startTransaction().id }

    func end(_ transaction: UInt32, client: Int, commit: Bool) throws -> Bool {
        let transaction = XenStoreTransaction(id: transaction)
        if commit { return try clients[client].commit(transaction) }
        clients[client].abort(transaction)
        return true
    }

    func isConsistent() throws -> Bool { try daemon.isConsistent() }

    /// Events come in order, so those before the event of a mark are all there are.
    func takeEvents() throws -> [String] {
        marks += 1
        try clients[0].write("/mark/\(marks)", "")
        var paths: [String] = []
        while true {
            let event = try watcher.waitForEvent()
            if event.path == "/mark/\(marks)" { return paths }
            if event.token == "t" { paths.append(event.path) }
        }
    }
}

@Suite struct XenStoreCoreModelTests {
    @Test(arguments: 1...8 as ClosedRange<UInt64>)
    func theCoreIsLikeTheModel(seed: UInt64) throws {
        try check(CoreSubject(), seed: seed, steps: 1000)
    }
}

extension XenStoreTests {
    @Suite struct XenStoreLibraryModelTests {
        @Test(arguments: 100...104 as ClosedRange<UInt64>)
        func libxenstoreIsLikeTheModel(seed: UInt64) throws {
            try check(LibrarySubject(), seed: seed, steps: 1000)
        }
    }
}
