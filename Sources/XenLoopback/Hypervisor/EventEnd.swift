// SPDX-License-Identifier: BSD-2-Clause
// One end of an event channel: the pending and mask bits that both sides share, and which side is woken.
//
// Notifying sets the peer's pending bit. It makes a system call only if the bit was clear and the port was not masked,
// the condition under which Xen would interrupt a virtual CPU (evtchn_2l_set_pending).
import Base
import Xen

/// An end of an event channel in the process that owns it. Use from one thread, except ``isPending``.
final class EventEnd {
    let port: EventPort
    private let page: SharedRegion
    private let connection: HypervisorConnection
    private let ownWord: Int
    private let peerWord: Int
    private var peer: Descriptor?
    private var peerLink: UInt32

    init(
        port: EventPort, end: Int, page: SharedRegion, connection: HypervisorConnection, peer: Descriptor?,
        link: UInt32
    ) {
        self.port = port
        self.page = page
        self.connection = connection
        self.peer = peer
        peerLink = link
        ownWord = EventChannelLayout.wordOffset(end: end)
        peerWord = EventChannelLayout.wordOffset(end: 1 - (end & 1))
    }

    /// Odd while the channel has two ends; changes with every bind and close.
    var link: UInt32 { page.load32(at: EventChannelLayout.linkOffset) }

    /// Pending and not masked.
    var isPending: Bool {
        page.load32(at: ownWord) & (EventChannelLayout.pending | EventChannelLayout.masked)
            == EventChannelLayout.pending
    }

    /// Sends an event; dropped without an error while there is no other end, as in Xen.
    ///
    /// If the other end was bound again in the meantime, the wake-up may have gone to the old peer, so the new one is
    /// woken too. This is repeated only a few times, since the other side can write the link.
    func notify() throws(OperationError) {
        var current = link
        for attempt in 0..<4 where current & 1 == 1 {
            if current != peerLink { try findPeer() }
            guard let peer else { return }
            let before = page.setBits32(EventChannelLayout.pending, at: peerWord)
            let both = EventChannelLayout.pending | EventChannelLayout.masked
            if before & both == 0 || attempt > 0 { peer.signal() }
            current = link
            if current == peerLink { return }
        }
    }

    /// Asks the broker whom to wake, because the other end was bound since the last event.
    private func findPeer() throws(OperationError) {
        let answer = try connection.call(.peer, [port], for: "find the other end of event channel \(port)")
        peer = answer.descriptors.first
        peerLink = answer.word(0)
    }

    /// Clears the pending bit of a port that is not masked, and masks it if asked; false if nothing was pending.
    func take(masking: Bool) -> Bool {
        if !isPending { return false }
        if masking {
            let pending = EventChannelLayout.pending
            if page.exchange32(from: pending, to: EventChannelLayout.masked, at: ownWord) == pending { return true }
            _ = page.setBits32(EventChannelLayout.masked, at: ownWord)
        }
        return page.clearBits32(EventChannelLayout.pending, at: ownWord) & EventChannelLayout.pending != 0
    }

    /// Masks the port: its events are kept and wake nobody.
    func mask() {
        _ = page.setBits32(EventChannelLayout.masked, at: ownWord)
    }

    /// Unmasks the port; true if an event is pending for which nobody was woken.
    func unmask() -> Bool {
        let before = page.clearBits32(EventChannelLayout.masked, at: ownWord)
        let both = EventChannelLayout.masked | EventChannelLayout.pending
        return before & both == both
    }
}
