// SPDX-License-Identifier: BSD-2-Clause
// What a frontend asks for when it connects.
public import Blkif

/// How the frontend names the pages of its ring in XenStore.
public enum RingScheme: String, Sendable, CaseIterable {
    /// As Linux: "ring-ref" for one page, "ring-page-order" with "ring-ref0" and so on for more.
    case automatic
    /// "ring-page-order" and "ring-ref0" even for one page.
    case pageOrder = "page-order"
    /// "ring-page-order" = 0 beside a plain "ring-ref"; for one page only.
    case pageOrderZero = "page-order-zero"
    /// The deprecated "num-ring-pages" with "ring-ref0" and so on.
    case pageCount = "page-count"
    /// Both schemes at once, as blkif.h note 3 asks of frontends.
    case both
}

/// What the frontend writes to "protocol".
public enum ProtocolKey: Sendable, Equatable {
    /// The name of the ring's ABI.
    case ofABI
    /// No key at all.
    case absent
    /// Any text, such as "native" or an invalid one.
    case text(String)
}

/// When pages are granted to the backend.
public enum GrantPolicy: String, Sendable, CaseIterable {
    /// Each page of a request is granted for that request, and the grant ends when the response arrives. This is what
    /// blkfront does without feature-persistent. A backend that still uses the page afterwards is detected.
    case perRequest = "per-request"
    /// All pages are granted once, for reading and writing, and stay granted until the device is closed.
    case pooled
}

/// What a frontend asks for. The defaults are those of Linux's blkfront, without persistent grants.
public struct FrontOptions: Sendable {
    /// Pages of each ring, a power of two from 1 to 32. Like Linux, this frontend reduces the number to
    /// max-ring-page-order, unless ``insistOnRingPages`` is set.
    public var ringPages = 1
    /// Uses ``ringPages`` whatever the backend offers.
    public var insistOnRingPages = false
    /// The keys that name the ring's pages.
    public var ringScheme = RingScheme.automatic
    /// The layout of the ring.
    public var abi = RingABI.native
    /// The key that tells the backend the layout.
    public var protocolKey = ProtocolKey.ofABI
    /// Number of queues; reduced to multi-queue-max-queues unless ``insistOnQueues`` is set.
    public var queues = 1
    /// Uses ``queues`` whatever the backend offers.
    public var insistOnQueues = false
    /// Initial value of the free-running indices of every ring.
    public var startIndex: UInt32 = 0
    /// Writes feature-persistent=1. The backend may then keep pages mapped, so grants are pooled whatever ``grants``
    /// is.
    public var offersPersistentGrants = false
    /// When pages are granted.
    public var grants = GrantPolicy.perRequest
    /// The most pages of a read or write, if the backend takes as many; up to 11 there are no indirect requests. The default
    /// is Linux's (xen_blkfront.max_indirect_segments).
    public var indirectSegments = 32
    /// Writes feature-large-sector-size=1: sectors may then be larger than 512 bytes in all units.
    public var largeSectors = false
    /// Writes state Connected together with the ring's keys, as MiniOS does, instead of Initialised.
    public var connectsDirectly = false
    /// The most requests in flight in each queue; nil for as many as the ring has slots.
    public var requestsPerQueue: Int?
    /// A response whose padding is not zero ends the device: it leaks the backend's memory (XSA-216).
    public var verifiesPadding = true
    /// The longest time for each step of the backend, in milliseconds.
    public var timeout = 10_000

    /// The defaults.
    public init() {}

    /// True if pages are granted once for all requests.
    var poolsGrants: Bool { grants == .pooled || offersPersistentGrants }

    /// The text for "protocol"; nil for no key.
    var protocolText: String? {
        switch protocolKey {
        case .absent: return nil
        case .text(let text): return text
        case .ofABI:
            switch abi {
            case .x86_32: return "x86_32-abi"
            case .x86_64: return "x86_64-abi"
            case .native:
                #if arch(arm64)
                    return "arm-abi"
                #else
                    return "x86_64-abi"
                #endif
            }
        }
    }

    /// A message about the first rule that the options break; nil if they break none.
    var complaint: String? {
        if ringPages < 1 || ringPages > BlkifLimits.ringPages || ringPages & (ringPages - 1) != 0 {
            return "ring pages must be 1, 2, 4, 8, 16 or 32, not \(ringPages)"
        }
        if ringScheme == .pageOrderZero && ringPages != 1 { return "the page-order-zero scheme is for one page only" }
        if queues < 1 || queues > 64 { return "queues must be 1 to 64, not \(queues)" }
        if indirectSegments < 0 || indirectSegments > Int(BlkifLimits.mostIndirectSegments) {
            return "pages of an indirect request must be at most 4096, not \(indirectSegments)"
        }
        if let requestsPerQueue, requestsPerQueue < 1 { return "at least one request must be possible" }
        return nil
    }
}
