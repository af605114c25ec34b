// SPDX-License-Identifier: BSD-2-Clause
// One ring with its two ends and what can be done to it, so that several can be compared step by step.
import CBlkifOracle
import Memory

@testable import Blkif

/// Whose ends a ring has.
enum Pairing: CaseIterable {
    case macrosAlone, oursAlone, ourFrontMacroBack, macroFrontOurBack
}

/// Something that is done to a ring.
enum RingStep {
    case put(SlotBytes)
    case publishRequests
    case responsesAvailable
    case takeResponse
    case finalCheckResponses
    case requestsAvailable
    case takeRequest
    case respond(id: UInt64, wireOperation: UInt8, status: BlockStatus)
    case publishResponses
    case finalCheckRequests
    /// The backend writes any threshold.
    case setRequestEvent(UInt32)
    /// The frontend writes any threshold.
    case setResponseEvent(UInt32)
    /// The frontend shows this `req_prod` for a moment; the backend looks and asks for events.
    case showRequestProducer(UInt32)
    /// The backend shows this `rsp_prod` for a moment; the frontend looks.
    case showResponseProducer(UInt32)
    /// Another backend takes the ring over.
    case attachBack
}

/// What a step gave.
enum StepResult: Equatable {
    case nothing
    case flag(Bool)
    case available(Availability)
    case looked(Availability, work: Bool)
    case response(BlockResponse)
    case slot([UInt8])
}

/// A ring and its two ends.
final class RingWorld {
    let pairing: Pairing
    let pages: TestPages
    let abi: RingABI
    let front: any FrontSide
    private(set) var back: any BackSide
    private let requestSize: Int

    init(_ pairing: Pairing, abi: RingABI, pageCount: Int, start: UInt32) {
        self.pairing = pairing
        self.abi = abi
        pages = TestPages(pages: pageCount)
        requestSize = abi.oracle.pointee.layout.request_size
        switch pairing {
        case .oursAlone, .ourFrontMacroBack: front = OurFront(pages, abi: abi, start: start)
        case .macrosAlone, .macroFrontOurBack: front = MacroFront(pages, abi: abi, start: start)
        }
        back = Self.newBack(pairing, pages, abi, fresh: start == 0)
    }

    private static func newBack(_ pairing: Pairing, _ pages: TestPages, _ abi: RingABI, fresh: Bool) -> any BackSide {
        switch pairing {
        case .oursAlone, .macroFrontOurBack: OurBack(pages, abi: abi)
        case .macrosAlone, .ourFrontMacroBack: MacroBack(pages, abi: abi, fresh: fresh)
        }
    }

    /// All private indices and the sizes.
    var indices: [UInt32] {
        [
            front.requestProducer, front.responseConsumer, UInt32(front.entryCount), UInt32(front.free),
            back.requestConsumer, back.responseProducer, UInt32(back.entryCount), UInt32(back.outstanding),
        ]
    }

    func apply(_ step: RingStep) -> StepResult {
        let header = abi.oracle.pointee.layout
        switch step {
        case .put(let slot):
            front.put(slot)
            return .nothing
        case .publishRequests: return .flag(front.publish())
        case .responsesAvailable: return .available(front.available())
        case .takeResponse: return .response(front.take())
        case .finalCheckResponses: return .flag(front.finalCheck())
        case .requestsAvailable: return .available(back.available())
        case .takeRequest:
            var slot = SlotBytes()
            back.take(into: &slot)
            return .slot(slot.prefix(requestSize))
        case .respond(let id, let wireOperation, let status):
            back.respond(id: id, wireOperation: wireOperation, status: status)
            return .nothing
        case .publishResponses: return .flag(back.publish())
        case .finalCheckRequests: return .flag(back.finalCheck())
        case .setRequestEvent(let value):
            pages.set(value, at: header.sring_req_event)
            return .nothing
        case .setResponseEvent(let value):
            pages.set(value, at: header.sring_rsp_event)
            return .nothing
        case .showRequestProducer(let value):
            let truth = pages.word(at: header.sring_req_prod)
            pages.set(value, at: header.sring_req_prod)
            defer { pages.set(truth, at: header.sring_req_prod) }
            return .looked(back.available(), work: back.finalCheck())
        case .showResponseProducer(let value):
            let truth = pages.word(at: header.sring_rsp_prod)
            pages.set(value, at: header.sring_rsp_prod)
            defer { pages.set(truth, at: header.sring_rsp_prod) }
            return .looked(front.available(), work: front.finalCheck())
        case .attachBack:
            back = Self.newBack(pairing, pages, abi, fresh: false)
            return .nothing
        }
    }
}
