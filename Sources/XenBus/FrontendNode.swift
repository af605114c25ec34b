// SPDX-License-Identifier: BSD-2-Clause
// The frontend's node: what a guest says about its rings. Untrusted until it has become a value of these types.

/// The layout of requests and responses in a ring (protocols.h).
public enum RingProtocol: String, Sendable {
    /// 32-bit x86: 4-byte alignment.
    case x86_32 = "x86_32-abi"
    /// 64-bit x86: 8-byte alignment.
    case x86_64 = "x86_64-abi"
    /// ARM, both widths: 8-byte alignment.
    case arm = "arm-abi"

    /// The layouts that a backend on this machine supports.
    public static var supported: [RingProtocol] {
        #if arch(x86_64) || arch(i386)
            [.x86_32, .x86_64]
        #else
            [.arm]
        #endif
    }

    /// The layout of a frontend that names none: 32-bit on x86, as in Linux, QEMU and tapback, contrary to blkif.h.
    public static var assumed: RingProtocol {
        #if arch(x86_64) || arch(i386)
            .x86_32
        #else
            .arm
        #endif
    }
}

/// The most that a frontend may ask for.
public struct FrontendLimits: Equatable, Sendable {
    /// Base-2 logarithm of the largest ring in pages of 4096 bytes.
    public var maximumRingPageOrder: Int
    /// The most queues.
    public var maximumQueueCount: Int

    /// Limits; the order is clamped to 0...5 and the number of queues to 1...64.
    public init(maximumRingPageOrder: Int = 5, maximumQueueCount: Int = 1) {
        self.maximumRingPageOrder = min(max(maximumRingPageOrder, 0), Self.highestRingPageOrder)
        self.maximumQueueCount = min(max(maximumQueueCount, 1), Self.highestQueueCount)
    }

    /// 32 pages: 1024 requests.
    public static let highestRingPageOrder = 5
    /// More threads than any machine gives one disk.
    public static let highestQueueCount = 64
    /// The most pages of a ring.
    public var maximumRingPageCount: Int { 1 << maximumRingPageOrder }
}

/// One ring of the frontend: its pages and its event channel.
public struct FrontendRing: Equatable, Sendable {
    /// Grant references of the pages in order; their number is a power of two, and all are different.
    public let pageReferences: [UInt32]
    /// Port of the frontend's end, 1 to 131071.
    public let eventChannel: UInt32

    /// A ring of `pageReferences`.
    public init(pageReferences: [UInt32], eventChannel: UInt32) {
        self.pageReferences = pageReferences
        self.eventChannel = eventChannel
    }
}

/// A snapshot of the frontend's node.
///
/// Read it in one transaction. The state is not part of it: it arrives as an event.
public struct FrontendNode: Equatable, Sendable {
    /// One per queue, at least one; no page reference and no port occurs twice.
    public let rings: [FrontendRing]
    /// The layout of all rings.
    public let ringProtocol: RingProtocol
    /// The frontend reuses its grants and grants all of them writable.
    public let usesPersistentGrants: Bool
    /// The frontend can handle a `sector-size` above 512.
    public let understandsLargeSectors: Bool
    /// False if the frontend protects itself against this backend.
    public let trustsBackend: Bool

    /// A frontend's description to be written, for tests and for this project's own frontends.
    public init(
        rings: [FrontendRing], ringProtocol: RingProtocol, usesPersistentGrants: Bool = false,
        understandsLargeSectors: Bool = false, trustsBackend: Bool = true
    ) {
        self.rings = rings
        self.ringProtocol = ringProtocol
        self.usesPersistentGrants = usesPersistentGrants
        self.understandsLargeSectors = understandsLargeSectors
        self.trustsBackend = trustsBackend
    }

    /// Last port of an event channel (EVTCHN_FIFO_NR_CHANNELS of event_channel.h).
    static let lastEventChannel: UInt64 = (1 << 17) - 1

