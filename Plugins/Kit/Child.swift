// SPDX-License-Identifier: BSD-2-Clause
// Files that an image names: opened by the host, which alone decides about names, formats and depth.
import Glibc
import PluginAPI

/// `xbb_host.child_submit`, to be kept by those who call it often.
public typealias HostChildSubmit =
    @convention(c) (
        _ queue: OpaquePointer?, _ child: OpaquePointer?, _ request: UnsafeMutablePointer<xbb_req>?,
        _ done: xbb_child_fn?, _ argument: UnsafeMutableRawPointer?
    ) -> Int32

extension PluginHost {
    /// Asks for a file that an image names; only in `open()`.
    ///
    /// - Returns: `xbb_child`, valid until `close()` returns.
    public func openChild(_ reference: inout xbb_ref, disk: OpaquePointer?) throws(PluginError) -> OpaquePointer {
        var child: OpaquePointer?
        var failure = xbb_error()
        let code = unsafe table.pointee.child_open?(disk, &reference, &child, &failure) ?? -ENOSYS
        guard code == 0, let child = unsafe child else {
            let words = unsafe withUnsafeBytes(of: failure.message) { bytes in
                unsafe String(decoding: bytes.prefix { $0 != 0 }, as: UTF8.self)
            }
            throw PluginError(code < 0 ? -code : EIO, words.isEmpty ? "the host refuses a file of the image" : words)
        }
        return unsafe child
    }

    /// The read-only descriptor of a raw child, which is the host's; -1 for disks of other formats.
    public func descriptor(ofChild child: OpaquePointer) -> Int32 { unsafe table.pointee.child_fd?(child) ?? -1 }

    /// The size of a child in bytes.
    public func size(ofChild child: OpaquePointer) throws(PluginError) -> UInt64 {
        var info = xbb_info()
        info.struct_size = UInt32(MemoryLayout<xbb_info>.size)
        let code = unsafe table.pointee.child_info?(child, &info) ?? -ENOSYS
        guard code == 0 else { throw PluginError(system: "the host says nothing about the backing file", -code) }
        return info.size
    }

    /// `xbb_host.child_submit`.
    public var childSubmit: HostChildSubmit? { unsafe table.pointee.child_submit }
}
