// SPDX-License-Identifier: BSD-2-Clause
// What a worker counts, for monitoring: small, asked of all workers at once, and without a call of the plugin.
import BlockQueue
import Support
import Xen
import XenBus

extension ControlService {
    /// The powers of two, in ns, at which latencies are counted: 16.4 µs to 8.6 s.
    private static var powers: ClosedRange<Int> { 14...33 }

    /// Counters, histograms and state. Latencies are cumulative: `buckets[n]` is how many were less than 2^(`first_power` + n) ns;
    /// there are none where nothing was counted.
    func metrics(_ machine: VBDMachine) -> JSON {
        let statistics = disk.statistics
        let counters = QueueCounter.allCases.map { counter -> JSON.Member in
            (counter.name, .integer(statistics.reduce(0) { $0 &+ $1.value(counter) }))
        }
        let latencies = LatencyClass.allCases.map { latency -> JSON.Member in
            var all = LatencyHistogram()
            for queue in statistics { all.merge(queue.histogram(latency)) }
            let count = all.total
            let buckets = count == 0 ? [] : all.counts(below: Self.powers)
            return (
                latency.name,
                .object([("count", .integer(count)), ("buckets", .array(buckets.map { .integer($0) }))])
            )
        }
        let errors = disk.storageErrors.map { entry -> JSON in
            .array([.string("\(entry.operation)"), .integer(entry.code), .integer(entry.count)])
        }
        let info = disk.device?.info
        return .object([
            ("counters", .object(counters)), ("first_power", .integer(Self.powers.lowerBound)),
            ("latency", .object(latencies)), ("errors", .array(errors)),
            ("last_error_time", disk.lastStorageError.map { .integer($0.time) } ?? .null),
            ("in_flight", .integer(disk.requestsInFlight)), ("held", .integer(disk.heldRequests)),
            ("queues", .integer(disk.queues.count)), ("connected", .bool(disk.isConnected)),
            ("paused", .bool(disk.isPauseWanted)), ("stalled", .bool(!stalls.isEmpty)),
            ("sectors", info.map { .integer($0.sectorCount) } ?? .null),
            ("read_only", disk.device.map { .bool($0.isReadOnly) } ?? .null),
            ("limits", .object(disk.limitRates.map { ($0.name, .integer($0.perSecond)) })),
        ])
    }
}

// The names of cases, made once: the runtime looks each of them up whenever it is to print one.

extension QueueCounter {
    private static let names = allCases.map { "\($0)" }
    /// As it is told.
    var name: String { Self.names[rawValue] }
}

extension LatencyClass {
    private static let names = allCases.map { "\($0)" }
    /// As it is told.
    var name: String { Self.names[rawValue] }
}
