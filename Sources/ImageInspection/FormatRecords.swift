// SPDX-License-Identifier: BSD-2-Clause
// Records the format that each image was served as. A guest can make a raw disk look like an image of any format that
// names files of the host, so a disk that was raw must stay raw for `format=auto` and for every tool that inspects it
// later.
import PluginHost
import Base
import CLinux
import Glibc
import Support

/// Identifies an image independently of its name.
public struct ImageIdentity: Sendable, Equatable {
    /// The absolute path, with symbolic links resolved.
    public let path: String
    /// st_dev and st_ino of a file; nil for a block device, whose numbers change with each boot.
    let file: (device: UInt64, inode: UInt64)?

    init(path: String, file: (device: UInt64, inode: UInt64)?) {
        self.path = path
        self.file = file
    }

    /// The image at a path; nil if there is none.
    public init?(of path: String) {
        guard let resolved = unsafe realpath(path, nil) else { return nil }
        defer { unsafe free(resolved) }
        var status = stat()
        guard unsafe stat(resolved, &status) == 0 else { return nil }
        self.path = unsafe String(cString: resolved)
        file = status.st_mode & S_IFMT == S_IFREG ? (UInt64(status.st_dev), UInt64(status.st_ino)) : nil
    }

    /// The same file under the same name.
    public static func == (left: ImageIdentity, right: ImageIdentity) -> Bool {
        left.path == right.path && left.isSameFile(as: right)
    }

    /// True for the same file under any name, and for a block device of the same path. A file system may get another
    /// device number at the next boot, so a file with the same path and inode counts as the same.
    func isSameFile(as other: ImageIdentity) -> Bool {
        switch (file, other.file) {
        case (let own?, let file?): own.inode == file.inode && (own.device == file.device || path == other.path)
        case (nil, nil): path == other.path
        default: false
        }
    }
}

/// An image and the format that it was served as.
struct FormatRecord: Sendable, Equatable {
    let identity: ImageIdentity
    let format: String

    init(identity: ImageIdentity, format: String) {
        self.identity = identity
        self.format = format
    }

    /// Three lines: format; "DEVICE INODE", or "-" for a block device; path.
    init?(parsing text: String) {
        let lines = text.split(separator: "\n", maxSplits: 2, omittingEmptySubsequences: false).map(String.init)
        guard lines.count == 3, PluginLibrary.isValidName(lines[0]), lines[2].hasPrefix("/"), lines[2].hasSuffix("\n")
        else { return nil }
        format = lines[0]
        let path = String(lines[2].dropLast())
        if lines[1] == "-" {
            identity = ImageIdentity(path: path, file: nil)
            return
        }
        let numbers = lines[1].split(separator: " ").map { UInt64($0) }
        guard numbers.count == 2, let device = numbers[0], let inode = numbers[1] else { return nil }
        identity = ImageIdentity(path: path, file: (device, inode))
    }

    package var text: String {
        "\(format)\n\(identity.file.map { "\($0.device) \($0.inode)" } ?? "-")\n\(identity.path)\n"
    }
}

/// The records of this machine, a file for each image in a directory that only root can change.
public struct FormatRecords: Sendable {
    /// Enough for a path and the numbers.
    private static let byteLimit = 8 << 10
    private let directory: String

    /// The records below a state directory.
    public init(stateDirectory: String) {
        directory = "\(stateDirectory)/formats"
    }

    /// The format that the image was served as, whatever its name is now; nil if none is recorded. Throws if there is
    /// more than one, and if another file has taken the image's name.
    public func format(of image: ImageIdentity) throws(OperationError) -> String? {
        try FormatChoice.remembered(all(), image: image)
    }

    /// Records the format that an image is served as now, and forgets an earlier one.
    public func note(_ image: ImageIdentity, format: String) throws(OperationError) {
        let record = FormatRecord(identity: image, format: format)
        let file = "\(directory)/\(Self.fileName(for: image.path))"
        if let known = read(file), known == record { return }
        for (name, other) in files() where other.identity.isSameFile(as: image) && name != file {
            _ = unsafe unlink(name)
        }
        do throws(OperationError) {
            try write(record.text, to: file)
        } catch {
            throw OperationError(.open, "cannot remember the format of \(image.path): \(error)")
        }
    }

    private func write(_ text: String, to file: String) throws(OperationError) {
        if unsafe mkdir(directory, 0o700) != 0 && errno != EEXIST { throw OperationError(errno, "make \(directory)") }
        let new = "\(file).\(getpid())"
        let raw = unsafe clinux_open(new, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0o600)
        if raw < 0 { throw OperationError(errno, "make \(new)") }
        let bytes = [UInt8](text.utf8)
        let count = unsafe bytes.withUnsafeBytes { unsafe Glibc.write(raw, $0.baseAddress, $0.count) }
        let code = count == bytes.count && fsync(raw) == 0 ? 0 : (count < 0 ? errno : ENOSPC)
        close(raw)
        let result = code == 0 ? unsafe rename(new, file) : -1
        if result != 0 {
            let code = code != 0 ? code : errno
            _ = unsafe unlink(new)
            throw OperationError(code, "write \(file)")
        }
    }

    private func all() -> [FormatRecord] { files().map(\.record) }

    private func files() -> [(name: String, record: FormatRecord)] {
        DirectoryListing.names(in: directory).sorted().compactMap { name in
            read("\(directory)/\(name)").map { ("\(directory)/\(name)", $0) }
        }
    }

    private func read(_ file: String) -> FormatRecord? {
        SmallFile.contents(file, limit: Self.byteLimit)
            .flatMap { FormatRecord(parsing: String(decoding: $0, as: UTF8.self)) }
    }

    /// The path's 64-bit FNV-1a hash; the file itself contains the path.
    static func fileName(for path: String) -> String {
        var sum: UInt64 = 0xcbf2_9ce4_8422_2325
        for byte in path.utf8 { sum = (sum ^ UInt64(byte)) &* 0x100_0000_01b3 }
        let digits = String(sum, radix: 16)
        return String(repeating: "0", count: 16 - digits.count) + digits
    }
}
