// SPDX-License-Identifier: BSD-2-Clause
// Fair shares of a limit between the queues of a disk: a queue that got more than another one which waits lets it go first.
import Synchronization

/// What each queue of a disk has had of its limits, and which of them wait. Any thread.
///
/// Start-time fair queueing with costs in place of lengths. What is kept is a hint: a value that is a moment old costs one of
/// the queues a millisecond and changes nothing of the limit.
final class QueueShares: Sendable {
    private static var most: Int { 64 }
    private let queueCount: Int
    /// What a queue has had, in ticks at the limit.
    private let served: InlineArray<64, Atomic<UInt64>>
    /// Until when it waits, in ns of the monotonic clock; 0: it does not.
    private let until: InlineArray<64, Atomic<UInt64>>
    /// The limit that it waits for.
    private let limit: InlineArray<64, Atomic<Int>>
    /// Requests that wait on its ring.
    private let requests: InlineArray<64, Atomic<Int>>
    /// The largest of ``served``.
    private let front = Atomic<UInt64>(0)

    /// How long a queue lets others go first: 1 ms, in ns.
    static var pause: UInt64 { 1_000_000 }
    /// A queue that has not come back so long after its time does not count: 100 ms, in ns. It may have been paused.
    private static var patience: UInt64 { 100_000_000 }
    /// How much more than another queue it may have had: 10 ms of the limit.
    private static var lead: UInt64 { LimitTime.second / 100 }
    /// How much less than the first one: 200 ms. What it did not ask for before is not made up for.
    private static var arrears: UInt64 { LimitTime.second / 5 }

    init(queueCount: Int) {
        self.queueCount = min(max(queueCount, 1), Self.most)
        served = InlineArray { _ in Atomic(0) }
        until = InlineArray { _ in Atomic(0) }
        limit = InlineArray { _ in Atomic(0) }
        requests = InlineArray { _ in Atomic(0) }
    }

    /// The limit for which another queue waits that has had less; nil: the queue may go on.
    func mustYield(_ queue: Int, _ limits: InlineArray<4, Int>, now: UInt64) -> Int? {
        guard queueCount > 1, queue < queueCount else { return nil }
        let own = served[queue].load(ordering: .relaxed)
        for other in 0..<queueCount where other != queue && waits(other, now) {
            let wanted = limit[other].load(ordering: .relaxed)
            guard limits.indices.contains(where: { limits[$0] == wanted }) else { continue }
            // They wrap around.
            let difference = Int64(bitPattern: own &- served[other].load(ordering: .relaxed))
            if difference > Int64(Self.lead) { return wanted }
        }
        return nil
    }

    /// A queue has got `ticks`.
    func count(_ ticks: UInt64, for queue: Int) {
        guard queueCount > 1, queue < queueCount else { return }
        let first = front.load(ordering: .relaxed)
        var own = served[queue].load(ordering: .relaxed)
        if Int64(bitPattern: first &- own) > Int64(Self.arrears) { own = first &- Self.arrears }
        own &+= min(ticks, 1 << 61)
        served[queue].store(own, ordering: .relaxed)
        if Int64(bitPattern: own &- first) > 0 { front.store(own, ordering: .relaxed) }
    }

    func set(_ queue: Int, until moment: UInt64, limit index: Int, requests count: Int) {
        guard queue < queueCount else { return }
        limit[queue].store(index, ordering: .relaxed)
        requests[queue].store(count, ordering: .relaxed)
        until[queue].store(moment, ordering: .relaxed)
    }

    func waitingRequests(now: UInt64) -> Int {
        (0..<queueCount).reduce(0) { $0 + (waits($1, now) ? requests[$1].load(ordering: .relaxed) : 0) }
    }

    private func waits(_ queue: Int, _ now: UInt64) -> Bool {
        let moment = until[queue].load(ordering: .relaxed)
        return moment != 0 && now < moment &+ Self.patience
    }
}
