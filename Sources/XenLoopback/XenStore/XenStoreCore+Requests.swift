// SPDX-License-Identifier: BSD-2-Clause
// One request of a client: read, checked, done, answered.
import Xen

extension XenStoreCore {
    /// Carries out a client's request and sends the answer; the events that it causes are sent before the answer.
    mutating func answer(_ request: XenStoreMessage, of id: XenStoreConnectionID) {
        guard let domain = connections[id]?.domain else { return }
        let client = identity(of: domain)
        var answer = request
        do throws(XenStoreFailure) {
            guard let type = XenStoreRequestType(rawValue: request.type) else { throw .notImplemented }
            guard client.isControl || !type.isForControlDomain else { throw .accessDenied }
            if type == .watch {
                try watch(request, id, client)
                return
            }
            answer.payload = try perform(type, request, id, client)
        } catch {
            answer.type = XenStoreMessage.errorType
            answer.payload = Array(error.rawValue.utf8) + [0]
        }
        tellWatches()
        send(answer, to: id)
    }

    private mutating func perform(
        _ type: XenStoreRequestType, _ request: XenStoreMessage, _ id: XenStoreConnectionID, _ client: XenStoreIdentity
    ) throws(XenStoreFailure) -> [UInt8] {
        var transaction: XenStoreTransactionLog?
        if !type.ignoresTransaction {
            transaction = try connections[id]?.takeTransaction(request.transactionID)
        }
        if type == .transactionEnd { return try endTransaction(request, id, client, &transaction) }
        defer {
            if let transaction { connections[id]?.transactions[request.transactionID] = transaction }
        }
        let payload = request.payload[...]
        switch type {
        case .directory, .directoryPart, .read, .getPermissions, .write, .makeDirectory, .remove, .setPermissions:
            return try performOnNode(type, payload, client, &transaction)
        case .transactionStart:
            return try startTransaction(id, client, isNested: transaction != nil)
        case .unwatch:
            return try unwatch(payload, id, client)
        case .resetWatches:
            transaction = nil
            connections[id]?.watches = []
            connections[id]?.transactions = [:]
            return Self.done
        case .introduce, .release, .getDomainPath, .isDomainIntroduced, .resume, .setTarget:
            return try performOnDomain(type, payload)
        case .control:
            return try control(payload)
        case .watch, .transactionEnd:
            throw .invalid
        }
    }

    // MARK: Nodes

    private mutating func performOnNode(
        _ type: XenStoreRequestType, _ payload: ArraySlice<UInt8>, _ client: XenStoreIdentity,
        _ transaction: inout XenStoreTransactionLog?
    ) throws(XenStoreFailure) -> [UInt8] {
        let strings = xenStoreStrings(payload)
        guard let first = strings.first else { throw .invalid }
        // These take the path as their only argument, with nothing after it.
        let isSingle = strings.count == 1 && first.count + 1 == payload.count
        switch type {
        case .directory, .read, .getPermissions, .makeDirectory, .remove: guard isSingle else { throw .invalid }
        default: break
        }
        let path = try path(
            first, client, allowSpecial: type == .getPermissions || type == .setPermissions)
        switch type {
        case .directory:
            let list = try nodes.require(.read, of: path, by: client, in: &transaction).childList
            guard list.count <= XenStoreMessage.maximumPayload else { throw .tooBig }
            return list
        case .directoryPart:
            guard strings.count == 2, let offset = xenStoreNumber(strings[1], as: UInt32.self) else { throw .invalid }
            let node = try nodes.require(.read, of: path, by: client, in: &transaction)
            return Self.directoryPart(node, from: Int(offset))
        case .read:
            return try nodes.require(.read, of: path, by: client, in: &transaction).value
        case .getPermissions:
            return try nodes.require(.read, of: path, by: client, in: &transaction).permissions.payload
        case .write:
            try nodes.write(Array(payload.dropFirst(first.count + 1)), to: path, by: client, in: &transaction)
        case .makeDirectory:
            try nodes.makeDirectory(path, by: client, in: &transaction)
        case .remove:
            try nodes.remove(path, by: client, in: &transaction)
        case .setPermissions:
            let permissions = try XenStoreNodePermissions(strings.dropFirst())
            try nodes.setPermissions(permissions, of: path, by: client, in: &transaction)
        default:
            throw .invalid
        }
        return Self.done
    }

    /// "<generation>\0" and as many whole names as fit; an empty name follows the last name of all.
    private static func directoryPart(_ node: XenStoreNode, from offset: Int) -> [UInt8] {
        var reply = Array("\(node.generation)\0".utf8)
        let list = node.childList
        var start = offset
        while start < list.count {
            let end = list[start...].firstIndex(of: 0) ?? list.count - 1
            // Leaves room for the empty name that may follow.
            guard reply.count + end - start + 2 <= XenStoreMessage.maximumPayload else { return reply }
            reply.append(contentsOf: list[start...end])
            start = end + 1
        }
        return reply + [0]
    }

    // MARK: Watches

    /// The first event is sent after the answer.
    private mutating func watch(
        _ request: XenStoreMessage, _ id: XenStoreConnectionID, _ client: XenStoreIdentity
    ) throws(XenStoreFailure) {
        let watch = try watch(of: request.payload[...], client)
        if indexOfWatch(watch, id) != nil { throw .exists }
        if !client.isControl {
            let count = connections(of: client.domain).values.reduce(0) { $0 + $1.watches.count }
            guard count < limits.watches else { throw .noSpace }
        }
        connections[id]?.watches.append(watch)
        var answer = request
        answer.payload = Self.done
        send(answer, to: id)
        if let event = watch.event(watch.path) { sendEvent(event, to: id) }
    }

