// SPDX-License-Identifier: BSD-2-Clause
// Errors of a frontend.
public import Base

/// A protocol violation by the backend that blkfront does not tolerate. The device is dead from then on
/// (`BLKIF_STATE_ERROR`).
public enum FrontFault: Error, Sendable, Equatable, CustomStringConvertible {
    /// `rsp_prod` announces more responses than there are requests ("illegal number of responses").
    case responseOverflow(producer: UInt32, consumer: UInt32, requests: UInt32)
    /// "response has incorrect id"
    case incorrectID(UInt64, slots: Int)
    /// "response references no pending request"
    case noPendingRequest(id: UInt64)
    /// "response has wrong operation"
    case wrongOperation(got: UInt8, expected: UInt8, id: UInt64)
    /// "backend has not unmapped grant": it can still reach the page after it answered.
    case grantInUse(reference: UInt32, id: UInt64)
    /// Bytes of the response that belong to no field are not zero.
    case paddingNotZero(id: UInt64)
    /// The domain's own grants or events failed: a fault of the test environment, not of the backend.
    case domain(String)

    /// One line, in blkfront's words.
    public var description: String {
        switch self {
        case .responseOverflow(let producer, let consumer, let requests):
            "illegal number of responses: rsp_prod \(producer), rsp_cons \(consumer), req_prod \(requests)"
        case .incorrectID(let id, let slots): "response has incorrect id \(id), the ring has \(slots) slots"
        case .noPendingRequest(let id): "response references no pending request: id \(id)"
        case .wrongOperation(let got, let expected, let id):
            "response \(id) has wrong operation \(got) instead of \(expected)"
        case .grantInUse(let reference, let id):
            "backend has not unmapped grant \(reference) when it answered request \(id)"
        case .paddingNotZero(let id): "response \(id) has padding that is not zero"
        case .domain(let text): "the frontend's own domain failed: \(text)"
        }
    }
}

/// An error of the frontend.
public enum BlkfrontError: Error, Sendable, Equatable, CustomStringConvertible {
    /// A call of XenStore failed.
    case store(OperationError)
    /// Options or arguments that are not valid.
    case invalid(String)
    /// The backend did not do in time what the text says.
    case timeout(String)
    /// A mandatory key is missing or is not a number.
    case badKey(path: String, value: String?)
    /// The backend closed or is gone, or the frontend itself closed the device.
    case closed(String)
    /// The backend violated the protocol; the device is no longer usable.
    case dead(FrontFault)
    /// The backend answered `BLKIF_RSP_ERROR` or a status that does not exist.
    case failed(status: Int16)
    /// The backend answered `BLKIF_RSP_EOPNOTSUPP`.
    case notSupported
    /// The domain could not allocate frames, grants or event channels.
    case domain(OperationError)

    /// One line for people.
    public var description: String {
        switch self {
        case .store(let error): "XenStore: \(error)"
        case .invalid(let text): text
        case .timeout(let what): "timeout: \(what)"
        case .badKey(let path, nil): "\(path) is missing"
        case .badKey(let path, let value?): "\(path) is '\(value)', which makes no sense"
        case .closed(let why): "the device is closed: \(why)"
        case .dead(let fault): "the device is dead: \(fault)"
        case .failed(let status): "the backend reports an I/O error (status \(status))"
        case .notSupported: "the backend does not support the operation"
        case .domain(let error): "domain: \(error)"
        }
    }
}
