// SPDX-License-Identifier: BSD-2-Clause
// A request on its way through a plugin.
import Glibc
import PluginAPI

/// A request as the plugin has it, with what the host needs beside it.
@unsafe
package struct PluginRequest: BitwiseCopyable {
    /// First, so that the plugin's pointer is also ours.
    package var req: xbb_req
    package var iov: iovec
    /// ``PluginRequestState``, changed atomically.
    package var state: UInt32
    /// The status that the plugin gave: 0 or a negative errno.
    package var status: Int32
    /// The reqlist that it belongs to.
    package var list: Int32
    /// The next one in the stack of completions from other threads, plus one.
    package var link: UInt32
}

/// Who has a plugin request.
package enum PluginRequestState {
    /// The host.
    package static let host: UInt32 = 0
    /// The plugin, from submit() to complete().
    package static let plugin: UInt32 = 1
    /// The host again, not yet looked at.
    package static let completed: UInt32 = 2
}
