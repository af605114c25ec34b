// SPDX-License-Identifier: BSD-2-Clause
// Requests that wait for the plugin.
import Glibc
import PluginAPI

/// Requests that wait, first in first out. They are linked in their own scratch memory, so that nothing is allocated.
/// Those that are left when the list ends fail with EIO.
///
/// `@unchecked Sendable`: it has one owner, and so has each request in it.
@safe
public struct RequestList: ~Copyable, @unchecked Sendable {
    private var first: UnsafeMutablePointer<Link>?
    private var last: UnsafeMutablePointer<Link>?
    /// How many wait.
    public private(set) var count = 0

    /// What lies in `xbb_req.ctx` meanwhile.
    @safe
    struct Link {
        var next: UnsafeMutablePointer<Link>?
        let request: UnsafeMutablePointer<xbb_req>
        let queue: OpaquePointer?
        let complete: HostComplete
    }

    /// An empty list.
    public init() {}

    deinit {
        var link = unsafe first
        while let this = unsafe link {
            unsafe link = unsafe this.pointee.next
            let (complete, queue, request) = unsafe (this.pointee.complete, this.pointee.queue, this.pointee.request)
            unsafe complete(queue, request, -EIO)
        }
    }

    /// Nothing waits.
    public var isEmpty: Bool { count == 0 }

    /// Adds a request at the end.
    public mutating func append(_ request: consuming Request) {
        let (queue, complete) = unsafe (request.queue, request.completion)
        guard let scratch = unsafe request.request.pointee.ctx else { return }
        let link = unsafe scratch.bindMemory(to: Link.self, capacity: 1)
        let pointer = unsafe request.release()
        unsafe link.initialize(to: Link(next: nil, request: pointer, queue: queue, complete: complete))
        if let last = unsafe last { unsafe last.pointee.next = unsafe link } else { unsafe first = unsafe link }
        unsafe last = unsafe link
        count += 1
    }

    /// Takes the oldest one.
    public mutating func removeFirst() -> Request? {
        guard let link = unsafe first else { return nil }
        unsafe first = unsafe link.pointee.next
        if unsafe first == nil { unsafe last = nil }
        count -= 1
        return unsafe Request(link.pointee.request, queue: link.pointee.queue, complete: link.pointee.complete)
    }
}
