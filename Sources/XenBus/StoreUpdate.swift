// SPDX-License-Identifier: BSD-2-Clause
// One change of the backend's node, made as a whole or not at all.

/// What to write to the backend's node in one transaction.
///
/// The transaction first reads `state` and `online` of the node. Unless they are `replacing` and `isOnline`, nothing is
/// written, the transaction is aborted and what was read is the answer: a deleted node is never made again, and what the
/// toolstack wrote in between is never overwritten. A transaction that conflicts is tried again from its beginning.
public struct StoreUpdate: Equatable, Sendable {
    /// A key relative to the backend's node and its new value, or its end.
    public enum Entry: Equatable, Sendable {
        /// Sets the key.
        case write(String, String)
        /// Removes the key, which may be missing.
        case remove(String)
    }

    /// What must stand in `state`.
    public let replacing: XenbusState
    /// What `online` must say; a missing key says true, as in `BackendNode`.
    public let isOnline: Bool
    /// Keys to change, in order.
    public let entries: [Entry]
    /// Text for the key `error/<backend path>/error` of the backend's home, written in the same transaction. It belongs
    /// into the log too, whether the transaction takes effect or not. Printable ASCII, at most 512 bytes.
    public let error: String?
    /// What stands in `state` afterwards. It is written even where it is the same: watchers then read again.
    public let state: XenbusState?

    /// A change of a node in state `replacing`; `state` is written last.
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
