// SPDX-License-Identifier: BSD-2-Clause
// Both ends of a ring behind one face, ours and those of Xen's macros, so that a test can put any two together.
import CBlkifOracle
import Memory

@testable import Blkif

/// What a side says about the other's producer index.
enum Availability: Equatable {
    case count(Int)
    case overflow
}

/// A frontend's end.
protocol FrontSide: AnyObject, Sendable {
    var requestProducer: UInt32 { get }
    var responseConsumer: UInt32 { get }
    var entryCount: Int { get }
    var free: Int { get }
    func put(_ slot: SlotBytes)
    func publish() -> Bool
    func available() -> Availability
    func take() -> BlockResponse
    func finalCheck() -> Bool
}

/// A backend's end.
protocol BackSide: AnyObject, Sendable {
    var requestConsumer: UInt32 { get }
    var responseProducer: UInt32 { get }
    var entryCount: Int { get }
    var outstanding: Int { get }
    func available() -> Availability
    func take(into slot: inout SlotBytes)
    func respond(id: UInt64, wireOperation: UInt8, status: BlockStatus)
    func publish() -> Bool
    func finalCheck() -> Bool
    func holdOffEvents()
}

extension BackSide {
    /// The macros have no such thing.
    func holdOffEvents() {}
}

/// Our frontend.
final class OurFront: FrontSide, @unchecked Sendable {
    private var ring: FrontRing

    init(_ pages: TestPages, abi: RingABI, start: UInt32) {
        ring = FrontRing(initializing: pages.shared, abi: abi, startIndex: start)
    }

    var requestProducer: UInt32 { ring.requestProducer }
    var responseConsumer: UInt32 { ring.responseConsumer }
    var entryCount: Int { ring.entryCount }
    var free: Int { ring.free }
    func put(_ slot: SlotBytes) { ring.put(slot) }
    func publish() -> Bool { ring.publish() }
    func available() -> Availability { (try? ring.available()).map(Availability.count) ?? .overflow }
    func availableOrThrow() throws(RingOverflow) -> Int { try ring.available() }
    func forgeRequestProducer(_ value: UInt32) { ring.forgeRequestProducer(value) }
    func take() -> BlockResponse { ring.take() }
    func finalCheck() -> Bool { ring.finalCheck() }
}

/// Our backend.
final class OurBack: BackSide, @unchecked Sendable {
    private var ring: BackRing

    init(_ pages: TestPages, abi: RingABI) { ring = BackRing(attaching: pages.shared, abi: abi) }

    var requestConsumer: UInt32 { ring.requestConsumer }
    var responseProducer: UInt32 { ring.responseProducer }
    var entryCount: Int { ring.entryCount }
    var outstanding: Int { ring.outstanding }
    func available() -> Availability { (try? ring.available()).map(Availability.count) ?? .overflow }
    func availableOrThrow() throws(RingOverflow) -> Int { try ring.available() }
    func holdOffEvents() { ring.holdOffEvents() }
    var hasNewRequests: Bool { ring.hasNewRequests }
    func take(into slot: inout SlotBytes) { ring.take(into: &slot) }
    func respond(id: UInt64, wireOperation: UInt8, status: BlockStatus) {
        ring.respond(id: id, wireOperation: wireOperation, status: status)
    }
    func publish() -> Bool { ring.publish() }
    func finalCheck() -> Bool { ring.finalCheck() }
}

/// The frontend of ring.h.
final class MacroFront: FrontSide, @unchecked Sendable {
    private let oracle: UnsafePointer<CBlkifOracle.oracle>
    private let ring: OpaquePointer?
    private let pages: TestPages

    init(_ pages: TestPages, abi: RingABI, start: UInt32) {
        oracle = abi.oracle
        self.pages = pages
        ring = oracle.pointee.front_new(pages.base, pages.byteCount, start)
    }

    deinit { oracle.pointee.front_delete(ring) }

    var requestProducer: UInt32 { oracle.pointee.front_req_prod_pvt(ring) }
    var responseConsumer: UInt32 { oracle.pointee.front_rsp_cons(ring) }
    var entryCount: Int { Int(oracle.pointee.front_size(ring)) }
    var free: Int { Int(oracle.pointee.front_free(ring)) }
    func put(_ slot: SlotBytes) { withUnsafeBytes(of: slot) { oracle.pointee.front_put(ring, $0.baseAddress) } }
    func publish() -> Bool { oracle.pointee.front_push(ring) }

    /// Ours is stricter by intention: there can be no more responses than requests, however long the ring is.
    func available() -> Availability {
        if oracle.pointee.front_overflow(ring) { return .overflow }
        let count = oracle.pointee.front_unconsumed(ring)
        return count > requestProducer &- responseConsumer ? .overflow : .count(Int(count))
    }

    func take() -> BlockResponse {
        var response = oracle_response()
        oracle.pointee.front_take(ring, &response)
        return BlockResponse(id: response.id, wireOperation: response.operation, status: response.status)
    }

    func finalCheck() -> Bool { oracle.pointee.front_final_check(ring) }
}

/// The backend of ring.h.
final class MacroBack: BackSide, @unchecked Sendable {
    private let oracle: UnsafePointer<CBlkifOracle.oracle>
    private let ring: OpaquePointer?
    private let pages: TestPages

    /// BACK_RING_INIT for a fresh ring, BACK_RING_ATTACH for another.
    init(_ pages: TestPages, abi: RingABI, fresh: Bool = false) {
        oracle = abi.oracle
        self.pages = pages
        ring = oracle.pointee.back_new(pages.base, pages.byteCount, fresh)
    }

    deinit { oracle.pointee.back_delete(ring) }

    var requestConsumer: UInt32 { oracle.pointee.back_req_cons(ring) }
    var responseProducer: UInt32 { oracle.pointee.back_rsp_prod_pvt(ring) }
    var entryCount: Int { Int(oracle.pointee.back_size(ring)) }
    var outstanding: Int { Int(requestConsumer &- responseProducer) }

    /// Ours is stricter by intention: the macros do not see that req_prod moved backwards over what was taken.
    func available() -> Availability {
        if oracle.pointee.back_prod_overflow(ring) { return .overflow }
        let shown = pages.word(at: oracle.pointee.layout.sring_req_prod)
        if Int32(bitPattern: shown &- requestConsumer) < 0 { return .overflow }
        return .count(Int(oracle.pointee.back_unconsumed(ring)))
    }

    /// RING_REQUEST_PROD_OVERFLOW of the shared index.
    var producerOverflow: Bool { oracle.pointee.back_prod_overflow(ring) }
    /// RING_REQUEST_CONS_OVERFLOW
    var consumerOverflow: Bool { oracle.pointee.back_cons_overflow(ring) }
    /// XEN_RING_NR_UNCONSUMED_REQUESTS
    var unconsumed: Int { Int(oracle.pointee.back_unconsumed(ring)) }

    func take(into slot: inout SlotBytes) {
        withUnsafeMutableBytes(of: &slot) { oracle.pointee.back_take(ring, $0.baseAddress) }
    }

    func respond(id: UInt64, wireOperation: UInt8, status: BlockStatus) {
        oracle.pointee.back_respond(ring, id, wireOperation, status.rawValue)
    }

    func publish() -> Bool { oracle.pointee.back_push(ring) }
    func finalCheck() -> Bool { oracle.pointee.back_final_check(ring) }
}
