// SPDX-License-Identifier: BSD-2-Clause
// The space of a worker's journal: the worker itself has the file mapped and not open, so that it cannot fill the file system
// in which the journals of all disks are.
internal import Base
import CLinux
import Glibc

/// The open file of a journal, and how long it may be.
package final class JournalSpace {
    private let file: Descriptor
    /// The most bytes.
    let most: Int
    /// What stays when the file is sized anew: its first page, which says whose it is.
    private static let kept: UInt64 = 4096

    /// Opens or makes the file; nil where that fails. The worker, which does the same, says why.
    package init?(_ path: String, most: Int) {
        let raw = unsafe clinux_open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0o600)
        guard raw >= 0 else { return nil }
        file = Descriptor(owning: raw)
        self.most = most
    }

    /// Empties the file but for its first page, then makes it `bytes` long, with all of its blocks.
    func reserve(_ bytes: Int) throws(OperationError) {
        let code = clinux_reserve_file(file.raw, Self.kept, UInt64(bytes))
        if code != 0 { throw OperationError(code, "reserve \(bytes) bytes of journal") }
    }
}
