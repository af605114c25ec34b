// SPDX-License-Identifier: BSD-2-Clause
// The names of all metrics: https://prometheus.io/docs/practices/naming/ has the conventions.

/// Counters of workers, as families: a counter of one, or each under a label.
struct CounterFamily {
    let family: MetricFamily
    /// Each counter's name, its label, and what its value is multiplied by.
    let counters: [(name: String, label: [UInt8])]
    private let scale: Scale

    /// What a counter counts.
    enum Scale {
        case things
        case sectors
        case microseconds
    }

    init(_ name: String, unit: String? = nil, counting scale: Scale = .things, _ help: String, of counter: String) {
        family = MetricFamily(name, .counter, unit: unit, help)
        counters = [(counter, [])]
        self.scale = scale
    }

    init(_ name: String, _ help: String, by label: String, _ counters: KeyValuePairs<String, String>) {
        family = MetricFamily(name, .counter, help)
        self.counters = counters.map { ($0.value, MetricsText.label(label, $0.key)) }
        scale = .things
    }

    /// A counter's value in the unit of the family.
    enum Value {
        case number(UInt64)
        case seconds([UInt8])
    }

    func text(_ value: UInt64) -> Value {
        switch scale {
        case .things: .number(value)
        case .sectors: .number(value &* 512)
        case .microseconds: .seconds(MetricsText.seconds(nanoseconds: value &* 1000))
        }
    }
}

/// All families.
enum MetricsFamilies {
    /// Counters in the order in which they are printed.
    static let counters: [CounterFamily] = [
        CounterFamily("xbb_requests_received", "Requests taken from the ring.", of: "reqs_received"),
        CounterFamily(
            "xbb_requests", "Requests done well.", by: "operation",
            [
                "read": "read_requests", "write": "write_requests", "flush": "flush_requests",
                "discard": "discard_requests", "barrier": "barrier_requests",
            ]),
        CounterFamily(
            "xbb_read_bytes", unit: "bytes", counting: .sectors, "Bytes read by the guest.", of: "read_sectors"),
        CounterFamily(
            "xbb_written_bytes", unit: "bytes", counting: .sectors, "Bytes written by the guest.", of: "write_sectors"),
        CounterFamily(
            "xbb_discarded_bytes", unit: "bytes", counting: .sectors, "Bytes discarded by the guest.",
            of: "discard_sectors"),
        CounterFamily("xbb_responses", "Responses that the guest can see.", of: "reqs_completed"),
        CounterFamily("xbb_responses_written", "Responses written, seen or not.", of: "reqs_queued_for_completion"),
        CounterFamily("xbb_response_errors", "Responses that are errors.", of: "reqs_completed_with_error"),
        CounterFamily(
            "xbb_requests_rejected", "Requests that broke a rule of the protocol.", of: "rejected_requests"),
        CounterFamily("xbb_requests_merged", "Requests that joined others.", of: "requests_merged"),
        CounterFamily(
            "xbb_requests_held", "Requests that had to wait because the storage was full.", of: "held_requests"),
        CounterFamily("xbb_zero_writes", "Writes of zeroes that sent no data (detect-zeroes).", of: "zero_writes"),
        CounterFamily(
            "xbb_requests_throttled", "Requests that waited for a limit of the disk.", of: "throttled_requests"),
        CounterFamily(
            "xbb_throttled_seconds", unit: "seconds", counting: .microseconds,
            "Time that rings waited for a limit of the disk.",
            of: "throttled_microseconds"),
        CounterFamily(
            "xbb_requests_replayed", "Requests of an earlier worker that were done again.", of: "replayed_requests"),
        CounterFamily(
            "xbb_requests_poisoned", "Requests of an earlier worker that were answered with an error.",
            of: "poisoned_requests"),
        CounterFamily("xbb_reqlists", "Request lists sent to the plugin.", of: "total_dispatch"),
        CounterFamily(
            "xbb_reqlist_dispatches", "Request lists by why they were sent.", by: "reason",
            ["full": "forced_dispatch", "ring_empty": "normal_dispatch"]),
        CounterFamily("xbb_reqlists_split", "Request lists done again request by request.", of: "reqlists_split"),
        CounterFamily(
            "xbb_shortages", "Times that a ring waited for something.", by: "resource",
            ["memory": "kva_shortages", "requests": "request_shortages"]),
        CounterFamily("xbb_plugin_requests", "Requests sent to the plugin.", of: "plugin_requests"),
        CounterFamily("xbb_plugin_errors", "Requests that failed in the plugin.", of: "plugin_errors"),
        CounterFamily("xbb_plugin_busy", "Times that the plugin took fewer requests than offered.", of: "plugin_busy"),
        CounterFamily(
            "xbb_plugin_violations", "Calls of the plugin that broke a rule of its interface.", of: "plugin_violations"
        ),
        CounterFamily("xbb_grant_errors", "Grant copies that failed.", of: "grant_errors"),
        CounterFamily("xbb_grant_copy_calls", "Calls for grant copies.", of: "grant_copy_calls"),
        CounterFamily("xbb_grant_copies", "Grant copies, in persistent grants too.", of: "grant_copy_operations"),
        CounterFamily(
            "xbb_mapped_copies", "Grant copies that were none, because the page was mapped.", of: "mapped_copies"),
        CounterFamily("xbb_grants_mapped", "Pages that were mapped to stay so.", of: "grants_mapped"),
        CounterFamily("xbb_grants_unmapped", "Pages that stayed mapped, unmapped again.", of: "grants_unmapped"),
        CounterFamily(
            "xbb_grant_map_errors", "Pages that could not be mapped or unmapped.", of: "grant_map_errors"),
        CounterFamily("xbb_indirect_requests", "Requests with pages of segments.", of: "indirect_requests"),
        CounterFamily("xbb_indirect_pages", "Pages of segments.", of: "indirect_pages"),
        CounterFamily(
            "xbb_events", "Event channel notifications.", by: "direction",
            ["sent": "notifications_sent", "received": "events_received"]),
        CounterFamily("xbb_queue_sleeps", "Times that a queue went to sleep.", of: "sleeps"),
    ]

