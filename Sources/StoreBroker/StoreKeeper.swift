// SPDX-License-Identifier: BSD-2-Clause
// The keeper: holds the connection to XenStore, and does for a worker what StorePolicy allows.
package import Base
import CLinux
import Glibc
package import Support
package import Xen
import XenBus

/// Serves one worker until one of them or XenStore is gone. One thread.
package final class StoreKeeper {
    private let store: any XenStore
    private let calls: Descriptor
    private let events: Descriptor
    private let log: Log
    private let journal: JournalSpace?
    private var policy: StorePolicy
    /// Transactions that the worker has begun: at most as many as one that behaves has.
    private var transactions: Set<UInt32> = []
    /// Watches by their tokens.
    private var watches: [String: String] = [:]
    /// Tokens of watches that have fired and that the worker was not told of: one event stands for all.
    private var fired: Set<String> = []

    private static var mostTransactions: Int { 2 }
    private static var mostWatches: Int { 4 }
    private static var longestToken: Int { 64 }

    /// A keeper of the VBD at `backendPath`, for the worker at the other ends of the sockets.
    package init(
        _ store: any XenStore, backendPath: String, calls: Descriptor, events: Descriptor,
        journal: JournalSpace? = nil, log: Log
    ) {
        self.journal = journal
        self.store = store
        self.calls = calls
        self.events = events
        self.log = log
        policy = StorePolicy(backendPath: backendPath)
    }

    /// Returns when the worker has ended, or XenStore has.
    package func run() {
        while true {
            var entries = [
                pollfd(fd: calls.raw, events: Int16(POLLIN), revents: 0),
                pollfd(fd: store.watchFileDescriptor, events: Int16(POLLIN), revents: 0),
                // Its end is the worker's; room for an event matters only while one waits.
                pollfd(fd: events.raw, events: fired.isEmpty ? 0 : Int16(POLLOUT), revents: 0),
                // The worker finds that its sockets have ended.
                pollfd(fd: store.endDescriptor, events: 0, revents: 0),
            ]
            // The array outlives the call, which writes no more than its elements.
            if unsafe poll(&entries, nfds_t(entries.count), -1) < 0 {
                if errno == EINTR { continue }
                return
            }
            if entries[3].revents != 0 { return }
            do throws(OperationError) {
                if entries[1].revents != 0 { try takeEvents() }
            } catch {
                return
            }
            sendEvents()
            if entries[0].revents != 0, !serve() { return }
        }
    }

    // MARK: Events

    private func takeEvents() throws(OperationError) {
        while let event = try store.nextWatchEvent() {
            if watches[event.token] != nil { fired.insert(event.token) }
        }
    }

    private func sendEvents() {
        for token in fired {
            let bytes = BrokerRequest(.watch, path: watches[token] ?? "", value: Array(token.utf8)).bytes
            let sent = unsafe bytes.withUnsafeBytes {
                unsafe send(events.raw, $0.baseAddress, $0.count, Int32(MSG_NOSIGNAL) | Int32(MSG_DONTWAIT))
            }
            if sent < 0 && errno == EAGAIN { return }
            fired.remove(token)
        }
    }

    // MARK: Calls

    /// False when the worker is gone.
    private func serve() -> Bool {
        var buffer = [UInt8](repeating: 0, count: BrokerRequest.capacity)
        let count = unsafe buffer.withUnsafeMutableBytes { unsafe recv(calls.raw, $0.baseAddress, $0.count, 0) }
        if count < 0 && (errno == EINTR || errno == EAGAIN) { return true }
        guard count > 0 else { return false }
        let reply: BrokerReply
        if let request = BrokerRequest(buffer[..<count]) {
            do throws(OperationError) {
                reply = BrokerReply(0, try answer(request))
            } catch {
                reply = BrokerReply(error.code == 0 ? EIO : error.code)
            }
        } else {
            refuse("a message that is no request")
            reply = BrokerReply(EINVAL)
        }
        let bytes = reply.bytes
        return unsafe bytes.withUnsafeBytes {
            unsafe send(calls.raw, $0.baseAddress, $0.count, Int32(MSG_NOSIGNAL))
        } == bytes.count
    }

    private func answer(_ request: BrokerRequest) throws(OperationError) -> [UInt8] {
        let path = request.path
        let transaction = XenStoreTransaction(id: request.transaction)
        if request.transaction != 0 && !transactions.contains(request.transaction) {
            throw refusal("of a transaction that it has not begun")
        }
        switch request.operation {
        case .read:
            if policy.frontendPath == nil { learnFrontend() }
            guard policy.allowsReading(path) else { throw refusal("to read \(path)") }
            return try store.read(path, in: transaction)
        case .readAll: return try readAll(request)
        case .write:
            guard policy.allowsWriting(path) else { throw refusal("to write \(path)") }
            try store.write(path, request.value, in: transaction)
        case .remove:
            guard policy.allowsRemoving(path) else { throw refusal("to remove \(path)") }
            try store.remove(path, in: transaction)
        case .start:
            guard transactions.count < Self.mostTransactions else { throw refusal("for one more transaction") }
            let begun = try store.startTransaction()
            transactions.insert(begun.id)
            return littleEndian(begun.id)
        case .commit:
            guard transactions.remove(request.transaction) != nil else { throw refusal("to end no transaction") }
            return [try store.commit(transaction) ? 1 : 0]
        case .abort:
            guard transactions.remove(request.transaction) != nil else { throw refusal("to end no transaction") }
            store.abort(transaction)
        case .reserve:
            guard let journal, request.value.count == 4 else { throw refusal("to size a journal that there is not") }
            let bytes = Int(number(request.value[...]))
            guard bytes <= journal.most else { throw refusal("for \(bytes) bytes of journal, of \(journal.most)") }
            try journal.reserve(bytes)
        case .watch: try watch(request)
        case .unwatch:
            let token = String(decoding: request.value, as: UTF8.self)
            guard watches[token] == path else { throw refusal("to end a watch of \(path)") }
            try store.unwatch(path, token: token)
            watches[token] = nil
            fired.remove(token)
        }
        return []
    }

    private func readAll(_ request: BrokerRequest) throws(OperationError) -> [UInt8] {
        if policy.frontendPath == nil { learnFrontend() }
        let keys = request.value.split(separator: 0, omittingEmptySubsequences: false).map {
            String(validating: $0, as: UTF8.self)
        }
        guard keys.count <= BrokerValues.mostKeys else { throw refusal("for \(keys.count) keys of \(request.path)") }
        var allowed: [String] = []
        for key in keys {
            guard let key, policy.allowsReading("\(request.path)/\(key)") else {
                throw refusal("to read \(request.path)/\(key ?? "what is no name")")
            }
            allowed.append(key)
        }
        return BrokerValues.bytes(try store.values(of: allowed, below: request.path))
    }

    private func watch(_ request: BrokerRequest) throws(OperationError) {
        if policy.frontendPath == nil { learnFrontend() }
        guard policy.allowsWatching(request.path), watches.count < Self.mostWatches,
            request.value.count <= Self.longestToken,
            let token = String(validating: request.value, as: UTF8.self), watches[token] == nil
        else { throw refusal("to watch \(request.path)") }
        try store.watch(request.path, token: token)
        watches[token] = request.path
    }

    /// The frontend is the one that the backend's node names: a key that the toolstack writes and a worker cannot.
    private func learnFrontend() {
        do throws(OperationError) {
            let backend = policy.backendPath
            guard let path = try store.text("\(backend)/\(BackendKey.frontend)"),
                let domain = try store.text("\(backend)/\(BackendKey.frontendID)"),
                path.hasPrefix("/local/domain/\(domain)/"), !domain.isEmpty
            else { return }
            policy.frontendPath = path
        } catch {}
    }

    private func refusal(_ what: String) -> OperationError {
        refuse(what)
        return OperationError(EPERM, what)
    }

    private func refuse(_ what: String) {
        let text = String(what.unicodeScalars.prefix(200).map { $0.value < 0x20 ? "?" : Character($0) })
        log.error("XenStore: the worker asks \(text), which is not its own: refused")
    }
}
