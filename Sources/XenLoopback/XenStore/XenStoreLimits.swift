// SPDX-License-Identifier: BSD-2-Clause
// What one domain may take of the store; the numbers are those of Xen's xenstored.

/// Bounds that hold for every domain but the control domain, except where it says for all.
struct XenStoreLimits: Sendable {
    /// Nodes that a domain may own.
    var nodes = 1000
    /// Watches of all connections of a domain.
    var watches = 128
    /// Transactions that a domain may have open.
    var transactions = 10
    /// Nodes that one transaction may touch.
    var transactionNodes = 1024
    /// Bytes of a node: value, names of the children, permissions.
    var nodeBytes = 2048
    /// Entries of one permission list.
    var permissions = 5
    /// Length of a path, not counted "/local/domain/<domid>/" (XENSTORE_REL_PATH_MAX).
    var pathLength = 2048
    /// Connections that a domain may have.
    var connections = 16
    /// For all: bytes that may wait for a client to read them; one more watch event and the connection is closed.
    var outputBytes = 1 << 20
    /// For all: with so many bytes waiting, the client's next request has to wait too.
    var outputBytesToPause = 1 << 16
}
