// SPDX-License-Identifier: BSD-2-Clause
// The limits of one domain in the store; the numbers are those of Xen's xenstored.

/// Limits of every domain except the control domain, unless marked "for all".
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
    /// For all: bytes that may wait for a client to read them; a watch event beyond that closes the connection.
    var outputBytes = 1 << 20
    /// For all: while this many bytes wait, the client's next request has to wait too.
    var outputBytesToPause = 1 << 16
}
