// SPDX-License-Identifier: BSD-2-Clause
// The image file or block device behind a disk. The host opens it and lends it to the plugin.
import CLinux
import Glibc
public import Base

/// The disk that an administrator asked for.
public struct DiskSource: Sendable, Equatable {
    /// The format. It is never guessed: "raw" unless another one was given.
    public var format: String
    /// Where the image is: the path of a file or device; for a plugin without a file text that it alone understands, or
    /// nothing.
    public var path: String
    /// Options of the plugin.
    public var options: [String: String]
    /// The guest may only read.
    public var readOnly: Bool
    /// Others have the storage too: a plugin with the option "lock" is told to take none, unless an option says otherwise.
    public var isShared = false
    /// Bypass the page cache if the filesystem can.
    public var direct: Bool
    /// The block device that must be found at the path; nil if none was specified.
    public var deviceNumber: DeviceNumber?

    /// A disk of `format` at `path`.
    public init(
        format: String, path: String, options: [String: String] = [:], readOnly: Bool = false, direct: Bool = true,
        deviceNumber: DeviceNumber? = nil
    ) {
        self.format = format
        self.path = path
        self.options = options
        self.readOnly = readOnly
        self.direct = direct
        self.deviceNumber = deviceNumber
    }

    /// The most bytes of a location that is no path.
    static let opaqueByteLimit = 1024

    /// The path, for a plugin that is given an open file. What is no path is refused, with how to say it.
    package func filePath() throws(OperationError) -> String {
        if path.hasPrefix("/") { return path }
        // A format and a path with two '/' look like a URI, and only the plugin tells which it is.
        let prefix = "\(format):"
        if path.hasPrefix("\(prefix)//") { return String(path.dropFirst(prefix.utf8.count)) }
        throw OperationError(
            .open,
            "'\(path)' is no absolute path, and format '\(format)' is served from a file or device: expected "
                + "\(format):/PATH")
    }

    /// What a plugin without a file is told. The root directory stands for nothing: XenStore has no way to say an empty
    /// location, which would be an empty drive.
    func opaqueLocation() throws(OperationError) -> String {
        if path == "/" { return "" }
        guard path.utf8.count <= Self.opaqueByteLimit else {
            throw OperationError(
                .open,
                "a location of format '\(format)' has at most \(Self.opaqueByteLimit) bytes, and this one has "
                    + "\(path.utf8.count)")
        }
        if path.hasControlCharacters {
            throw OperationError(.open, "a location of format '\(format)' has no control characters")
        }
        return path
    }
}

/// An open image or device.
package struct DiskFile: ~Copyable {
    package let descriptor: Int32
    /// Opened with O_DIRECT.
    let isDirect: Bool
    /// A block device rather than a regular file.
    package let isBlockDevice: Bool

    deinit {
        close(descriptor)
    }

    /// Opens an image or a block device; anything else is refused, without side effects.
    ///
    /// If `expected` is given, any other device is refused: the name may have been reused since the hotplug script
    /// looked. O_NONBLOCK keeps the open of a FIFO or a tape from waiting; it has no effect on files and disks.
    package init(
        path: String, readOnly: Bool, direct: Bool, expecting expected: DeviceNumber? = nil
    ) throws(OperationError) {
        var status = stat()
        if unsafe stat(path, &status) != 0 { throw Self.refuse(path, errno) }
        let kind = status.st_mode & S_IFMT
        if kind == S_IFDIR { throw OperationError(.open, "\(path) is a directory, not an image or a block device") }
        guard kind == S_IFREG || kind == S_IFBLK else {
            throw OperationError(.open, "\(path) is neither a regular file nor a block device")
        }
        let flags = (readOnly ? O_RDONLY : O_RDWR) | O_CLOEXEC | O_NOCTTY | O_NONBLOCK
        var isDirect = direct
        var opened = unsafe clinux_open(path, flags | (direct ? O_DIRECT : 0), 0)
        if opened < 0 && direct && errno == EINVAL {
            isDirect = false
            opened = unsafe clinux_open(path, flags, 0)
        }
        if opened < 0 { throw Self.refuse(path, errno) }
        // The path may have been replaced since stat(): check what was actually opened.
        if unsafe fstat(opened, &status) != 0 || (status.st_mode & S_IFMT) != kind {
            close(opened)
            throw OperationError(.open, "\(path) changed its kind while it was opened")
        }
        let found = DeviceNumber(major: gnu_dev_major(status.st_rdev), minor: gnu_dev_minor(status.st_rdev))
        if let expected, kind != S_IFBLK || found != expected {
            close(opened)
            let what = kind == S_IFBLK ? "block device \(found)" : "a regular file"
            throw OperationError(
                .open, "\(path) is \(what) now, and was block device \(expected) when it was attached; attach it again")
        }
        descriptor = opened
        self.isDirect = isDirect
        isBlockDevice = kind == S_IFBLK
    }

    private static func refuse(_ path: String, _ code: Int32) -> OperationError {
        let advice =
            switch code {
            case ENOENT: "; check the path of the disk"
            case EACCES, EPERM: "; the backend needs access to it"
            case EROFS: "; attach it read-only"
            case ETXTBSY, EBUSY: "; something else uses it"
            default: ""
            }
        return OperationError(.open, "cannot open \(path): \(errnoText(code))\(advice)", .told(code))
    }
}
