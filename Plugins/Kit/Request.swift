// SPDX-License-Identifier: BSD-2-Clause
// A request that the plugin has accepted: what it asks for, its data behind checked bounds, and its completion, exactly once.
import Glibc
import PluginAPI

/// How a request ended.
public struct Outcome: Sendable, Equatable {
    /// 0 or a negative errno.
    public let status: Int32

    /// From 0 or a negative errno; anything else counts as EIO.
    public init(status: Int32) { self.status = status <= 0 && status > -4096 ? status : -EIO }

    /// All of it was done.
    public static let done = Outcome(status: 0)
    /// An operation that this disk does not have.
    public static let unsupported = Outcome(status: -EOPNOTSUPP)
    /// The storage failed.
    public static let ioError = Outcome(status: -EIO)

    /// Failed with a positive errno value; anything else counts as EIO.
    public static func failed(_ code: Int32) -> Outcome { code > 0 ? Outcome(status: 0 &- code) : .ioError }
}

/// Which request it is, from its acceptance to its completion.
public struct RequestID: Hashable, Sendable {
    private let address: UInt
    init(_ request: UnsafeMutablePointer<xbb_req>) { address = UInt(bitPattern: request) }
}

/// What a request asks for.
public enum Operation: UInt8, Sendable {
    case read = 1
    case write = 2
    /// Everything that was completed before becomes durable.
    case flush = 3
    case discard = 4
    case writeZeroes = 5

    /// `XBB_REQ_*` that the operation can have on a disk with these capabilities.
    func knownFlags(_ capabilities: Capabilities) -> UInt16 {
        let force = capabilities.contains(.force) ? UInt16(XBB_REQ_FUA) : 0
        switch self {
        case .read, .flush: return 0
        case .write: return force
        case .discard: return force | (capabilities.contains(.secureDiscard) ? UInt16(XBB_REQ_SECURE) : 0)
        case .writeZeroes: return force | UInt16(XBB_REQ_MAY_UNMAP) | UInt16(XBB_REQ_NO_FALLBACK)
        }
    }

    /// What the disk must have declared for it.
    var capability: Capabilities {
        switch self {
        case .read: []
        case .write: .write
        case .flush: .flush
        case .discard: .discard
        case .writeZeroes: .writeZeroes
        }
    }
}

/// An accepted request. It can be completed once, on any thread; one that is dropped without that fails with EIO.
///
/// The host has checked that it lies within the disk and keeps to its limits; the kit, that the disk declared what is
/// asked for.
///
/// `@unchecked Sendable`: it has one owner, and the host takes completions on any thread.
@safe
public struct Request: ~Copyable, @unchecked Sendable {
    let request: UnsafeMutablePointer<xbb_req>
    let queue: OpaquePointer?
    let completion: HostComplete

    /// An accepted request that was apart: taken from a ``RequestBatch/acceptUnchecked(_:)``, or from ``release()``.
    public init(_ request: UnsafeMutablePointer<xbb_req>, queue: OpaquePointer?, complete: @escaping HostComplete) {
        unsafe self.request = unsafe request
        unsafe self.queue = unsafe queue
        unsafe completion = unsafe complete
    }

    deinit { unsafe completion(queue, request, -EIO) }

    /// Gives the request back to the host, which ends it for the plugin.
    public consuming func complete(_ outcome: Outcome = .done) {
        unsafe completion(queue, request, outcome.status)
        discard self
    }

    /// The queue that it came by and the function that completes it, for who takes it apart.
    public var owner: (queue: OpaquePointer?, complete: HostComplete) { unsafe (queue, completion) }

    /// Takes the request apart without completing it, which is the caller's from here on.
    public consuming func release() -> UnsafeMutablePointer<xbb_req> {
        let request = unsafe request
        discard self
        return unsafe request
    }

    // MARK: What it asks for

    /// Which one it is.
    public var id: RequestID { unsafe RequestID(request) }
    /// What to do.
    public var operation: Operation { unsafe Operation(rawValue: request.pointee.op) ?? .flush }
    /// Bytes from the beginning of the disk.
    public var offset: UInt64 { unsafe request.pointee.offset }
    /// Bytes.
    public var length: UInt64 { unsafe request.pointee.length }
    /// Must be durable when it is completed; only with ``Capabilities/force``.
    public var isForced: Bool { has(XBB_REQ_FUA) }
    /// A discard must leave nothing to find; only with ``Capabilities/secureDiscard``.
    public var isSecure: Bool { has(XBB_REQ_SECURE) }
    /// Zeroes may be written by deallocating.
    public var mayDeallocate: Bool { has(XBB_REQ_MAY_UNMAP) }
    /// Zeroes must be written fast, or not at all: ``Outcome/unsupported``.
    public var mustBeFast: Bool { has(XBB_REQ_NO_FALLBACK) }

    /// The plugin's memory until the request is completed: as many bytes as it asked for with `scratch`, at 16 bytes. Not
    /// while the request waits in a ``RequestList``.
    public var scratch: UnsafeMutableRawPointer? { unsafe request.pointee.ctx }
    /// Its buffers as preadv2(2) and its like want them; none for operations without data.
    public var vectors: UnsafeBufferPointer<iovec> {
        guard let parts = unsafe request.pointee.iov else { return unsafe UnsafeBufferPointer(start: nil, count: 0) }
        return unsafe UnsafeBufferPointer(start: parts, count: Int(request.pointee.iovcnt))
    }

    private func has(_ flag: Int) -> Bool { unsafe Int(request.pointee.flags) & flag != 0 }

    // MARK: Its data

