// SPDX-License-Identifier: BSD-2-Clause
// A request on its way through a plugin.
import CLinux
import Glibc
import PluginAPI

/// A request as the plugin has it, with what the host needs beside it.
@unsafe
public struct PluginRequest: BitwiseCopyable {
    /// First, so that the plugin's pointer is also ours.
    public var req: xbb_req
    /// The only vector of most requests, right behind what the plugin sees.
    public var iov: iovec
    /// ``PluginRequestState``, changed atomically.
    public var state: UInt32
    /// The status that the plugin gave: 0 or a negative errno.
    public var status: Int32
    /// The reqlist that it belongs to.
    public var list: Int32
    /// The next one in the stack of completions from other threads, plus one.
    public var link: UInt32
}

/// Who has a plugin request.
public enum PluginRequestState {
    /// The host.
    @inlinable public static var host: UInt32 { 0 }
    /// The plugin, from submit() to complete().
    @inlinable public static var plugin: UInt32 { 1 }
    /// The host again, not yet looked at.
    @inlinable public static var completed: UInt32 { 2 }
}

/// A plugin request of a port's pool while it is the host's.
///
/// A fence for unsafe memory: the pool is never freed, so the pointers are always valid.
@safe
public struct PluginRequestPointer {
    @usableFromInline let request: UnsafeMutablePointer<PluginRequest>
    /// ``mostVectors`` vectors, for a request that needs more than its own.
    @usableFromInline let vectors: UnsafeMutablePointer<iovec>

    /// Vectors that a request can have.
    @inlinable public static var mostVectors: Int { 8 }

    @inlinable @inline(__always)
    init(_ request: UnsafeMutablePointer<PluginRequest>, vectors: UnsafeMutablePointer<iovec>) {
        unsafe self.request = unsafe request
        unsafe self.vectors = unsafe vectors
    }

    /// What the plugin gets.
    @inlinable @inline(__always)
    @unsafe public var forPlugin: UnsafeMutablePointer<xbb_req> {
        unsafe UnsafeMutableRawPointer(request).assumingMemoryBound(to: xbb_req.self)
    }

    /// The reqlist that it belongs to.
    @inlinable @inline(__always)
    public var list: Int32 { unsafe request.pointee.list }

    /// The status that the plugin gave: 0 or a negative errno.
    @inlinable @inline(__always)
    public var status: Int32 { unsafe request.pointee.status }

    /// Changes who has it: ``PluginRequestState``.
    @inlinable @inline(__always)
    public func setState(_ state: UInt32) { unsafe request.pointee.state = state }

    /// Fills in all but the vectors. `offset` and `length` are in bytes.
    @inlinable @inline(__always)
    public func prepare(list: Int32, op: UInt8, flags: UInt16, offset: UInt64, length: UInt64) {
        unsafe request.pointee.list = list
        unsafe request.pointee.req.offset = offset
        unsafe request.pointee.req.length = length
        unsafe request.pointee.req.flags = flags
        unsafe request.pointee.req.op = op
    }

    /// Makes it ask for the same as another request, whose vectors stay the other's; the scratch memory is its own.
    public func copy(_ other: xbb_req) {
        let context = unsafe request.pointee.req.ctx
        unsafe request.pointee.req = unsafe other
        unsafe request.pointee.req.ctx = unsafe context
    }

    /// Gives it one vector. The pointer is set anew: the plugin had the request, and may have advanced it.
    @inlinable @inline(__always)
    public func setVector(_ address: UnsafeMutableRawPointer, _ length: Int) {
        unsafe request.pointee.iov.iov_base = unsafe address
        unsafe request.pointee.iov.iov_len = length
        let own = unsafe UnsafeRawPointer(request) + CompletionPort.vectorOffset
        unsafe request.pointee.req.iov = own.assumingMemoryBound(to: iovec.self)
        unsafe request.pointee.req.iovcnt = 1
    }

    /// Fills in the vector `number` of several; ``setVectorCount(_:)`` makes them count.
    public func setVector(_ number: Int, _ address: UnsafeMutableRawPointer, _ length: Int) {
        precondition(number >= 0 && number < Self.mostVectors)
        unsafe vectors[number] = unsafe iovec(iov_base: address, iov_len: length)
    }

    /// Gives it the first `count` vectors of ``setVector(_:_:_:)``; none to a request without data.
    public func setVectorCount(_ count: Int) {
        unsafe request.pointee.req.iov = unsafe UnsafePointer(vectors)
        unsafe request.pointee.req.iovcnt = UInt32(truncatingIfNeeded: count)
    }
}
