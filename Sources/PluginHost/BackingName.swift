// SPDX-License-Identifier: BSD-2-Clause
// A file name found in an image, and whether the host may open it. The image's author chose it and may be hostile.
import Base
import CLinux
import Glibc

/// The directories in which images may name backing files. None by default: an image does not decide what the host
/// opens.
public struct BackingPolicy: Sendable, Equatable {
    /// Absolute paths of directories; everything below them may be a backing file.
    public var directories: [String]
    /// The most images in a chain, including the attached one.
    public var mostImages = 16

    /// Backing files below `directories` and nowhere else.
    public init(directories: [String] = []) {
        self.directories = directories
    }
}

/// A file that an image named, judged and ready to be opened.
package struct BackingName {
    /// The absolute path that is opened, for messages and `show`.
    package let path: String
    /// The allowed directory that contains the file, and the path below it.
    private let directory: String
    private let rest: String
    private let what: String

    /// Checks `name`, found in the image at `image`, without opening anything. `what`: what it is, in messages.
    package init(
        _ name: [UInt8], in image: String, allowed policy: BackingPolicy, as what: String = "backing file"
    ) throws(OperationError) {
        self.what = what
        guard !name.isEmpty, !name.contains(0), let text = String(validating: name, as: UTF8.self) else {
            throw Self.refusal(image, what, "of a name that is none (\(name.count) bytes)")
        }
        // As in QEMU: a ':' before the first '/' makes it a protocol, "nbd:", "json:", "https:".
        if let mark = text.firstIndex(where: { $0 == ":" || $0 == "/" }), text[mark] == ":" {
            throw Self.refusal(image, what, "'\(Self.shown(text))': it is no file name")
        }
        let absolute = text.hasPrefix("/") ? text : Self.folder(of: image) + "/" + text
        let parts = absolute.split(separator: "/").filter { $0 != "." }
        guard !parts.contains(".."), !parts.isEmpty else {
            throw Self.refusal(image, what, "'\(Self.shown(text))': a name with '..' is not followed")
        }
        let path = "/" + parts.joined(separator: "/")
        let homes = policy.directories.map { "/" + $0.split(separator: "/").joined(separator: "/") }
        let home = homes.filter { path.hasPrefix($0 == "/" ? "/" : $0 + "/") }.max { $0.utf8.count < $1.utf8.count }
        guard let home else {
            let known = homes.isEmpty ? "none is" : homes.joined(separator: ", ") + " are"
            throw Self.refusal(
                image, what, "\(Self.shown(path)): \(what)s must be below a backing-dir of xbb.conf, and \(known) set")
        }
        self.path = path
        directory = home
        rest = String(path.dropFirst(home == "/" ? 1 : home.utf8.count + 1))
    }

    /// Opens it for reading, or with `isWritable` for both, without leaving the allowed directory and without following a link.
    ///
    /// O_NONBLOCK keeps the open of a FIFO from waiting; anything but a regular file and a block device is refused, and a device
    /// for writing.
    package func open(isWritable: Bool = false) throws(OperationError) -> Int32 {
        let home = unsafe clinux_open(directory, O_PATH | O_DIRECTORY | O_CLOEXEC, 0)
        guard home >= 0 else {
            throw OperationError(.open, "cannot open the directory \(directory) of a \(what)", .errno(errno))
        }
        defer { close(home) }
        let file = unsafe clinux_open_beneath(
            home, rest, (isWritable ? O_RDWR : O_RDONLY) | O_CLOEXEC | O_NONBLOCK | O_NOCTTY)
        guard file >= 0 else {
            let code = errno
            let reason =
                switch code {
                case ELOOP: "it is a symbolic link, or behind one"
                case EXDEV: "it leads out of \(directory)"
                case ENOSYS: "Linux 5.6 or later is needed to open it safely"
                default: errnoText(code)
                }
            throw OperationError(.open, "cannot open the \(what) \(Self.shown(path)): \(reason)")
        }
        var status = stat()
        let kind = unsafe fstat(file, &status) == 0 ? status.st_mode & S_IFMT : 0
        guard kind == S_IFREG || kind == S_IFBLK && !isWritable else {
            close(file)
            let wanted = isWritable ? "no regular file" : "neither a regular file nor a block device"
            throw OperationError(.open, "the \(what) \(Self.shown(path)) is \(wanted)")
        }
        return file
    }

    private static func refusal(_ image: String, _ kind: String, _ what: String) -> OperationError {
        OperationError(.open, "\(image) names a \(kind) \(what)")
    }

    /// A name with everything removed that could disturb a terminal or a log.
    package static func shown(_ name: String) -> String {
        String(name.unicodeScalars.prefix(200).map { String($0).hasControlCharacters ? "?" : Character($0) })
    }

    private static func folder(of path: String) -> String {
        "/" + path.split(separator: "/").dropLast().joined(separator: "/")
    }
}