    private mutating func unwatch(
        _ payload: ArraySlice<UInt8>, _ id: XenStoreConnectionID, _ client: XenStoreIdentity
    ) throws(XenStoreFailure) -> [UInt8] {
        let watch = try watch(of: payload, client)
        guard let index = indexOfWatch(watch, id) else { throw .notFound }
        connections[id]?.watches.remove(at: index)
        return Self.done
    }

    private func indexOfWatch(_ watch: XenStoreWatch, _ id: XenStoreConnectionID) -> Int? {
        connections[id]?.watches.firstIndex { $0.path == watch.path && $0.token == watch.token }
    }

    private func watch(
        of payload: ArraySlice<UInt8>, _ client: XenStoreIdentity
    ) throws(XenStoreFailure) -> XenStoreWatch {
        let strings = xenStoreStrings(payload)
        guard strings.count == 2 else { throw .invalid }
        let path = try path(strings[0], client, allowSpecial: true)
        let isRelative = ![UInt8(ascii: "/"), UInt8(ascii: "@")].contains(strings[0].first)
        return XenStoreWatch(
            path: path, token: strings[1], home: isRelative ? XenStorePath(homeOf: client.domain) : nil)
    }

    // MARK: Transactions

    private mutating func startTransaction(
        _ id: XenStoreConnectionID, _ client: XenStoreIdentity, isNested: Bool
    ) throws(XenStoreFailure) -> [UInt8] {
        guard !isNested else { throw .busy }
        if !client.isControl {
            let count = connections(of: client.domain).values.reduce(0) { $0 + $1.transactions.count }
            guard count < limits.transactions else { throw .noSpace }
        }
        let number = newTransactionID(of: id)
        let limit = client.isControl ? Int.max : limits.transactionNodes
        connections[id]?.transactions[number] = XenStoreTransactionLog(limit: limit)
        return Array("\(number)\0".utf8)
    }

    private mutating func endTransaction(
        _ request: XenStoreMessage, _ id: XenStoreConnectionID, _ client: XenStoreIdentity,
        _ transaction: inout XenStoreTransactionLog?
    ) throws(XenStoreFailure) -> [UInt8] {
        guard let ended = transaction else { throw .notFound }
        switch request.payload {
        case Array("T\0".utf8): try nodes.commit(ended, by: client)
        case Array("F\0".utf8): break
        default:
            connections[id]?.transactions[request.transactionID] = ended
            throw .invalid
        }
        return Self.done
    }

    // MARK: Domains

    /// True for the number of a domain that is not the control domain.
    static func isOrdinary(_ domain: DomainID) -> Bool { domain != 0 && domain < firstReservedDomain }

    private mutating func performOnDomain(
        _ type: XenStoreRequestType, _ payload: ArraySlice<UInt8>
    ) throws(XenStoreFailure) -> [UInt8] {
        let strings = xenStoreStrings(payload)
        let expected =
            switch type {
            case .introduce: 3
            case .setTarget: 2
            default: 1
            }
        guard strings.count >= expected, let domain = xenStoreNumber(strings[0], as: DomainID.self) else {
            throw .invalid
        }
        switch type {
        case .getDomainPath:
            return Array("\(XenStorePath(homeOf: domain))\0".utf8)
        case .isDomainIntroduced:
            let isIntroduced = domain == Self.ownDomain || introducedDomains.contains(domain)
            return Array(isIntroduced ? "T\0".utf8 : "F\0".utf8)
        case .introduce:
            // The frame and port of a shared ring, which does not exist here.
            guard Self.isOrdinary(domain), xenStoreNumber(strings[1], as: UInt64.self) != nil,
                let port = xenStoreNumber(strings[2], as: UInt32.self), port > 0
            else { throw .invalid }
            introduce(domain)
        case .release:
            try requireIntroduced(domain)
            release(domain)
        case .setTarget:
            guard let target = xenStoreNumber(strings[1], as: DomainID.self) else { throw .invalid }
            try requireIntroduced(domain)
            try requireIntroduced(target)
            targets[domain] = target
        default:
            try requireIntroduced(domain)
        }
        return Self.done
    }

    private func requireIntroduced(_ domain: DomainID) throws(XenStoreFailure) {
        guard domain != 0 else { throw .invalid }
        guard introducedDomains.contains(domain) else { throw .notFound }
    }

    /// "check", which tells whether the store is consistent, and "help"; nothing else can be controlled here.
    private func control(_ payload: ArraySlice<UInt8>) throws(XenStoreFailure) -> [UInt8] {
        let strings = xenStoreStrings(payload)
        guard strings.count == 1, let command = strings.first else { throw .invalid }
        switch String(decoding: command, as: UTF8.self) {
        case "check":
            guard nodes.isConsistent else { throw .damaged }
            return Self.done
        case "help": return Array("Supported commands:\ncheck\nhelp\n\0".utf8)
        default: throw .invalid
        }
    }

    // MARK: Parts

    /// DOMID_SELF of xen.h.
    private static let ownDomain: DomainID = 0x7FF0
    /// DOMID_FIRST_RESERVED of xen.h: numbers from here on are not domains.
    private static let firstReservedDomain: DomainID = 0x7FF0
    private static let done = Array("OK\0".utf8)

    private func path(
        _ bytes: ArraySlice<UInt8>, _ client: XenStoreIdentity, allowSpecial: Bool
    ) throws(XenStoreFailure) -> XenStorePath {
        try XenStorePath(
            bytes, from: client.domain, limit: client.isControl ? .max : limits.pathLength, allowSpecial: allowSpecial)
    }
}