    static let worker = MetricFamily(
        "xbb_worker_up", .gauge, "1 while a worker serves the disk and answers; absent while its storage is released.")
    static let starts = MetricFamily("xbb_worker_starts", .counter, "Workers that xbbd started for the disk.")
    static let inFlight = MetricFamily("xbb_requests_in_flight", .gauge, "Requests taken and not answered.")
    static let waiting = MetricFamily("xbb_requests_waiting_for_space", .gauge, "Requests that wait for space.")
    static let queues = MetricFamily("xbb_queues", .gauge, "Rings of the guest.")
    static let connected = MetricFamily("xbb_connected", .gauge, "1 while a guest is connected.")
    static let paused = MetricFamily("xbb_paused", .gauge, "1 while the disk is paused.")
    static let stalled = MetricFamily("xbb_stalled", .gauge, "1 while something in the disk does not end.")
    static let readOnly = MetricFamily("xbb_read_only", .gauge, "1 if the guest may not write.")
    static let size = MetricFamily("xbb_size_bytes", .gauge, unit: "bytes", "The size of the disk.")
    static let bytesLimit = MetricFamily(
        "xbb_limit_bytes_per_second", .gauge, "Bytes in a second that the disk is limited to, where it is.")
    static let requestsLimit = MetricFamily(
        "xbb_limit_requests_per_second", .gauge, "Requests in a second that the disk is limited to, where it is.")
    static let storageErrors = MetricFamily(
        "xbb_storage_errors", .counter, "Errors of the storage, by operation and errno.")
    static let lastError = MetricFamily(
        "xbb_last_error_timestamp_seconds", .gauge, unit: "seconds",
        "When the storage failed for the last time, in seconds since 1970; absent where it never did.")
    static let latency = MetricFamily(
        "xbb_request_duration_seconds", .histogram, unit: "seconds",
        "Time from taking a request to its response, of requests done well.")
    static let disk = MetricFamily("xbb_disk", .info, "What the disk is.")
    static let build = MetricFamily("xbb_build", .info, "The version of xbbd.")
    static let disks = MetricFamily("xbb_disks", .gauge, "Disks that xbbd knows.")
    static let gathering = MetricFamily(
        "xbb_gathering_duration_seconds", .gauge, unit: "seconds", "Time that asking all workers took.")

    /// Latency classes, with the counter that has the sum of their times in ns.
    static let operations: [(name: String, sum: String, label: [UInt8])] =
        ["read", "write", "flush", "discard"].map { ($0, "\($0)_ns", MetricsText.label("operation", $0)) }

    /// Every counter of a worker that is printed, where it counts it.
    static let counterNames: [String] = counters.flatMap { $0.counters.map(\.name) } + operations.map(\.sum)
}
