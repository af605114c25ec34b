// SPDX-License-Identifier: BSD-2-Clause
// The mark that a queue leaves in a request's memory.
import FileKit
import Glibc
import PluginAPI
import PluginKit

/// What a queue keeps in a request's memory behind the iocb or the job: a number of the plugin's for an I/O that goes straight to the file,
/// and where the request began on the disk.
package enum RequestTag {
    /// Bytes of memory for each request.
    package static let scratch = requestScratch + 16
    @usableFromInline static let none: UInt64 = .max

    /// The request is for the engine.
    package static func clear(_ request: UnsafeMutablePointer<xbb_req>) {
        unsafe request.pointee.ctx?.storeBytes(of: none, toByteOffset: requestScratch, as: UInt64.self)
    }

    /// The request goes to `place` of the file.
    @inlinable @inline(__always)
    package static func set(_ request: UnsafeMutablePointer<xbb_req>, _ token: UInt8, place: UInt64) {
        guard let memory = unsafe request.pointee.ctx else { return }
        unsafe memory.storeBytes(of: UInt64(token), toByteOffset: requestScratch, as: UInt64.self)
        unsafe memory.storeBytes(of: request.pointee.offset, toByteOffset: requestScratch + 8, as: UInt64.self)
        unsafe request.pointee.offset = place
    }

    /// Takes the mark away, and lets the request begin where it did; nil: it had none.
    @inlinable @inline(__always)
    package static func take(_ request: UnsafeMutablePointer<xbb_req>) -> UInt8? {
        guard let memory = unsafe request.pointee.ctx else { return nil }
        let kept = unsafe memory.load(fromByteOffset: requestScratch, as: UInt64.self)
        guard kept != none else { return nil }
        unsafe request.pointee.offset = memory.load(fromByteOffset: requestScratch + 8, as: UInt64.self)
        unsafe memory.storeBytes(of: none, toByteOffset: requestScratch, as: UInt64.self)
        return UInt8(truncatingIfNeeded: kept)
    }

    /// The request goes straight to the file.
    package static func isSet(on request: borrowing Request) -> Bool {
        guard let memory = unsafe request.scratch else { return false }
        return unsafe memory.load(fromByteOffset: requestScratch, as: UInt64.self) != none
    }
}
