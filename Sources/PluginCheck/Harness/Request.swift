// SPDX-License-Identifier: BSD-2-Clause
// A request with memory of its own.
import CPluginHarness
import Glibc
import PluginAPI

/// One request. If `guarded`, an access of the plugin after the completion is detected.
///
/// Unsafe code here is the C harness, which owns the request and its buffers.
@safe
package final class Request {
    package let handle: UnsafeMutablePointer<harness_request>
    package private(set) var op = 0
    package private(set) var offset: UInt64 = 0
    package private(set) var length = 0

    package init(guarded: Bool = false) {
        // The harness ends the process if there is no memory.
        unsafe handle = unsafe harness_request_new()
        unsafe handle.pointee.guarded = guarded
    }

    /// A guarded request; see ``set(_:_:_:flags:cuts:)``.
    package convenience init(_ op: Int, _ offset: UInt64, _ length: Int, flags: Int = 0, cuts: [Int] = []) {
        self.init(guarded: true)
        set(op, offset, length, flags: flags, cuts: cuts)
    }

    deinit {
        // A request that the plugin still holds is not freed.
        if unsafe handle.pointee.state != UInt32(HARNESS_OFFERED) { unsafe harness_request_free(handle) }
    }

    /// The status of the first completion.
    package var status: Int32 { unsafe handle.pointee.status }
    package var isDone: Bool { unsafe handle.pointee.state == UInt32(HARNESS_DONE) }

    /// Operation and place, as text.
    package var name: String {
        let names = ["operation 0", "READ", "WRITE", "FLUSH", "DISCARD", "WRITE_ZEROES"]
        return op == XBB_OP_FLUSH
            ? "FLUSH" : "\(names.indices.contains(op) ? names[op] : "operation \(op)") of \(length) bytes at \(offset)"
    }

    /// Sets operation and place. The data is split into buffers that end at `cuts`. A read's buffers are filled with
    /// 0xee first.
    package func set(_ op: Int, _ offset: UInt64, _ length: Int, flags: Int = 0, cuts: [Int] = []) {
        let hasData = op == XBB_OP_READ || op == XBB_OP_WRITE
        let ends = cuts + [length]
        var lengths: [UInt32] = []
        for (index, end) in ends.enumerated() { lengths.append(UInt32(end - (index == 0 ? 0 : ends[index - 1]))) }
        unsafe harness_shape(handle, lengths, hasData ? UInt32(lengths.count) : 0)
        unsafe handle.pointee.req.pointee.op = UInt8(op)
        unsafe handle.pointee.req.pointee.flags = UInt16(flags)
        unsafe handle.pointee.req.pointee.offset = offset
        unsafe handle.pointee.req.pointee.length = UInt64(length)
        (self.op, self.offset, self.length) = (op, offset, length)
        if op == XBB_OP_READ { put([UInt8](repeating: 0xee, count: length)) }
    }

    /// Fills the buffers.
    package func put(_ bytes: [UInt8]) { unsafe harness_put(handle, bytes, UInt64(bytes.count)) }

    /// The content of the buffers.
    package var bytes: [UInt8] {
        var bytes = [UInt8](repeating: 0, count: length)
        unsafe harness_fetch(handle, &bytes, UInt64(length))
        return bytes
    }
}
