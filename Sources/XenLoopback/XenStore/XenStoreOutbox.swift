// SPDX-License-Identifier: BSD-2-Clause
// The messages that wait to be sent to one client: bounded, and with no watch event in it twice.

/// Messages on their way to a client.
struct XenStoreOutbox: Sendable {
    /// The memory cost of a waiting message besides its bytes.
    private static let overhead = 64

    private var messages: [XenStoreMessage] = []
    private var head = 0
    private var sentOfHead = 0
    private var waitingEvents: Set<[UInt8]> = []
    /// Memory that waiting messages take.
    private(set) var byteCount = 0

    var isEmpty: Bool { head == messages.count }

    /// Adds a reply.
    mutating func append(_ message: XenStoreMessage) {
        messages.append(message)
        byteCount += message.byteCount + Self.overhead
    }

    /// Adds a watch event unless the same one is still waiting. False if more than `limit` bytes would wait.
    ///
    /// Special events are never merged: each one announces another domain.
    mutating func appendEvent(_ payload: [UInt8], limit: Int) -> Bool {
        let isSpecial = payload.first == UInt8(ascii: "@")
        if !isSpecial && waitingEvents.contains(payload) { return true }
        let message = XenStoreMessage(
            type: XenStoreMessage.watchEventType, requestID: 0, transactionID: 0, payload: payload)
        guard byteCount + message.byteCount + Self.overhead <= limit else { return false }
        if !isSpecial { waitingEvents.insert(payload) }
        append(message)
        return true
    }

    /// The next bytes to send, about `limit` of them.
    func bytes(about limit: Int) -> [UInt8] {
        var bytes: [UInt8] = []
        for message in messages[head...] {
            message.serialize(into: &bytes)
            if bytes.count - sentOfHead >= limit { break }
        }
        bytes.removeFirst(min(sentOfHead, bytes.count))
        return bytes
    }

    /// Forgets the next `count` bytes, which were sent.
    mutating func didSend(_ count: Int) {
        sentOfHead += count
        while head < messages.count, sentOfHead >= messages[head].byteCount {
            let message = messages[head]
            sentOfHead -= message.byteCount
            byteCount -= message.byteCount + Self.overhead
            if message.type == XenStoreMessage.watchEventType { waitingEvents.remove(message.payload) }
            head += 1
        }
        if head == messages.count {
            self = XenStoreOutbox()
        } else if head > 256 && head > messages.count / 2 {
            messages.removeSubrange(..<head)
            head = 0
        }
    }
}
