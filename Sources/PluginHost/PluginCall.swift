// SPDX-License-Identifier: BSD-2-Clause
// Conversions for calls into a plugin about an image: `struct xbb_open`, `struct xbb_error`, texts in C arrays.
import Base
import Glibc
import PluginAPI

/// Calls `body` with an open request for the image. The texts in it are valid only during the call; `location` is for
/// plugins without a file.
package func withOpenRequest<Answer>(
    _ format: String, label: String, location: String? = nil, flags: Int, file: Int32, options: PluginOptionValues,
    host: OpaquePointer?, _ body: (UnsafePointer<xbb_open>) -> Answer
) -> Answer {
    unsafe format.withCString { format in
        unsafe label.withCString { label in
            var request = unsafe xbb_open()
            unsafe request.struct_size = UInt32(MemoryLayout<xbb_open>.size)
            unsafe request.flags = UInt32(flags)
            unsafe request.hdev = host
            unsafe request.fd = file
            unsafe request.option_count = UInt32(options.count)
            unsafe request.options = UnsafePointer(options.values)
            unsafe request.format = format
            unsafe request.label = label
            guard let location else { return unsafe body(&request) }
            return unsafe location.withCString { location in
                unsafe request.location = location
                return unsafe body(&request)
            }
        }
    }
}

/// The text in an array of C characters, up to its first NUL.
package func text<Characters>(inArray array: Characters) -> String {
    unsafe withUnsafeBytes(of: array) { bytes in unsafe String(decoding: bytes.prefix { $0 != 0 }, as: UTF8.self) }
}

extension OperationError {
    /// The error of a plugin call that returned `result`: `what`, then the plugin's message, or the errno if there is
    /// none.
    package init(_ failure: xbb_error, _ result: Int32, _ what: String) {
        let message = text(inArray: failure.message)
        let code = result < 0 && result > -4096 ? -result : EIO
        if message.isEmpty {
            self.init(.open, what, .errno(code))
        } else {
            self.init(.open, "\(what): \(message)", .told(code))
        }
    }
}
