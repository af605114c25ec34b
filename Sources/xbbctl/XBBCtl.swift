// SPDX-License-Identifier: BSD-2-Clause
// xbbctl: the command line of the control program.
import ArgumentParser
import Glibc
import XBBControl
import Support

@main
struct XBBCtl: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "xbbctl",
        abstract: "Shows, tunes, attaches and detaches virtual block devices.",
        discussion: """
            VDEV is a name such as xvda, xvda1, sda or hda, or the device's number. Exit status: 0 done, 1 failed, 64 \
            wrong usage, 69 xbbd or XenStore cannot be reached, 75 timed out. See xbbctl(8).
            """,
        version: "xbbctl \(xbbVersion)",
        subcommands: [
            List.self, Show.self, Stats.self, Top.self, Metrics.self, Events.self, Wait.self, LogCommand.self, Set.self,
            Pause.self, Resume.self, Swap.self, Insert.self, Eject.self, Snapshot.self, Commit.self, Rebase.self,
            Changed.self, Resize.self,
            Upgrade.self, Plugins.self,
            Probe.self,
            Inspect.self, Attach.self, Detach.self, Hotplug.self,
        ])

    @OptionGroup var connection: Connection

    /// Standard output is read by a program: errors are told there too, as JSON.
    static var isJSON: Bool { CommandLine.arguments.dropFirst().contains("--json") }

    static func main() {
        let words = Array(CommandLine.arguments.dropFirst())
        do {
            try checkText()
            let known = configuration.subcommands.filter { $0.configuration.shouldDisplay }.map { $0._commandName }
            if words.first != "---completion", Suggestion.command(in: words) != Hotplug._commandName,
                let problem = Suggestion.unknownCommand(in: words, known: known)
            {
                throw ValidationError(problem)
            }
            var command = try parseAsRoot()
            try command.run()
        } catch {
            end(error, words)
        }
    }

    /// Ends with the exit status of an error, which is told unless ``perform(_:)`` has told it.
    private static func end(_ error: any Error, _ words: [String]) -> Never {
        let code = exitCode(for: error)
        if code == .success || error is ExitCode { exit(withError: error) }
        var message = message(for: error)
        var hint: String?
        if message.lowercased().contains("unexpected argument") {
            let name = Suggestion.command(in: words)
            let command = configuration.subcommands.first { $0._commandName == name }
            hint = Suggestion.unexpected(message, command: name, help: helpMessage(for: command ?? XBBCtl.self))
        }
        if isJSON {
            if let hint { message += "; \(hint)" }
            print(JSONForm.line(.object([("error", .string(message)), ("status", .integer(code.rawValue))])))
        } else {
            let text = fullMessage(for: error) + (hint.map { "\n\($0)" } ?? "") + "\n"
            _ = unsafe text.withCString { unsafe write(2, $0, strlen($0)) }
        }
        exit(withError: code)
    }

    /// Refuses words that are not UTF-8: Swift would put other characters into them, and another path would be meant.
    private static func checkText() throws {
        for index in 1..<max(1, Int(CommandLine.argc)) {
            guard let raw = unsafe CommandLine.unsafeArgv[index] else { continue }
            if unsafe String(validatingCString: raw) == nil {
                throw ValidationError(
                    "'\(CommandLine.arguments[index])' is not UTF-8: XenStore and xbbctl take names in UTF-8 alone; rename "
                        + "the file, or make a link to it")
            }
        }
    }
}

extension XBBCtl {
    /// Refuses a time that nobody waits for; `least` is 0 where looking once is meant by it.
    static func check(timeout: Double, from least: Double = 0.1) throws {
        guard (least...86400).contains(timeout) else {
            let shown = least == 0 ? "0" : "\(least)"
            throw ValidationError("--timeout \(timeout): expected \(shown) to 86400 seconds")
        }
    }
}

/// How to reach xbbd and XenStore; allowed before and after the subcommand.
struct Connection: ParsableArguments {
    @Option(
        help: ArgumentHelp(
            "The socket of xbbd. (default: that of the xbbd that serves this domain)", valueName: "path"),
        completion: .file())
    var socket: String?

    @Option(
        help: ArgumentHelp("Use the loopback Xen at this directory instead of Xen.", valueName: "dir"),
        completion: .directory)
    var loopback: String?

    func over(_ parent: Connection) -> Connection {
        var result = self
        result.socket = socket ?? parent.socket
        result.loopback = loopback ?? parent.loopback
        return result
    }

    /// The socket of the xbbd that serves the XenStore: its run directory may be any.
    var socketPath: String {
        if let socket { return socket }
        if case .served(let owner) = StoreOwner.find(loopback: loopback), let directory = owner.runDirectory {
            return directory + "/xbbd.sock"
        }
        return ControlClient.defaultSocket
    }

    func client(seconds: Int = 20) throws(ControlError) -> ControlClient {
        try ControlClient(path: socketPath, timeoutSeconds: seconds)
    }

    /// Throws at once where there is no xbbd that could take a disk.
    func requireDaemon() throws(ControlError) {
        do throws(ControlError) {
            _ = try client().call(.ping)
        } catch {
            throw ControlError(
                "nobody would serve the disk: \(error); 'systemctl start xbbd' starts it", status: .unreachable)
        }
    }

    /// The number of a domain that is named by number or name.
    func domain(_ text: String) throws(ControlError) -> UInt16 {
        if let number = DomainName.number(text) { return number }
        do throws(ControlError) {
            return try DomainName.find(text, in: try StoreAccess.open(loopback: loopback))
        } catch {
            // Not everybody who may ask xbbd may read XenStore.
            guard error.status == .unreachable, text.utf8.allSatisfy({ (0x21...0x7e).contains($0) }),
                let number = try ask(.domain(text)).value["domid"]?.unsigned
            else { throw error }
            return UInt16(clamping: number)
        }
    }

