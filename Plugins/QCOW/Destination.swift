// SPDX-License-Identifier: BSD-2-Clause
// The buffers of a request as one run of bytes, walked from front to back.
import Glibc
import PluginAPI

/// Where the next bytes of a READ go.
@safe
struct Destination {
    private let parts: UnsafePointer<iovec>?
    private let count: Int
    private var index = 0
    private var done = 0

    init(_ request: UnsafeMutablePointer<xbb_req>) {
        unsafe parts = unsafe request.pointee.iov
        count = unsafe Int(request.pointee.iovcnt)
    }

    /// The next memory, at most `most` bytes; empty behind the last. The bytes count as filled.
    mutating func take(_ most: UInt64) -> UnsafeMutableRawBufferPointer {
        while index < count, let part = unsafe parts?[index] {
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