    /// Reads the node; `read` returns the value of a key below it, or nil. Throws the first rule that is broken.
    ///
    /// Asks for at most 7 keys and, for each queue, for its ring pages and three more keys.
    public init(limits: FrontendLimits, read: (_ key: String) -> [UInt8]?) throws(NegotiationError) {
        self = try withoutActuallyEscaping(read) { (read) throws(NegotiationError) -> FrontendNode in
            try FrontendNode(limits: limits, NodeReader(value: read))
        }
    }

    /// Every key that a snapshot of a frontend is made of which has as many queues and pages as the values of `known` say,
    /// or one of each where these are missing or break a rule.
    public static func keys(limits: FrontendLimits, known: (_ key: String) -> [UInt8]? = { _ in nil }) -> [String] {
        func number(_ key: String, maximum: Int) -> Int? {
            guard let bytes = known(key) else { return nil }
            do throws(NegotiationError) {
                return Int(try NodeReader.decimal(bytes, key: key, maximum: UInt64(maximum)))
            } catch {
                return nil
            }
        }
        let pages =
            number(FrontendKey.ringPages, maximum: limits.maximumRingPageCount)
            ?? number(FrontendKey.ringPageOrder, maximum: limits.maximumRingPageOrder).map { 1 << $0 } ?? 1
        let queues = number(FrontendKey.queueCount, maximum: limits.maximumQueueCount) ?? 1
        var keys = [
            FrontendKey.ringProtocol, FrontendKey.ringPageOrder, FrontendKey.ringPages, FrontendKey.queueCount,
            FrontendKey.persistent, FrontendKey.largeSectorSize, FrontendKey.trusted,
        ]
        for index in 0..<max(queues, 1) {
            let prefix = queues <= 1 ? "" : FrontendKey.queue(index) + "/"
            keys.append(prefix + FrontendKey.eventChannel)
            if pages <= 1 { keys.append(prefix + FrontendKey.ringReference) }
            keys += (0..<max(pages, 1)).map { prefix + FrontendKey.ringReference + String($0) }
        }
        return keys
    }

    private init(limits: FrontendLimits, _ node: NodeReader) throws(NegotiationError) {
        ringProtocol = try Self.ringProtocol(node)
        let pageCount = try Self.ringPageCount(limits: limits, node)
        let queueCount = try Self.queueCount(limits: limits, node)
        var rings: [FrontendRing] = []
        var references: Set<UInt32> = []
        var ports: Set<UInt32> = []
        for index in 0..<queueCount {
            let prefix = queueCount == 1 ? "" : FrontendKey.queue(index) + "/"
            rings.append(
                try Self.ring(node, prefix: prefix, pageCount: pageCount, references: &references, ports: &ports))
        }
        self.rings = rings
        usesPersistentGrants = try node.flag(FrontendKey.persistent, default: false)
        understandsLargeSectors = try node.flag(FrontendKey.largeSectorSize, default: false)
        trustsBackend = try node.flag(FrontendKey.trusted, default: true)
    }

    /// The keys and values that describe this frontend, relative to its node.
    public var entries: [(key: String, value: String)] {
        var entries = [(FrontendKey.ringProtocol, ringProtocol.rawValue)]
        if rings.count > 1 { entries.append((FrontendKey.queueCount, String(rings.count))) }
        if let pageCount = rings.first?.pageReferences.count, pageCount > 1 {
            entries.append((FrontendKey.ringPageOrder, String(pageCount.trailingZeroBitCount)))
            entries.append((FrontendKey.ringPages, String(pageCount)))
        }
        for (index, ring) in rings.enumerated() {
            let prefix = rings.count == 1 ? "" : FrontendKey.queue(index) + "/"
            for (page, reference) in ring.pageReferences.enumerated() {
                let suffix = ring.pageReferences.count == 1 ? "" : String(page)
                entries.append((prefix + FrontendKey.ringReference + suffix, String(reference)))
            }
            entries.append((prefix + FrontendKey.eventChannel, String(ring.eventChannel)))
        }
        entries.append((FrontendKey.persistent, usesPersistentGrants ? "1" : "0"))
        if understandsLargeSectors { entries.append((FrontendKey.largeSectorSize, "1")) }
        if !trustsBackend { entries.append((FrontendKey.trusted, "0")) }
        return entries
    }

