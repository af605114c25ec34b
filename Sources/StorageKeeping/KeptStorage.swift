// SPDX-License-Identifier: BSD-2-Clause
// The open files and devices of a disk, as they go from a worker to the next by way of xbbd.
package import Base
import CLinux
import Glibc

/// The files and devices of a disk, open: the attached image and all below it.
///
/// A successor that gets them serves the same storage whatever their names lead to by now, and the locks that belong to the
/// open files (fcntl(2), F_OFD_SETLK) have no gap.
package struct KeptStorage: Sendable {
    /// One file or device.
    package struct Image: Sendable {
        /// The path that it was opened by, for messages and for comparison with what is asked for.
        package let path: String
        /// Its format.
        package let format: String
        /// Which file or device it is.
        package let identity: StorageIdentity
        /// It was opened for reading only.
        package let isReadOnly: Bool
        /// The device's number; nil for a file.
        package let deviceNumber: DeviceNumber?
        /// It is open here.
        package let file: Descriptor
        /// The same file, opened a second time; nil where it is not written, or could not be.
        package private(set) var witness: Descriptor?

        /// Describes an open file; nil if it is neither a regular file nor a block device.
        package init?(path: String, format: String, file: Descriptor, witness: Descriptor? = nil) {
            var status = stat()
            guard unsafe fstat(file.raw, &status) == 0, let identity = StorageIdentity(file: file.raw) else {
                return nil
            }
            let kind = status.st_mode & S_IFMT
            guard kind == S_IFREG || kind == S_IFBLK else { return nil }
            let flags = clinux_fcntl_int(file.raw, F_GETFL, 0)
            guard flags >= 0 else { return nil }
            isReadOnly = flags & O_ACCMODE == O_RDONLY
            deviceNumber =
                kind == S_IFBLK
                ? DeviceNumber(major: gnu_dev_major(status.st_rdev), minor: gnu_dev_minor(status.st_rdev)) : nil
            self.path = path
            self.format = format
            self.identity = identity
            self.file = file
            self.witness = witness
        }

        /// Opens a file that is written a second time, as its witness; nil where that cannot be.
        package static func openWitness(of file: Int32) -> Descriptor? {
            let raw = unsafe clinux_open("/proc/self/fd/\(file)", O_RDONLY | O_APPEND | O_CLOEXEC | O_NONBLOCK, 0)
            return raw < 0 ? nil : Descriptor(owning: raw)
        }

        /// Whether an open file is a witness, and not another one of the same file, such as a plugin's claim of a device: O_APPEND
        /// says nothing of a file that is only read, and nobody else asks for it.
        package static func isWitness(_ file: Descriptor) -> Bool {
            let flags = clinux_fcntl_int(file.raw, F_GETFL, 0)
            return flags >= 0 && flags & O_ACCMODE == O_RDONLY && flags & O_APPEND != 0
        }

        /// Whether writing back has failed since this open file was asked for the last time, or that was found and nobody was told:
        /// the finding stands in the position of the open file, which goes with it to each successor, until ``forgetError(of:)``.
        /// Neither writes nor waits: where nothing can be there is nothing to wait for, and the error is told for all of the file.
        package static func hasError(_ witness: Descriptor) -> Bool {
            let isNew =
                sync_file_range(witness.raw, 1 << 62, 1, UInt32(SYNC_FILE_RANGE_WAIT_BEFORE)) != 0
                && [EIO, ENOSPC, EDQUOT].contains(errno)
            if isNew { _ = lseek(witness.raw, untold, SEEK_SET) }
            return isNew || hasUntoldError(witness)
        }
        /// Whether an error was found by a process before and nobody was told.
        static func hasUntoldError(_ witness: Descriptor) -> Bool { lseek(witness.raw, 0, SEEK_CUR) == untold }
        /// A place that nobody else makes the position of a witness.
        private static let untold: off_t = 7

        /// The guest was told of all errors so far.
        package static func forgetError(of witness: Descriptor) {
            _ = hasError(witness)
            _ = lseek(witness.raw, 0, SEEK_SET)
        }

        /// Takes a second open file on, if it is of this image.
        mutating func take(_ witness: Descriptor) -> Bool {
            guard self.witness == nil, !isReadOnly, StorageIdentity(file: witness.raw) == identity else { return false }
            self.witness = witness
            return true
        }
    }

    /// The most images of a message.
    static var mostImages: Int { Int(CLINUX_MOST_DESCRIPTORS) }

    /// From the attached image down; one at least.
    package private(set) var images: [Image]

    /// These images; nil where there are none, or too many.
    package init?(_ images: [Image]) {
        guard (1...Self.mostImages).contains(images.count) else { return nil }
        self.images = images
    }

    /// The identities, as a worker publishes them.
    package var identities: [StorageIdentity] { images.map(\.identity) }

    /// All open files, as they are sent: those of ``images``, and the second ones of those that have one.
    package var files: [Descriptor] { images.map(\.file) + images.compactMap(\.witness) }

    /// The same, with those of `files` that are second open files of its images.
    package func witnessed(by files: [Descriptor]) -> KeptStorage {
        var storage = self
        for file in files { _ = storage.images.indices.contains { storage.images[$0].take(file) } }
        return storage
    }

    /// What was written to one of the files may be lost, and nobody may have been told: the kernel tells an error of writing back once
    /// to each open file, and whoever it told with ``Image/file`` may be dead.
    package var hasLostWrites: Bool {
        images.contains { image in
            image.witness.map(Image.hasError) ?? false
        }
    }

    /// The same, where the process before has not died: what one before that has left, and nobody was told.
    package var hasUntoldLoss: Bool { images.compactMap(\.witness).contains(where: Image.hasUntoldError) }

    /// The open image at `path`, if it is one of these.
    package func image(at path: String) -> Image? { images.first { $0.path == path } }

    // MARK: Locks

    /// Lets the locks go that belong to the open files, in QEMU's scheme (Plugins/FileKit/ImageLock.swift). Where `for` is not
    /// nil, only so much that a successor which opens the images anew gets them: that of a writer goes, and all of the image
    /// which is going to be written. Nobody else who writes comes in between elsewhere.
    package func releaseLocks(for top: StorageIdentity? = nil) {
        for image in images {
            var range = flock()
            range.l_type = Int16(truncatingIfNeeded: F_UNLCK)
            range.l_whence = Int16(SEEK_SET)
            let isAll = top == nil || top == image.identity
            range.l_start = isAll ? 100 : 101
            range.l_len = isAll ? 200 : 1
            // The structure outlives the call.
            _ = unsafe clinux_fcntl_pointer(image.file.raw, clinux_F_OFD_SETLK, &range)
        }
    }

    // MARK: Text

    /// Format and path of each image, each ended by a NUL, which neither can contain.
    package var manifest: [UInt8] {
        images.flatMap { [UInt8]($0.format.utf8) + [0] + [UInt8]($0.path.utf8) + [0] }
    }

    /// Reads a ``manifest``: formats and paths; nil if it is none.
    package static func readManifest(_ bytes: ArraySlice<UInt8>) -> [(format: String, path: String)]? {
        var fields: [String] = []
        var rest = bytes
        while let end = rest.firstIndex(of: 0) {
            guard fields.count < 2 * mostImages, let text = String(validating: rest[..<end], as: UTF8.self) else {
                return nil
            }
            fields.append(text)
            rest = rest[(end + 1)...]
        }
        guard rest.isEmpty, !fields.isEmpty, fields.count.isMultiple(of: 2) else { return nil }
        return stride(from: 0, to: fields.count, by: 2).map { (fields[$0], fields[$0 + 1]) }
    }

    /// The images of a manifest and their open files, in the same order; nil if they do not fit together.
    package init?(manifest: ArraySlice<UInt8>, files: [Descriptor]) {
        guard let entries = Self.readManifest(manifest), entries.count <= files.count else { return nil }
        var images = zip(entries, files).compactMap { Image(path: $0.path, format: $0.format, file: $1) }
        guard images.count == entries.count else { return nil }
        for witness in files[entries.count...] {
            guard images.indices.contains(where: { images[$0].take(witness) }) else { return nil }
        }
        self.init(images)
    }
}
