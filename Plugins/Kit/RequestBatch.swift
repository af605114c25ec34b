// SPDX-License-Identifier: BSD-2-Clause
// The requests that the host offers at once, and which of them are refused before the disk sees them.
import Glibc
import PluginAPI

/// The requests of one call of `submit()`, in order. Those that are taken are accepted; the rest is offered again.
@safe
public struct RequestBatch: ~Copyable {
    private let requests: UnsafePointer<UnsafeMutablePointer<xbb_req>?>
    /// Requests in it that are not taken.
    public var remaining: Int { count - taken }
    private let count: Int
    private(set) var taken = 0
    private let queue: OpaquePointer?
    private let complete: HostComplete
    private let refusals: Refusals

    init(
        _ requests: UnsafePointer<UnsafeMutablePointer<xbb_req>?>, count: Int, queue: OpaquePointer?,
        complete: @escaping HostComplete, refusals: Refusals
    ) {
        unsafe self.requests = unsafe requests
        self.count = count
        unsafe self.queue = unsafe queue
        unsafe self.complete = unsafe complete
        self.refusals = refusals
    }

    /// Accepts the next request. One that the disk did not declare is failed here, and the one after it is taken.
    public mutating func next() -> Request? {
        while taken < count {
            guard let request = unsafe requests[taken] else { return nil }
            taken += 1
            let refusal = unsafe refusals.status(of: request)
            if refusal == 0 { return unsafe Request(request, queue: queue, complete: complete) }
            unsafe complete(queue, request, refusal)
        }
        return nil
    }

    /// Offers all that is left as the host does, unchecked; `body` returns how many of them it accepts, from the first on.
    /// For plugins over a C interface that wants the requests themselves. Which operations and flags they have is theirs to
    /// check then.
    public mutating func acceptUnchecked(
        _ body: (_ requests: UnsafePointer<UnsafeMutablePointer<xbb_req>?>, _ count: Int) -> Int
    ) {
        unsafe taken += body(requests + taken, count - taken)
    }
}

/// What a disk did not declare, and is refused for it.
struct Refusals {
    let capabilities: Capabilities
    /// The status of a write to a disk without them.
    let undeclaredWrite: Int32

    /// 0, or a negative errno.
    func status(of request: UnsafeMutablePointer<xbb_req>) -> Int32 {
        guard let operation = unsafe Operation(rawValue: request.pointee.op) else { return -EOPNOTSUPP }
        guard capabilities.contains(operation.capability) else {
            return operation == .write ? undeclaredWrite : -EOPNOTSUPP
        }
        return unsafe request.pointee.flags & ~operation.knownFlags(capabilities) == 0 ? 0 : -EINVAL
    }
}
