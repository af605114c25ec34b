// SPDX-License-Identifier: BSD-2-Clause
// Subcommands that put an image above the one of a device, and write it back.
import ArgumentParser
import Glibc
import Support
import XBBControl

/// What a device is served from, as its worker says.
private struct ServedChain {
    /// From the attached image down.
    let images: [(format: String, path: String)]
    /// The size of the device.
    let bytes: UInt64
    /// The process that serves it.
    let worker: UInt64
    /// Its guest may not write.
    let isReadOnly: Bool

    init(of device: VBDReference, _ connection: Connection) throws(ControlError) {
        let shown = try connection.ask(.show(device)).value
        images = (shown["images"]?.elements ?? []).compactMap { image in
            guard let format = image["format"]?.string, let path = image["path"]?.string else { return nil }
            return (format, path)
        }
        // Between two workers nobody says what the device is served from.
        guard let worker = shown["pid"]?.unsigned, shown["images"]?.elements != nil else {
            throw ControlError("\(device) has no worker at the moment", status: .timedOut)
        }
        let (bytes, overflows) = (shown["sectors"]?.unsigned ?? 0).multipliedReportingOverflow(by: 512)
        guard let top = images.first, top.path.hasPrefix("/"), !overflows, bytes > 0 else {
            throw ControlError("\(device) is not served from a file or device that can be below another image")
        }
        self.bytes = bytes
        self.worker = worker
        isReadOnly = shown["read_only"] == .bool(true)
    }

    /// Throws where an image of the device is not to be written: that is what read-only says.
    func checkWritable(_ device: VBDReference) throws(ControlError) {
        if isReadOnly {
            throw ControlError(
                "\(device) is attached read-only: its images may be those of others, and are not written")
        }
    }
}

/// Options for the plugin of the image that a device gets.
struct PluginWords: ParsableArguments {
    @Option(
        help: ArgumentHelp(
            "An option for the plugin of the image that the device gets; may be given more than once.",
            valueName: "key=value"))
    var option: [String] = []

    func validate() throws {
        do throws(ControlError) { _ = try PluginOptions(option) } catch {
            throw ValidationError("--option \(error)")
        }
    }
}

extension XBBCtl {
    /// Gives the device storage that its worker or qemu-img has just had; the answer says how long the guest waited.
    fileprivate static func swap(
        _ reference: VBDReference, to image: (format: String, path: String), _ options: [String],
        if condition: ExchangeCondition, _ connection: Connection
    ) throws(ControlError) -> JSON {
        let words = ([image.format] + options).joined(separator: ",")
        let disk = try DiskSpecification(parsing: "\(words):\(image.path)", workingDirectory: "")
        let request = ControlRequest.swap(
            reference, seconds: "10.0", try ExchangeTarget(disk), condition: condition)
        return try connection.ask(request, seconds: 70).value
    }

    /// Runs qemu-img on the storage of a device, which is paused and released meanwhile. After that it is paused only where it was
    /// before, also when this process is killed: xbbd sees the end of its connection.
    fileprivate static func whileReleased(
        _ reference: VBDReference, _ connection: Connection,
        _ body: (_ release: String, _ renew: () throws(ControlError) -> Void) throws(ControlError) -> Void
    ) throws(ControlError) {
        let client = try ControlClient(path: connection.socketPath, timeoutSeconds: 60)
        let pause = ControlRequest.pause(reference, seconds: "60", .holds)
        let ask = { () throws(ControlError) -> String in
            guard let name = try client.call(pause).value["release"]?.string else {
                throw ControlError("\(reference) is not released")
            }
            return name
        }
        let release = try ask()
        // A pause that has ended is not renewed but begun anew, and the guest has written between the two.
        let renew = { () throws(ControlError) in
            if try ask() != release { throw ControlError("\(reference) went on meanwhile, with the image that it had") }
        }
        do throws(ControlError) {
            try body(release, renew)
        } catch {
            _ = try? client.call(.resume(reference, restores: true))
            throw error
        }
        _ = try client.call(.resume(reference, restores: true))
    }

