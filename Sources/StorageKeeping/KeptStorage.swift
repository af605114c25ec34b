// SPDX-License-Identifier: BSD-2-Clause
// The open files and devices of a disk, as they go from a worker to the next by way of xbbd.
package import Base
import CLinux
import Glibc

/// The files and devices of a disk, open: the attached image and all below it; of a disk without a file what its plugin keeps
/// beyond its process, such as connections.
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

    /// A socket or memory that the plugin of a disk without a file leaves for its successor (`xbb_host.keep`).
    package struct Handle: Sendable {
        /// The plugin's number for it.
        package let key: UInt32
        /// The disk's format.
        package let format: String
        /// What the disk's configuration names.
        package let location: String
        /// It is open here.
        package let file: Descriptor
        let identity: StorageIdentity

        /// The most of a disk.
        package static var mostKeys: UInt32 { 32 }

        /// Describes an open file; nil if it is neither a socket nor memory, or the key is too large.
        package init?(key: UInt32, format: String, location: String, file: Descriptor) {
            var status = stat()
            guard key < Self.mostKeys, unsafe fstat(file.raw, &status) == 0 else { return nil }
            let kind = status.st_mode & S_IFMT
            // Memory has seals, or could have them; files of a file system outside of memory have none.
            guard kind == S_IFSOCK || (kind == S_IFREG && clinux_fcntl_int(file.raw, clinux_F_GET_SEALS, 0) >= 0) else {
                return nil
            }
            (self.key, self.format, self.location, self.file) = (key, format, location, file)
            identity = StorageIdentity(status)
        }

        /// Format and place of a manifest's pair: "=FORMAT" and "KEY:LOCATION". No format begins like that.
        var pair: (String, String) { ("=\(format)", "\(key):\(location)") }

        init?(format: Substring, place: String, file: Descriptor) {
            guard let colon = place.firstIndex(of: ":"), let key = UInt32(place[..<colon]) else { return nil }
            self.init(
                key: key, format: String(format), location: String(place[place.index(after: colon)...]), file: file)
        }
    }

    /// The most files of a message.
    static var mostImages: Int { Int(CLINUX_MOST_DESCRIPTORS) }

    /// From the attached image down; none for a disk without a file.
    package private(set) var images: [Image]
    /// What the plugin keeps of a disk without a file.
    package let handles: [Handle]

    /// These images or handles; nil where there are none, or too many.
    package init?(_ images: [Image], handles: [Handle] = []) {
        guard (1...Self.mostImages).contains(images.count + handles.count) else { return nil }
        self.images = images
        self.handles = handles
    }

    /// The identities of all that is open, in the order of ``manifest``.
    package var identities: [StorageIdentity] { images.map(\.identity) + handles.map(\.identity) }

    /// All open files, as they are sent: those of ``images`` and ``handles``, and the second ones of images that have one.
    package var files: [Descriptor] { images.map(\.file) + handles.map(\.file) + images.compactMap(\.witness) }

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

    /// Format and path of each image, each ended by a NUL, which neither can contain; then the same of ``handles``.
    package var manifest: [UInt8] {
        (images.map { ($0.format, $0.path) } + handles.map(\.pair))
            .flatMap { [UInt8]($0.0.utf8) + [0] + [UInt8]($0.1.utf8) + [0] }
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
        var (images, handles): ([Image], [Handle]) = ([], [])
        for (entry, file) in zip(entries, files) {
            if entry.format.hasPrefix("=") {
                guard let handle = Handle(format: entry.format.dropFirst(), place: entry.path, file: file) else {
                    return nil
                }
                handles.append(handle)
            } else {
                guard let image = Image(path: entry.path, format: entry.format, file: file) else { return nil }
                images.append(image)
            }
        }
        // What is sent for the second time belongs to images, which come first.
        guard handles.isEmpty || entries.suffix(handles.count).allSatisfy({ $0.format.hasPrefix("=") }) else {
            return nil
        }
        for witness in files[entries.count...] {
            guard images.indices.contains(where: { images[$0].take(witness) }) else { return nil }
        }
        self.init(images, handles: handles)
    }
}
