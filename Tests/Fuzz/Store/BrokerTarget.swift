// SPDX-License-Identifier: BSD-2-Clause
// What a worker that was taken over sends to the keeper of its XenStore connection.
import Base
import Glibc
import TestSupport
import Xen
import XenBus

@testable import StoreBroker

private let back = "/local/domain/0/backend/vbd/7/51712"
private let front = "/local/domain/7/device/vbd/51712"
private let errorNode = "/local/domain/0/error/backend/vbd/7/51712"

/// A store that notes what it is asked for, and what of it nobody may have asked for.
private final class WatchedStore: XenStore {
    var problems: [String] = []
    private var transactions: Set<UInt32> = []
    private var last: UInt32 = 0
    private var watches = 0
    /// Nothing ever comes.
    private let event = open("/dev/null", O_WRONLY | O_CLOEXEC)

    /// Written apart from `StorePolicy`: names of the toolstack's keys, and the shape of a path.
    private func isOwn(_ path: String) -> Bool {
        if path == errorNode || path == errorNode + "/error" { return true }
        guard path.hasPrefix(back + "/") else { return false }
        let key = path.dropFirst(back.count + 1)
        let toolstack = [
            "frontend", "frontend-id", "online", "params", "script", "mode", "dev", "type", "format", "xbb-options",
            "physical-device", "physical-device-path", "bootable", "removable", "device-type", "specification",
            "xbb-swap",
        ]
        return !key.isEmpty && !key.contains("/") && !toolstack.contains(String(key))
    }

    private func demand(_ isRight: Bool, _ what: String) { if !isRight { problems.append(what) } }
    private func demandOpen(_ transaction: XenStoreTransaction) {
        demand(
            transaction.id == 0 || transactions.contains(transaction.id),
            "transaction \(transaction.id), which is another's")
    }

    func read(_ path: String, in transaction: XenStoreTransaction) throws(OperationError) -> [UInt8] {
        demandOpen(transaction)
        demand(
            path == "domid" || path.hasPrefix(back + "/") || path.hasPrefix(front + "/"),
            "reads \(path.debugDescription)")
        switch path {
        case back + "/frontend": return Array(front.utf8)
        case back + "/frontend-id": return [UInt8(ascii: "7")]
        default: throw OperationError(ENOENT, "read \(path)")
        }
    }

    func values(of keys: [String], below path: String) throws(OperationError) -> [Result<[UInt8], OperationError>] {
        var values: [Result<[UInt8], OperationError>] = []
        for key in keys {
            do throws(OperationError) {
                values.append(.success(try read("\(path)/\(key)", in: .none)))
            } catch {
                values.append(.failure(error))
            }
        }
        return values
    }

    func write(_ path: String, _ value: [UInt8], in transaction: XenStoreTransaction) throws(OperationError) {
        demandOpen(transaction)
        demand(isOwn(path) && path != errorNode, "writes \(path.debugDescription)")
    }

    func makeDirectory(_ path: String, in transaction: XenStoreTransaction) throws(OperationError) {
        problems.append("makes \(path)")
    }

    func remove(_ path: String, in transaction: XenStoreTransaction) throws(OperationError) {
        demandOpen(transaction)
        demand(isOwn(path) && path != back + "/state", "removes \(path.debugDescription)")
    }

    func list(_ path: String, in transaction: XenStoreTransaction) throws(OperationError) -> [String] {
        problems.append("lists \(path)")
        return []
    }

    func permissions(of path: String, in transaction: XenStoreTransaction) throws(OperationError)
        -> [XenStorePermission]
    {
        problems.append("asks who may use \(path)")
        return []
    }

    func setPermissions(
        of path: String, to permissions: [XenStorePermission], in transaction: XenStoreTransaction
    ) throws(OperationError) { problems.append("gives rights to \(path)") }

    func startTransaction() throws(OperationError) -> XenStoreTransaction {
        last += 1
        transactions.insert(last)
        demand(transactions.count <= 2, "\(transactions.count) transactions")
        return XenStoreTransaction(id: last)
    }

    func commit(_ transaction: XenStoreTransaction) throws(OperationError) -> Bool {
        demand(transactions.remove(transaction.id) != nil, "commits what is another's")
        return true
    }

    func abort(_ transaction: XenStoreTransaction) {
        demand(transactions.remove(transaction.id) != nil, "aborts what is another's")
    }

    func watch(_ path: String, token: String) throws(OperationError) {
        watches += 1
        demand((path == back || path == front + "/state") && watches <= 4, "watches \(path.debugDescription)")
    }

    func unwatch(_ path: String, token: String) throws(OperationError) {
        demand(watches > 0, "ends no watch")
        watches -= 1
    }

    var watchFileDescriptor: Int32 { event }
    func nextWatchEvent() throws(OperationError) -> XenStoreWatchEvent? { nil }
    func domainPath(_ domain: DomainID) throws(OperationError) -> String { "/local/domain/\(domain)" }
    func isDomainIntroduced(_ domain: DomainID) throws(OperationError) -> Bool { true }
    deinit { close(event) }
}

private let paths = [
    back, front, errorNode, back + "/", front + "/", errorNode + "/error", "domid", "/local/domain/0", "",
    back + "/state",
    back + "/sectors", back + "/params", front + "/state", front + "/ring-ref", back + "1/state",
]

/// A conversation of up to 16 messages.
func askKeeper() -> [String] {
    var problems: [String] = []
    var random = SplitMix64(seed: 0)
    var ends: [Int32] = [0, 0]
    guard socketpair(AF_UNIX, Int32(SOCK_SEQPACKET.rawValue), 0, &ends) == 0 else { return [] }
    let (mine, calls) = (Descriptor(owning: ends[0]), Descriptor(owning: ends[1]))
    let events = Descriptor(owning: dup(ends[1]))
    for _ in 0..<1 + random.below(16) {
        let bytes: [UInt8]
        if random.onceIn(4) {
            bytes = FuzzInput.takeBytes(atMost: 512)
        } else if let operation = BrokerRequest.Operation(rawValue: UInt8(1 + random.below(10))) {
            var path = random.pick(paths)
            if random.onceIn(3) { path += String(decoding: FuzzInput.takeBytes(atMost: 32), as: UTF8.self) }
            let value = FuzzInput.takeBytes(atMost: 200)
            bytes = BrokerRequest(operation, UInt32(random.below(4)), path: path, value: value).bytes
        } else {
            continue
        }
        problems += checkMessage(bytes)
        _ = bytes.withUnsafeBytes { send(mine.raw, $0.baseAddress, max($0.count, 1), Int32(MSG_DONTWAIT)) }
    }
    shutdown(mine.raw, Int32(SHUT_WR))
    let store = WatchedStore()
    StoreKeeper(store, backendPath: back, calls: calls, events: events, log: silentLog).run()
    return problems + store.problems
}

/// Both ends read a message alike.
private func checkMessage(_ bytes: [UInt8]) -> [String] {
    _ = BrokerReply(bytes[...])
    _ = BrokerValues.values(bytes, of: ["a", "b"], below: "/")
    guard let request = BrokerRequest(bytes[...]) else { return [] }
    return BrokerRequest(request.bytes[...]) == request ? [] : ["\(request) is another one when it is sent again"]
}
