// SPDX-License-Identifier: BSD-2-Clause
// One node of the store, and who is told when it changes.

/// A node; its path is its key in the store.
struct XenStoreNode: Sendable {
    var value: [UInt8] = []
    var permissions: XenStoreNodePermissions
    /// Names of the children, in the order in which they were made.
    var children: [String] = []
    /// Changes with every change of the members above.
    var generation: UInt64 = 0

    /// The node's size as xenstored counts it: a header of 16 bytes, 8 per permission, the value, and each child's name
    /// with a NUL.
    var byteCount: Int {
        children.reduce(16 + 8 * permissions.count + value.count) { $0 + $1.utf8.count + 1 }
    }

    /// The names of the children, each with a NUL behind it.
    var childList: [UInt8] {
        var list: [UInt8] = []
        for name in children {
            list.append(contentsOf: name.utf8)
            list.append(0)
        }
        return list
    }

    mutating func apply(_ change: (inout XenStoreNode) -> Void) { change(&self) }
}

/// Which watches see a change.
enum XenStoreReach: Sendable {
    /// Only those on this node: it was removed together with a parent, whose watches are told about the parent.
    case nodeOnly
    /// Those on the node and on all its parents.
    case nodeAndParents
}

/// A change that watches are told of.
struct XenStoreChange: Sendable {
    let path: XenStorePath
    let reach: XenStoreReach
    /// The event goes to clients that may read one of these: the node before or after the change, or its parent, which
    /// shows the name anyway.
    let audience: [XenStoreNodePermissions]
}
