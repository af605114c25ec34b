// SPDX-License-Identifier: BSD-2-Clause
// The file with the data of an image that has only its tables in its own. The image's author chose the name, and a file that is
// written is more than one that is read: the disk's configuration says which one it may be.
import Base
import CLinux
import Glibc
internal import StorageKeeping

extension HostChild {
    /// Opens the data file `name` of the image at `image`.
    ///
    /// For writing it must be the file that the administrator named in the disk's option `data-file`, `granted`. For reading it may also
    /// be below a backing-dir, as backing files are. No link is followed, and for writing it is a regular file.
    static func openData(
        _ name: [UInt8], _ format: String, in image: String, chain: ImageChain, granted: String?, _ isReadOnly: Bool
    ) throws(OperationError) -> HostChild {
        guard format.isEmpty || format == "raw" else {
            throw OperationError(.open, "\(image) has a data file of format '\(format)'; only raw ones are opened")
        }
        let found = try allowed(name, in: image, chain.policy, granted, isReadOnly)
        let file = try open(found, inherited: chain.inherited, isReadOnly)
        do throws(OperationError) {
            try chain.enter(found.path, format: "raw", file: file)
            let end = lseek(file, 0, SEEK_END)
            guard end >= 0 else { throw OperationError(.open, "cannot examine \(found.path)", .errno(errno)) }
            return HostChild(device: nil, isOwn: false, descriptor: file, size: UInt64(end))
        } catch {
            Glibc.close(file)
            throw error
        }
    }

    private static func allowed(
        _ name: [UInt8], in image: String, _ policy: BackingPolicy, _ granted: String?, _ isReadOnly: Bool
    ) throws(OperationError) -> BackingName {
        let what = "data file"
        if let granted, granted.hasPrefix("/") {
            let parts = granted.split(separator: "/").filter { $0 != "." }
            let folder = BackingPolicy(directories: ["/" + parts.dropLast().joined(separator: "/")])
            let path = "/" + parts.joined(separator: "/")
            if let found = try? BackingName(name, in: image, allowed: folder, as: what), found.path == path {
                return found
            }
        }
        // What a name must be in any case.
        let found = try BackingName(
            name, in: image, allowed: isReadOnly ? policy : BackingPolicy(directories: ["/"]), as: what)
        if isReadOnly { return found }
        let shown = BackingName.shown(found.path)
        guard let granted, !granted.isEmpty else {
            throw OperationError(
                .open,
                "\(image) keeps its data in \(shown). An image does not decide which file is written: if that is its data "
                    + "file, say data-file=\(shown) in the options of the disk, or attach the disk read-only")
        }
        throw OperationError(
            .open,
            "\(image) keeps its data in \(shown), and the disk's option data-file says \(BackingName.shown(granted))")
    }

    /// The file of the process before, or the one that has the name now.
    private static func open(
        _ name: BackingName, inherited: KeptStorage?, _ isReadOnly: Bool
    ) throws(OperationError) -> Int32 {
        guard let inherited else { return try name.open(isWritable: !isReadOnly) }
        guard let image = inherited.image(at: name.path) else {
            throw OperationError(
                .open, "the image names another data file than before: \(BackingName.shown(name.path))")
        }
        guard isReadOnly || !image.isReadOnly else {
            throw OperationError(.open, "the data file \(BackingName.shown(name.path)) was opened for reading only")
        }
        return try duplicate(image.file)
    }
}
