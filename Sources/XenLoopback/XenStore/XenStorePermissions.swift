// SPDX-License-Identifier: BSD-2-Clause
// Who may do what with a node.
import Xen

/// What a client may do with one node.
struct XenStoreRights: OptionSet, Sendable {
    let rawValue: UInt8
    static let read = XenStoreRights(rawValue: 1)
    static let write = XenStoreRights(rawValue: 2)
    static let own = XenStoreRights(rawValue: 4)
    static let all: XenStoreRights = [.read, .write, .own]

    init(rawValue: UInt8) {
        self.rawValue = rawValue
    }

    init(_ entry: XenStorePermission) {
        self = []
        if entry.read { insert(.read) }
        if entry.write { insert(.write) }
    }
}

/// The domain that a request is made for.
struct XenStoreIdentity: Sendable {
    let domain: DomainID
    /// A domain whose rights it also has: SET_TARGET.
    var target: DomainID?

    /// The control domain, which may do all.
    static let control = XenStoreIdentity(domain: 0)

    var isControl: Bool { domain == 0 }

    fileprivate func `is`(_ other: DomainID) -> Bool { other == domain || other == target }
}

/// The permissions of a node: an owner, everybody's rights, and domains with rights of their own.
struct XenStoreNodePermissions: Equatable, Sendable {
    /// The owner, and the rights of everybody without an entry.
    var first: XenStorePermission
    /// Domains with an entry of their own; the first entry of a domain counts.
    var others: [XenStorePermission]

    /// For the control domain only.
    static let controlOnly = XenStoreNodePermissions(ownedBy: 0)

    /// For the owner, and for others as they are listed.
    init(ownedBy owner: DomainID, others: [XenStorePermission] = []) {
        first = XenStorePermission(domain: owner, read: false, write: false)
        self.others = others
    }

    /// Reads "n0", "r1", "w2", "b3". Throws EINVAL.
    init(_ strings: ArraySlice<ArraySlice<UInt8>>) throws(XenStoreFailure) {
        var entries: [XenStorePermission] = []
        for string in strings {
            guard let letter = string.first, let domain = xenStoreNumber(string.dropFirst(), as: DomainID.self) else {
                throw .invalid
            }
            let (read, write): (Bool, Bool)
            switch letter {
            case UInt8(ascii: "n"): (read, write) = (false, false)
            case UInt8(ascii: "r"): (read, write) = (true, false)
            case UInt8(ascii: "w"): (read, write) = (false, true)
            case UInt8(ascii: "b"): (read, write) = (true, true)
            default: throw .invalid
            }
            entries.append(XenStorePermission(domain: domain, read: read, write: write))
        }
        guard let first = entries.first else { throw .invalid }
        self.first = first
        others = Array(entries.dropFirst())
    }

    var owner: DomainID { first.domain }
    var count: Int { 1 + others.count }

    /// The form that ``init(_:)`` reads, each entry with a NUL behind it.
    var payload: [UInt8] {
        ([first] + others).flatMap { entry in
            let letter = entry.read ? (entry.write ? "b" : "r") : (entry.write ? "w" : "n")
            return Array("\(letter)\(entry.domain)\0".utf8)
        }
    }

    /// The owner and the control domain may do everything; for others, the domain's first entry counts, or everybody's
    /// rights.
    func rights(of client: XenStoreIdentity) -> XenStoreRights {
        if client.isControl || client.is(owner) { return .all }
        return XenStoreRights(others.first { client.is($0.domain) } ?? first)
    }

    /// The permissions of a new node that `client` makes below a node with these permissions.
    func inherited(by client: XenStoreIdentity) -> XenStoreNodePermissions {
        var copy = self
        if !client.isControl { copy.first.domain = client.domain }
        return copy
    }
}
