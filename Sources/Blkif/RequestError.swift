// SPDX-License-Identifier: BSD-2-Clause
// Why a request is refused: one case for each rule of the protocol.

/// The rule that a request broke. The frontend gets ``status`` as answer; its neighbours are not harmed.
public enum RequestError: UInt8, Error, Sendable, CaseIterable, BitwiseCopyable {
    /// The operation is none that we know, or one that was not offered to this frontend.
    case unknownOperation
    /// A read or a write without segments.
    case noSegments
    /// More segments than ``BlkifLimits/segmentsPerRequest``, or than were offered of an indirect request.
    case tooManySegments
    /// A segment whose first sector is behind its last one.
    case segmentBackwards
    /// A segment whose last sector is not in its page.
    case segmentBeyondPage
    /// Sectors that are not on the disk, or a range that wraps around 2^64.
    case beyondEndOfDisk
    /// A request that writes, to a disk that is attached read-only.
    case readOnlyDisk
    /// A discard of no sectors.
    case emptyDiscard
    /// An indirect request to do something else than to read or to write. Not "not supported": the response carries the
    /// inner operation, and a frontend would take it for an answer about that one.
    case innerOperation
    /// A page with segments that cannot be read. Found when it is fetched, not by parsing.
    case unreachableSegments

    /// What the frontend gets.
    public var status: BlockStatus {
        self == .unknownOperation ? .notSupported : .error
    }

    /// One line for the log.
    public var text: String {
        switch self {
        case .unknownOperation: "operation that is not known or was not offered"
        case .noSegments: "read or write without segments"
        case .tooManySegments: "more segments than were offered"
        case .segmentBackwards: "segment whose first sector is behind its last"
        case .segmentBeyondPage: "segment that reaches beyond its page"
        case .beyondEndOfDisk: "sectors beyond the end of the disk"
        case .readOnlyDisk: "write to a read-only disk"
        case .emptyDiscard: "discard of no sectors"
        case .innerOperation: "indirect request that is neither a read nor a write"
        case .unreachableSegments: "page of segments that cannot be read"
        }
    }
}
