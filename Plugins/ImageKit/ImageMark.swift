// SPDX-License-Identifier: BSD-2-Clause
// What a worker knows of an image, for its successor: that it has looked through all tables, or that nothing may be written any more.
//
// Nothing in the image can say the first, because who made the image would say it too, and nothing that could not be made durable can
// say the second. The position of the open file can: it goes from a worker to its successor with the open file itself, as the lock does
// that keeps others from writing, and it ends with it. Nobody else uses the position, since all I/O names its own place.
import Glibc

/// The mark at an open file. Its values are places that nobody comes to by reading or asking for the size: no image has 7 bytes.
package enum ImageMark: off_t {
    /// All tables were looked through.
    case vouched = 3
    /// Damage was found, or a sync has failed: nothing is written any more.
    case failed = 7

    /// What a process before this one has left at the open file.
    package init?(fd: Int32) { self.init(rawValue: lseek(fd, 0, SEEK_CUR)) }

    /// Leaves it for the next process. The end of all writing stays.
    package func leave(fd: Int32) {
        if self == .vouched, ImageMark(fd: fd) == .failed { return }
        _ = lseek(fd, rawValue, SEEK_SET)
    }
}