    private static func ringProtocol(_ node: NodeReader) throws(NegotiationError) -> RingProtocol {
        guard let bytes = node.value(FrontendKey.ringProtocol) else { return .assumed }
        guard let match = RingProtocol.supported.first(where: { Array($0.rawValue.utf8) == bytes }) else {
            throw NegotiationError(
                .unknownProtocol(expected: RingProtocol.supported), key: FrontendKey.ringProtocol, value: bytes)
        }
        return match
    }

    /// `ring-page-order` or the deprecated `num-ring-pages`; if both are there they must agree; one page if neither is.
    private static func ringPageCount(limits: FrontendLimits, _ node: NodeReader) throws(NegotiationError) -> Int {
        let tooLarge = NegotiationError.Rule.ringTooLarge(maximumPages: limits.maximumRingPageCount)
        let order = try node.number(FrontendKey.ringPageOrder)
        // Compared before the shift: 1 << 32 is 1 on some machines and 0 on others.
        if let order, order > UInt64(limits.maximumRingPageOrder) {
            throw NegotiationError(
                tooLarge, key: FrontendKey.ringPageOrder, value: node.value(FrontendKey.ringPageOrder))
        }
        guard let pages = try node.number(FrontendKey.ringPages) else { return 1 << (order ?? 0) }
        func failure(_ rule: NegotiationError.Rule) -> NegotiationError {
            NegotiationError(rule, key: FrontendKey.ringPages, value: Array(String(pages).utf8))
        }
        guard pages.nonzeroBitCount == 1 else { throw failure(.ringPagesNotPowerOfTwo) }
        guard pages <= UInt64(limits.maximumRingPageCount) else { throw failure(tooLarge) }
        if let order, pages != 1 << order { throw failure(.ringSizesContradict) }
        return Int(pages)
    }

    private static func queueCount(limits: FrontendLimits, _ node: NodeReader) throws(NegotiationError) -> Int {
        let key = FrontendKey.queueCount
        guard let count = try node.number(key) else { return 1 }
        guard count > 0 else { throw NegotiationError(.noQueues, key: key, value: Array("0".utf8)) }
        guard count <= UInt64(limits.maximumQueueCount) else {
            throw NegotiationError(
                .tooManyQueues(maximum: limits.maximumQueueCount), key: key, value: Array(String(count).utf8))
        }
        return Int(count)
    }

    private static func ring(
        _ node: NodeReader, prefix: String, pageCount: Int, references: inout Set<UInt32>, ports: inout Set<UInt32>
    ) throws(NegotiationError) -> FrontendRing {
        var pages: [UInt32] = []
        for key in try referenceKeys(node, prefix: prefix, pageCount: pageCount) {
            let reference = UInt32(try node.requiredNumber(key))
            guard references.insert(reference).inserted else {
                throw NegotiationError(.ringReferenceRepeated, key: key, value: Array(String(reference).utf8))
            }
            pages.append(reference)
        }
        let key = prefix + FrontendKey.eventChannel
        let port = UInt32(try node.requiredNumber(key, maximum: lastEventChannel))
        guard port != 0 else { throw NegotiationError(.noEventChannel, key: key, value: Array("0".utf8)) }
        guard ports.insert(port).inserted else {
            throw NegotiationError(.eventChannelRepeated, key: key, value: Array(String(port).utf8))
        }
        return FrontendRing(pageReferences: pages, eventChannel: port)
    }

    /// A single page is in `ring-ref`, or in `ring-ref0` for frontends that follow Linux, whose backend expects that
    /// name once `ring-page-order` is present. Several pages are in `ring-ref0` and on.
    private static func referenceKeys(
        _ node: NodeReader, prefix: String, pageCount: Int
    ) throws(NegotiationError) -> [String] {
        let key = prefix + FrontendKey.ringReference
        guard pageCount == 1 else { return (0..<pageCount).map { key + String($0) } }
        if node.value(key) == nil, node.value(key + "0") != nil { return [key + "0"] }
        return [key]
    }
}
