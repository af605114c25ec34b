// SPDX-License-Identifier: BSD-2-Clause
// What open() is given: the descriptor, the flags and the parsed options, with checked access.
import Glibc
import PluginAPI

/// A view of `xbb_open`, valid while `open()` runs.
@safe
public struct Opening {
    private let open: UnsafePointer<xbb_open>

    /// What the host passed, or nil if it does not know all options of the schema.
    public init?(_ open: UnsafePointer<xbb_open>?, optionCount: Int) {
        guard let open = unsafe open, unsafe Int(open.pointee.option_count) == optionCount,
            unsafe optionCount == 0 || open.pointee.options != nil
        else { return nil }
        unsafe self.open = unsafe open
    }

    /// The image or device; borrowed until `close()` returns.
    public var fd: Int32 { unsafe open.pointee.fd }
    /// `xbb_hdev`, the host's name for the disk.
    public var disk: OpaquePointer? { unsafe open.pointee.hdev }
    /// The disk must not be written to.
    public var isReadOnly: Bool { unsafe open.pointee.flags & UInt32(XBB_OPEN_RDONLY) != 0 }

    /// The number of option `index`: BOOL 0 or 1, UINT, SIZE, ENUM as the index of the choice.
    public func number(_ index: Int) -> UInt64 {
        guard index >= 0, unsafe index < Int(open.pointee.option_count), let options = unsafe open.pointee.options
        else { return 0 }
        return unsafe options[index].num
    }

    /// The text of a STRING, SECRET or ENUM option.
    public func text(_ index: Int) -> String {
        guard index >= 0, unsafe index < Int(open.pointee.option_count), let options = unsafe open.pointee.options,
            let text = unsafe options[index].str
        else { return "" }
        return unsafe String(cString: text)
    }

    /// The format that was configured, one of the plugin's.
    public var format: String { unsafe open.pointee.format.map { unsafe String(cString: $0) } ?? "" }
    /// The image's name in messages; not necessarily a path.
    public var label: String { unsafe open.pointee.label.map { unsafe String(cString: $0) } ?? "the image" }

    /// The truth of a BOOL option.
    public func isOn(_ index: Int) -> Bool { number(index) != 0 }
}
