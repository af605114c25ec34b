// SPDX-License-Identifier: BSD-2-Clause
// qemu-img, which makes overlays and writes them back: the tool that people trust with it.
import Base
import CLinux
import Glibc
import StorageKeeping
import Support

/// Runs qemu-img. Calls block.
public struct ImageTool: Sendable {
    /// How often ``run(_:meanwhile:)`` calls `meanwhile`, in ms.
    private static let interval: Int32 = 5000

    /// The program as PATH has it.
    public init() {}

    /// Runs it with `arguments` to its end. What it prints goes to standard error. `meanwhile` is called every 5 s; what it throws
    /// ends the program. It also ends with this process, at whatever time.
    public func run(_ arguments: [String], meanwhile: () throws(ControlError) -> Void = {}) throws(ControlError) {
        let name = "qemu-img \(arguments.first ?? "")"
        let process: WorkerProcess
        do throws(OperationError) {
            process = try WorkerProcess.spawn(
                ["/usr/bin/setpriv", "--pdeathsig", "KILL", "qemu-img"] + arguments,
                output: try Descriptor(clinux_fcntl_int(2, F_DUPFD_CLOEXEC, 3), "pass standard error on"))
        } catch {
            throw ControlError("cannot start \(name): \(error)")
        }
        while true {
            var entry = pollfd(fd: process.pidfd.raw, events: Int16(POLLIN), revents: 0)
            // One element, of a variable that outlives the call.
            if unsafe poll(&entry, 1, Self.interval) == 1 { break }
            do throws(ControlError) {
                try meanwhile()
            } catch {
                process.send(SIGKILL)
                _ = unsafe poll(&entry, 1, -1)
                _ = process.takeExit()
                throw error
            }
        }
        switch process.takeExit() ?? .unknown {
        case .clean: return
        case .failed(127): throw ControlError("\(name): there is no qemu-img; the package qemu-utils has it")
        case let exit: throw ControlError("\(name) ended with \(exit)")
        }
    }

    /// Makes the image `path` over another one, which is not looked at: it may be in use. The file must not be there yet, and is
    /// durable when this returns. Nothing is left of it where this throws.
    public func makeOverlay(
        _ path: String, over below: String, _ format: String, bytes: UInt64
    ) throws(ControlError) -> MadeImage {
        let raw = unsafe clinux_open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0o600)
        guard raw >= 0 else { throw ControlError("cannot make \(path): \(errnoText(errno))") }
        let file = Descriptor(owning: raw)
        let made = MadeImage(path: path, file: file)
        do throws(ControlError) {
            try run(["create", "-q", "-u", "-f", "qcow2", "-b", below, "-F", format, "--", path, "\(bytes)"])
            if fsync(file.raw) != 0 { throw ControlError("cannot make \(path) durable: \(errnoText(errno))") }
            Self.sync(InstallPaths.folder(of: path))
            return made
        } catch {
            made.remove()
            throw error
        }
    }

    /// The external data file of a qcow2 image, as the image names it; nil: it has none. The image may be in use.
    public func dataFile(of path: String) throws(ControlError) -> String? {
        let result = try output(["info", "-U", "--output=json", "-f", "qcow2", "--", path])
        return result["format-specific"]?["data"]?["data-file"]?.string
    }

    /// What qemu-img prints, as JSON.
    private func output(_ arguments: [String]) throws(ControlError) -> JSON {
        let name = "qemu-img \(arguments.first ?? "")"
        let result: ChildProgram.Result
        do throws(ChildProgram.StartError) {
            result = try ChildProgram.run(["/usr/bin/env", "qemu-img"] + arguments, seconds: 600, limit: 256 << 20)
        } catch {
            throw ControlError("cannot start \(name): \(errnoText(error.code))")
        }
        if let problem = result.problem { throw ControlError("\(name) \(problem)") }
        guard result.status == 0 else { throw ControlError("\(name) does not read \(arguments.last ?? "")") }
        do throws(JSONError) { return try JSON(parsing: result.output) } catch {
            throw ControlError("the answer of \(name) is \(error)")
        }
    }

    /// Makes an image durable that qemu-img has written. Throws where that fails: some of it may be lost.
    public static func makeDurable(_ path: String) throws(ControlError) {
        let raw = unsafe clinux_open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK, 0)
        guard raw >= 0 else { throw ControlError("cannot make \(path) durable: \(errnoText(errno))") }
        let file = Descriptor(owning: raw)
        if fsync(file.raw) != 0 { throw ControlError("cannot make \(path) durable: \(errnoText(errno))") }
    }

    /// Writes what is cached of a file or folder; it is no error where that cannot be.
    public static func sync(_ path: String) { try? makeDurable(path) }
}

/// A file that this process has made, to be removed by nobody else and only while it is that file.
public struct MadeImage: Sendable {
    /// Its name.
    public let path: String
    private let identity: StorageIdentity?

    init(path: String, file: Descriptor) {
        self.path = path
        identity = StorageIdentity(file: file.raw)
    }

    /// Removes the name, unless another file has it by now.
    public func remove() {
        var status = stat()
        // The call reads the path as C text, which Swift keeps for it, and fills the structure.
        guard let identity, unsafe lstat(path, &status) == 0, StorageIdentity(status) == identity else { return }
        unsafe unlink(path)
    }
}

/// Bytes of a disk that are allocated in an image.
public struct ImageRange: Equatable, Sendable {
    /// The first byte.
    public let offset: UInt64
    /// How many there are.
    public internal(set) var length: UInt64
    /// They read as zeroes.
    public let isZero: Bool
}

/// Ranges in ascending order; those that are next to each other become one.
public struct AllocatedRanges {
    /// What was appended, without holes.
    public private(set) var ranges: [ImageRange] = []

    /// None.
    public init() {}

    /// Adds what comes next.
    public mutating func append(_ offset: UInt64, _ length: UInt64, isHole: Bool, isZero: Bool) {
        if isHole { return }
        if let last = ranges.last, last.isZero == isZero, last.offset &+ last.length == offset {
            ranges[ranges.count - 1].length &+= length
        } else {
            ranges.append(ImageRange(offset: offset, length: length, isZero: isZero))
        }
    }
}

extension ImageTool {
    /// What is allocated in a qcow2 image that nobody writes, without those below it.
    public func allocated(_ path: String) throws(ControlError) -> [ImageRange] {
        let value = try output(["map", "--output=json", "-f", "qcow2", "--", path])
        var found = AllocatedRanges()
        for entry in value.elements {
            guard let start = entry["start"]?.unsigned, let length = entry["length"]?.unsigned,
                let depth = entry["depth"]?.unsigned
            else { throw ControlError("the answer of qemu-img map is not understood") }
            // An image without one below it has depth 0 where nothing is allocated, too.
            let isPresent = entry["present"].map { $0 == .bool(true) } ?? true
            found.append(
                start, length, isHole: depth != 0 || !isPresent, isZero: entry["zero"] == .bool(true))
        }
        return found.ranges
    }
}