    /// What has qemu-img show how far it is: one line that is written over again and again, for people at a terminal.
    fileprivate static func progress(_ format: Format) -> [String] { format.json || isatty(2) == 0 ? [] : ["-p"] }

    fileprivate static func note(_ text: String) {
        let line = "xbbctl: \(TextTable.printable(text))\n"
        _ = unsafe line.withCString { unsafe write(2, $0, strlen($0)) }
    }

    fileprivate static func tell(_ members: [(String, JSON)], _ format: Format) {
        if format.json { print(JSONForm.line(.object(members))) }
    }

    struct Snapshot: ParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Makes a new qcow2 image above the one of a device, which is not written any more.",
            discussion: """
                Makes the image with qemu-img and lets the device go on with it. The guest waits for the moment in which \
                another worker opens it. Where that fails, the device has the image that it had, and the new one is removed. \
                The folder of the image below has to be one of backing-dir in xbb.conf. The guest's configuration file names \
                the old image still: see xbbctl(8).
                """)
        @ParentCommand var parent: XBBCtl
        @OptionGroup var device: Device
        @Argument(
            help: ArgumentHelp("The new image, which is not there yet.", valueName: "overlay"), completion: .file())
        var overlay: String
        @OptionGroup var plugin: PluginWords
        @OptionGroup var connection: Connection
        @OptionGroup var format: Format

        func run() throws {
            try perform { () throws(ControlError) in
                let connection = connection.over(parent.connection)
                let path = overlay.hasPrefix("/") ? overlay : DiskSpecification.currentDirectory + "/" + overlay
                let reference = try device.reference(connection)
                let chain = try ServedChain(of: reference, connection)
                let below = chain.images[0]
                let made = try ImageTool().makeOverlay(path, over: below.path, below.format, bytes: chain.bytes)
                // What is left to be written while the guest waits is little then.
                ImageTool.sync(below.path)
                let answer: JSON
                do throws(ControlError) {
                    answer = try XBBCtl.swap(
                        reference, to: ("qcow2", path), plugin.option, if: .worker(chain.worker), connection)
                } catch {
                    try removeUnused(made, reference, connection, error)
                    throw error
                }
                XBBCtl.note(
                    "\(reference) goes on with \(path); change the guest's configuration before it is started anew: it names "
                        + "\(below.path), and what is written to that from now on damages \(path)")
                XBBCtl.tell(
                    [
                        ("result", .string("snapshot")), ("image", .string(path)), ("below", .string(below.path)),
                        ("pause_ms", answer["pause_ms"] ?? .null),
                    ], format)
            }
        }

        /// How often it is looked whether the device has got something else by now, each 100 ms.
        private static let looks = 300

        /// Removes the overlay, if it is known that the device has not got it. Somebody else may be giving it other storage.
        private func removeUnused(
            _ made: MadeImage, _ reference: VBDReference, _ connection: Connection, _ reason: ControlError
        ) throws(ControlError) {
            let path = made.path
            do throws(ControlError) {
                var served: String?
                for _ in 0..<Self.looks {
                    guard let row = try connection.row(of: reference) else { break }
                    served = row["exchange"] == .null ? row["path"]?.string : nil
                    if served != nil { break }
                    usleep(100_000)
                }
                guard let served else { throw ControlError("it is not known whether the device has \(path)") }
                if served == path || served == "qcow2:\(path)" {
                    throw ControlError("the device has \(path)")
                }
                made.remove()
            } catch {
                throw ControlError("\(reason); \(error), which stays: see 'xbbctl list'", status: reason.status)
            }
        }
    }

    struct Commit: ParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Writes the image of a device back to the one below it, and goes on with that.",
            discussion: """
                The guest waits all the time: qemu-img copies. Where it fails or is killed, the device goes on with the image \
                that it had. That image is left as it is, and is of no use any more when the command has succeeded.
                """)
        @ParentCommand var parent: XBBCtl
        @OptionGroup var device: Device
        @OptionGroup var plugin: PluginWords
        @OptionGroup var connection: Connection
        @OptionGroup var format: Format

        func run() throws {
            try perform { () throws(ControlError) in
                let connection = connection.over(parent.connection)
                let reference = try device.reference(connection)
                let chain = try ServedChain(of: reference, connection)
                try chain.checkWritable(reference)
                guard chain.images.count > 1, chain.images[0].format == "qcow2" else {
                    throw ControlError("\(chain.images[0].path) is no qcow2 image above another one")
                }
                let (top, below) = (chain.images[0], chain.images[1])
                // The worker would refuse it when all is copied.
                if below.format == "qcow2", !plugin.option.contains(where: { $0.hasPrefix("data-file=") }),
                    let file = try ImageTool().dataFile(of: below.path)
                {
                    throw ControlError(
                        "\(below.path) keeps its data in \(file): --option data-file=PATH names that file for the device"
                    )
                }
                try XBBCtl.whileReleased(reference, connection) { (release, renew) throws(ControlError) in
                    // -d: the image above stays as it is, so that it can be served until the one below is.
                    try ImageTool().run(
                        ["commit", "-d"] + XBBCtl.progress(format) + ["-f", "qcow2", "--", top.path], meanwhile: renew)
                    try ImageTool.makeDurable(below.path)
                    try renew()
                    _ = try XBBCtl.swap(
                        reference, to: below, plugin.option, if: .release(release), connection)
                }
                XBBCtl.note(
                    "\(reference) goes on with \(below.path); change the guest's configuration before it is started anew; "
                        + "\(top.path) is not needed any more")
                XBBCtl.tell(
                    [("result", .string("committed")), ("image", .string(below.path)), ("unused", .string(top.path))],
                    format)
            }
        }
    }

    struct Rebase: ParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Leaves out images between the image of a device and one that is below it.",
            discussion: """
                What the images between have is copied into the topmost one, so that the content for the guest is the same. The \
                guest waits all the time: qemu-img copies what is different. Where it fails or is killed, the device goes \
                on with the image below that it had.
                """)
        @ParentCommand var parent: XBBCtl
        @OptionGroup var device: Device
        @Option(
            help: ArgumentHelp("The format and path of the image below.", valueName: "format:path"),
            completion: Completions.images)
        var below: String
        @OptionGroup var connection: Connection
        @OptionGroup var format: Format

        func run() throws {
            try perform { () throws(ControlError) in
                let connection = connection.over(parent.connection)
                let disk = try DiskSpecification(
                    parsing: below, workingDirectory: DiskSpecification.currentDirectory)
                let reference = try device.reference(connection)
                let chain = try ServedChain(of: reference, connection)
                try chain.checkWritable(reference)
                let top = chain.images[0]
                guard top.format == "qcow2" else { throw ControlError("\(top.path) is no qcow2 image") }
                // Another image might be one that the worker refuses afterwards, and the guest would have no disk.
                guard let below = chain.images.dropFirst().first(where: { $0.path == disk.path }) else {
                    throw ControlError(
                        "\(disk.path) is not below \(top.path): rebase leaves out images between, and needs one of those below"
                    )
                }
                guard below.format == disk.format.name else {
                    throw ControlError("\(disk.path) is served as \(below.format)")
                }
                try XBBCtl.whileReleased(reference, connection) { (_, renew) throws(ControlError) in
                    try ImageTool().run(
                        ["rebase"] + XBBCtl.progress(format)
                            + ["-f", "qcow2", "-b", disk.path, "-F", disk.format.name, "--", top.path],
                        meanwhile: renew)
                    try ImageTool.makeDurable(top.path)
                }
                XBBCtl.tell(
                    [("result", .string("rebased")), ("image", .string(top.path)), ("below", .string(disk.path))],
                    format)
            }
        }
    }

    struct Changed: ParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Lists what is allocated in the topmost image of a device, or in an image below it.",
            discussion: """
                What is allocated in an image that a snapshot has frozen was written between the snapshot before and that one. \
                Of a device that is served, the list is of the moment in which it is made.
                """)
        @ParentCommand var parent: XBBCtl
        @Argument(
            help: "A device as DOMAIN/VDEV, or the path of a qcow2 image that nobody writes.", completion: .file())
        var source: String
        @OptionGroup var connection: Connection
        @OptionGroup var format: Format

        func validate() throws {
            if source.hasPrefix("/") { return }
            let parts = source.split(separator: "/", omittingEmptySubsequences: false).map(String.init)
            guard parts.count == 2 else {
                throw ValidationError("'\(source)': expected DOMAIN/VDEV, as in 1/xvda, or an absolute path")
            }
            try DeviceWords.check(domain: parts[0], device: parts[1], kind: nil)
        }

        func run() throws {
            try perform { () throws(ControlError) in
                let connection = connection.over(parent.connection)
                let ranges = source.hasPrefix("/") ? try ImageTool().allocated(source) : try served(connection)
                if format.json {
                    let list = ranges.map { range -> JSON in
                        .object([
                            ("offset", .integer(range.offset)), ("length", .integer(range.length)),
                            ("zero", .bool(range.isZero)),
                        ])
                    }
                    return print(JSONForm.line(.object([("ranges", .array(list))])))
                }
                for range in ranges { print("\(range.offset) \(range.length)\(range.isZero ? " zero" : "")") }
            }
        }

        private func served(_ connection: Connection) throws(ControlError) -> [ImageRange] {
            let parts = source.split(separator: "/").map(String.init)
            let reference = try DeviceWords.reference(domain: parts[0], device: parts[1], kind: nil, connection)
            let client = try connection.client()
            var found = AllocatedRanges()
            var next: UInt64? = 0
            while let offset = next {
                let answer = try client.call(.extents(reference, offset: offset)).value
                for range in answer["ranges"]?.elements ?? [] {
                    let numbers = range.elements.compactMap(\.unsigned)
                    guard numbers.count == 3 else { throw ControlError("the worker's answer has a range that is none") }
                    found.append(numbers[0], numbers[1], isHole: numbers[2] & 1 != 0, isZero: numbers[2] & 2 != 0)
                }
                next = answer["next"]?.unsigned
                if let next, next <= offset { throw ControlError("the worker's answer goes backwards") }
            }
            return found.ranges
        }
    }

    struct Resize: ParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Changes the size of a device while its guest uses it.",
            discussion: """
                Sizes are as in qemu-img: 20G, +1G, or bytes; k, M, G, T, P and E are powers of 1024. Without a size, the size \
                is taken that the storage has by now, such as a volume that was extended.
                """)
        @ParentCommand var parent: XBBCtl
        @OptionGroup var device: Device
        @Argument(help: ArgumentHelp("The new size.", valueName: "size"))
        var size: String?
        @Flag(help: "Also make it smaller: what is behind the new end is lost, and the guest may not take it well.")
        var force = false
        @OptionGroup var connection: Connection
        @OptionGroup var format: Format

        func run() throws {
            try perform { () throws(ControlError) in
                let connection = connection.over(parent.connection)
                let wanted = try size.map { (text) throws(ControlError) in try ByteSize(parsing: text) }
                let reference = try device.reference(connection)
                let shown = try connection.ask(.show(reference)).value
                var bytes: UInt64?
                if let wanted {
                    let (before, overflows) = (shown["sectors"]?.unsigned ?? 0).multipliedReportingOverflow(by: 512)
                    guard !overflows, before > 0 else { throw ControlError("the storage of \(reference) is not open") }
                    let new = try wanted.applied(to: before)
                    if new < before, !force {
                        throw ControlError(
                            "\(new) bytes are less than the \(before) that \(reference) has: what is behind the new end would "
                                + "be lost, and a file system in the guest that reaches there would be damaged; --force does it"
                        )
                    }
                    bytes = new
                }
                let answer = try connection.ask(.resize(reference, bytes: bytes, force: force), seconds: 60)
                format.print(answer) { ["\($0["sectors"]?.unsigned ?? 0) sectors of 512 bytes"] }
            }
        }
    }
}
