// SPDX-License-Identifier: BSD-2-Clause
// What a worker knows of an image, for its successor: that it has looked through all tables.
//
// Nothing in the image can say that, because who made the image would say it too. The position of the open file can: it goes from a
// worker to its successor with the open file itself, as the lock does that keeps others from writing, and it ends with it. Nobody else
// uses the position, since all I/O names its own place.
import Glibc

/// The mark at an open file.
enum VouchedImage {
    /// A place that nobody comes to by reading or asking for the size: no image has 3 bytes.
    private static let place: off_t = 3

    /// A predecessor has looked.
    static func isMarked(fd: Int32) -> Bool { lseek(fd, 0, SEEK_CUR) == place }
    /// This one has looked.
    static func mark(fd: Int32) { _ = lseek(fd, place, SEEK_SET) }
}