    /// Does a read from a disk that is in memory, or its first `limit` bytes.
    ///
    /// - Returns: `done`, or `ioError` if the request does not lie within it.
    public func read(from disk: borrowing DiskMemory, limit: UInt64 = .max) -> Outcome {
        guard let place = place(in: disk.size) else { return .ioError }
        unsafe forEachPart(from: 0, count: Int(min(length, limit))) { memory, position, count in
            unsafe memcpy(memory, disk.base + place + position, count)
        }
        return .done
    }

    /// Does a write to a disk that is in memory, or its first `limit` bytes.
    ///
    /// - Returns: `done`, or `ioError` if the request does not lie within it.
    public func write(to disk: inout DiskMemory, limit: UInt64 = .max) -> Outcome {
        guard let place = place(in: disk.size) else { return .ioError }
        let base = unsafe disk.base
        unsafe forEachPart(from: 0, count: Int(min(length, limit))) { memory, position, count in
            unsafe memcpy(base + place + position, memory, count)
        }
        return .done
    }

    /// Fills the range of the request with zeroes, in a disk that is in memory.
    ///
    /// - Returns: `done`, or `ioError` if the request does not lie within it.
    public func zero(in disk: inout DiskMemory) -> Outcome {
        guard let place = place(in: disk.size) else { return .ioError }
        disk.zero(place, Int(length))
        return .done
    }

    /// Copies bytes of an array into the buffers of a read, as ``fill(from:at:)-(RawSpan,_)`` does.
    @discardableResult
    public func fill(from source: borrowing [UInt8], at position: UInt64 = 0) -> Int {
        unsafe fill(from: source.span.bytes, at: position)
    }

    /// Copies bytes out of the buffers of a write into an array, as ``copy(to:from:)-(MutableRawSpan,_)`` does.
    @discardableResult
    public func copy(to target: inout [UInt8], from position: UInt64 = 0) -> Int {
        var span = target.mutableSpan
        var bytes = unsafe span.mutableBytes
        return copy(to: &bytes, from: position)
    }

    /// Copies bytes into the buffers of a read, from `position` of the request's data on: as many as there are and fit.
    ///
    /// - Returns: how many that are.
    @discardableResult
    public func fill(from source: RawSpan, at position: UInt64 = 0) -> Int {
        let count = room(at: position, source.byteCount)
        unsafe source.withUnsafeBytes { bytes in
            guard let base = bytes.baseAddress else { return }
            unsafe forEachPart(from: Int(clamping: position), count: count) { memory, done, count in
                unsafe memcpy(memory, base + done, count)
            }
        }
        return count
    }

    /// Copies bytes out of the buffers of a write, from `position` of the request's data on: as many as there are and fit.
    /// A guest may change them meanwhile: look at the copy, not at the buffers again.
    ///
    /// - Returns: how many that are.
    @discardableResult
    public func copy(to target: inout MutableRawSpan, from position: UInt64 = 0) -> Int {
        let count = room(at: position, target.byteCount)
        unsafe target.withUnsafeMutableBytes { bytes in
            guard let base = bytes.baseAddress else { return }
            unsafe forEachPart(from: Int(clamping: position), count: count) { memory, done, count in
                unsafe memcpy(base + done, memory, count)
            }
        }
        return count
    }

    /// Fills the buffers of a read with zeroes.
    public func fillWithZeroes() {
        unsafe forEachPart(from: 0, count: room(at: 0, .max)) { memory, _, count in unsafe memset(memory, 0, count) }
    }

    /// Where the request begins in a disk of `size` bytes, if it lies within it.
    private func place(in size: UInt64) -> Int? {
        offset <= size && length <= size - offset ? Int(exactly: offset) : nil
    }

    private func room(at position: UInt64, _ wanted: Int) -> Int {
        position < length ? min(wanted, Int(clamping: length - position)) : 0
    }

    /// Walks over the buffers of the bytes `from ..< from + count`; `body` gets memory, the bytes before it, and its bytes.
    private func forEachPart(
        from: Int, count: Int, _ body: (UnsafeMutableRawPointer, _ position: Int, _ count: Int) -> Void
    ) {
        guard unsafe request.pointee.iovcnt > 0, let parts = unsafe request.pointee.iov else { return }
        var (skip, done) = (from, 0)
        for index in unsafe 0..<Int(request.pointee.iovcnt) {
            guard done < count else { return }
            let part = unsafe parts[index]
            guard let base = unsafe part.iov_base else { return }
            let size = unsafe part.iov_len
            if skip >= size {
                skip -= size
                continue
            }
            let some = min(size - skip, count - done)
            unsafe body(base + skip, done, some)
            skip = 0
            done += some
        }
    }
}

/// The buffers of a request as one run of bytes, walked from front to back. Valid until the request is completed.
@safe
public struct BufferCursor {
    private let parts: UnsafeBufferPointer<iovec>
    private var index = 0
    private var done = 0

    /// At the first byte.
    public init(_ request: borrowing Request) { unsafe parts = request.vectors }

    /// The next memory, at most `most` bytes; empty behind the last. The bytes count as used.
    public mutating func take(_ most: UInt64) -> UnsafeMutableRawBufferPointer {
        while unsafe index < parts.count {
            let part = unsafe parts[index]
            let left = unsafe part.iov_len - done
            if left > 0, let base = unsafe part.iov_base {
                let taken = Int(min(UInt64(left), most))
                let memory = unsafe UnsafeMutableRawBufferPointer(start: base + done, count: taken)
                done += taken
                return unsafe memory
            }
            index += 1
            done = 0
        }
        return unsafe UnsafeMutableRawBufferPointer(start: nil, count: 0)
    }
}