    /// Asks xbbd, which has `seconds` for its answer.
    func ask(_ request: ControlRequest, seconds: Int = 20) throws(ControlError) -> ControlAnswer {
        try ControlClient(path: socketPath, timeoutSeconds: seconds).call(request)
    }

    /// What `list` says of a device; nil: there is none.
    func row(of reference: VBDReference) throws(ControlError) -> JSON? {
        try ask(.list).value["vbds"]?.elements.first { row in
            row["vbd"]?.string.flatMap { VBDAddress(parsing: $0) }.map { reference.matches($0) } ?? false
        }
    }

    /// What the plugins' descriptions say of locations. Without an answer all are paths: who serves the disk will say what
    /// is wrong.
    func locationKinds() -> LocationKinds {
        do throws(ControlError) {
            return LocationKinds(try ask(.plugins).value)
        } catch {
            return LocationKinds(.null)
        }
    }

    func toolstack() throws(ControlError) -> Toolstack {
        try Toolstack(
            store: try StoreAccess.open(loopback: loopback), loopback: loopback,
            workers: WorkerPresence(socket: socketPath))
    }
}

/// Words that name a device.
enum DeviceWords {
    static let domainHelp: ArgumentHelp = "The guest's domain, by number or name."
    static let deviceHelp: ArgumentHelp = "The virtual device: xvda, xvda1, sda, hda or a number."
    static let kindHelp = ArgumentHelp(
        "The directory below backend/, where more than one has the device.", valueName: "kind")

    /// Checks what can be checked without asking anybody.
    static func check(domain: String, device: String, kind: String?) throws {
        guard !domain.isEmpty, !DomainName.isNumeric(domain) || DomainName.number(domain) != nil else {
            throw ValidationError("domain '\(domain)': expected a number from 0 to 32751, or a name")
        }
        guard VirtualDevice.number(of: device) != nil else {
            throw ValidationError("'\(device)' is no virtual device: expected a name such as xvda, or its number")
        }
        if let kind, !VBDAddress.isKind(kind) {
            throw ValidationError("--kind '\(kind)': expected a name such as vbd, qdisk or vbd3")
        }
    }

    static func reference(
        domain: String, device: String, kind: String?, _ connection: Connection
    ) throws(ControlError) -> VBDReference {
        guard let number = VirtualDevice.number(of: device),
            let reference = VBDReference(kind: kind, domain: try connection.domain(domain), device: number)
        else { throw ControlError("'\(device)' is no virtual device") }
        return reference
    }
}

/// The device to act on.
struct Device: ParsableArguments {
    @Argument(help: DeviceWords.domainHelp, completion: Completions.domains)
    var domid: String

    @Argument(help: DeviceWords.deviceHelp, completion: Completions.devices)
    var vdev: String

    @Option(help: DeviceWords.kindHelp)
    var kind: String?

    func validate() throws { try DeviceWords.check(domain: domid, device: vdev, kind: kind) }

    func reference(_ connection: Connection) throws(ControlError) -> VBDReference {
        try DeviceWords.reference(domain: domid, device: vdev, kind: kind, connection)
    }
}

/// The device to act on, or all.
struct OptionalDevice: ParsableArguments {
    @Argument(
        help: "The guest's domain, by number or name; without it, all devices.", completion: Completions.domains)
    var domid: String?

    @Argument(help: DeviceWords.deviceHelp, completion: Completions.devices)
    var vdev: String?

    func validate() throws {
        guard let domid else { return }
        guard let vdev else {
            throw ValidationError("domain \(domid): expected one of its virtual devices too, as in \(domid) xvda")
        }
        try DeviceWords.check(domain: domid, device: vdev, kind: nil)
    }

    func reference(_ connection: Connection, kind: String? = nil) throws(ControlError) -> VBDReference? {
        guard let domid, let vdev else { return nil }
        return try DeviceWords.reference(domain: domid, device: vdev, kind: kind, connection)
    }
}

/// The interval between repetitions.
struct Pace: ParsableArguments {
    @Option(
        name: [.long, .customShort("d")],
        help: ArgumentHelp("Seconds between two looks, 0.1 to 3600.", valueName: "seconds"))
    var interval = 1.0

    func validate() throws {
        guard (0.1...3600).contains(interval) else {
            throw ValidationError("--interval \(interval): expected 0.1 to 3600 seconds")
        }
    }

    /// Waits for the interval.
    func wait() { usleep(UInt32(interval * 1e6)) }
}

/// Machine output.
struct Format: ParsableArguments {
    @Flag(help: "Print JSON.")
    var json = false

    /// Prints an answer as it arrived, or as text.
    func print(_ answer: ControlAnswer, _ text: (JSON) -> [String]) {
        if json {
            Swift.print(JSONForm.line(answer.text))
        } else {
            for line in text(answer.value) { Swift.print(line) }
        }
    }
}

/// Runs a subcommand; an error goes to standard error, or as JSON to standard output, and becomes the exit status.
func perform(_ body: () throws(ControlError) -> Void) throws {
    do throws(ControlError) {
        try body()
    } catch {
        if XBBCtl.isJSON {
            let value = JSON.object([
                ("error", .string(error.description)), ("status", .integer(error.status.rawValue)),
            ])
            print(JSONForm.line(value))
        } else if !error.description.isEmpty {
            let line = "xbbctl: \(TextTable.printable(error.description))\n"
            _ = unsafe line.withCString { unsafe write(2, $0, strlen($0)) }
        }
        throw ExitCode(error.status.rawValue)
    }
}
