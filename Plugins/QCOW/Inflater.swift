// SPDX-License-Identifier: BSD-2-Clause
// zlib and zstd: the one file of the plugin that calls them.
import CQCOW
import Glibc
import PluginKit

/// How an image's clusters are compressed; the header's compression type.
enum Compression: UInt8 {
    case deflate = 0
    case zstd = 1
}

/// Decompresses clusters; for one thread.
@safe
final class Inflater {
    @safe
    private enum Context {
        case deflate(UnsafeMutablePointer<z_stream>)
        case zstd(OpaquePointer)
    }
    private let context: Context

    init(_ compression: Compression) throws(PluginError) {
        let failure = PluginError(ENOMEM, "no memory to decompress clusters")
        switch compression {
        case .deflate:
            guard let stream = unsafe cqcow_inflater() else { throw failure }
            context = unsafe .deflate(stream)
        case .zstd:
            guard let state = unsafe cqcow_decompressor() else { throw failure }
            context = unsafe .zstd(state)
        }
    }

    deinit {
        switch context {
        case .deflate(let stream): unsafe cqcow_inflater_free(stream)
        case .zstd(let state): unsafe cqcow_decompressor_free(state)
        }
    }

    /// True if all of `output` was filled from `input`.
    func inflate(_ input: UnsafeRawBufferPointer, into output: UnsafeMutableRawBufferPointer) -> Bool {
        switch context {
        case .deflate(let stream):
            unsafe cqcow_inflate(stream, input.baseAddress, input.count, output.baseAddress, output.count) != 0
        case .zstd(let state):
            unsafe cqcow_decompress(state, input.baseAddress, input.count, output.baseAddress, output.count) != 0
        }
    }
}
