// SPDX-License-Identifier: BSD-2-Clause
// One change of the backend's node, made completely or not at all.

/// What to write to the backend's node in one transaction.
///
/// The transaction first reads the node's `state` and `online`. Unless they equal `replacing` and `isOnline`, nothing
/// is written, the transaction is aborted, and the values that were read are the answer. So a deleted node is never
/// created again, and what the toolstack wrote in the meantime is never overwritten. A transaction that conflicts is
/// tried again from its beginning.
public struct StoreUpdate: Equatable, Sendable {
    /// A key relative to the backend's node, with its new value or removed.
    public enum Entry: Equatable, Sendable {
        /// Sets the key.
        case write(String, String)
        /// Removes the key, which may be missing already.
        case remove(String)
    }

    /// The value that `state` must have.
    public let replacing: XenbusState
    /// The value that `online` must have; a missing key counts as true, as in `BackendNode`.
    public let isOnline: Bool
    /// The keys to change, in order.
    public let entries: [Entry]
    /// Text for the key `error/<backend path>/error` below the backend's home, written in the same transaction. It must
    /// be logged too, whether or not the transaction takes effect. Printable ASCII, at most 512 bytes.
    public let error: String?
    /// The new value of `state`; nil leaves it alone. It is written even if it is the same: watchers then read the node
    /// again.
    public let state: XenbusState?

    /// A change of a node in state `replacing`. `state` is written last.
    public init(
        replacing: XenbusState, isOnline: Bool = true, entries: [Entry] = [], error: String? = nil,
        state: XenbusState? = nil
    ) {
        self.replacing = replacing
        self.isOnline = isOnline
        self.entries = entries + (state.map { [.write(BackendKey.state, $0.text)] } ?? [])
        self.error = error
        self.state = state
    }
}
