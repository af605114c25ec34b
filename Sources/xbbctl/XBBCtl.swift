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
            List.self, Show.self, Stats.self, Top.self, LogCommand.self, Set.self, Upgrade.self, Plugins.self,
            Probe.self,
            Inspect.self, Attach.self, Detach.self,
        ])

    @OptionGroup var connection: Connection
}

/// How to reach xbbd and XenStore; allowed before and after the subcommand.
struct Connection: ParsableArguments {
    @Option(
        help: ArgumentHelp("The socket of xbbd. (default: \(ControlClient.defaultSocket))", valueName: "path"))
    var socket: String?

    @Option(help: ArgumentHelp("Use the loopback Xen at this directory instead of Xen.", valueName: "dir"))
    var loopback: String?

    func over(_ parent: Connection) -> Connection {
        var result = self
        result.socket = socket ?? parent.socket
        result.loopback = loopback ?? parent.loopback
        return result
    }

    func client() throws(ControlError) -> ControlClient {
        try ControlClient(path: socket ?? ControlClient.defaultSocket)
    }

    func ask(_ request: ControlRequest) throws(ControlError) -> ControlAnswer {
        try client().call(request)
    }

    /// True where the format's plugin takes a location as it is. Without an answer it is a path: who serves the disk will
    /// say what is wrong.
    func isOpaque(_ format: String) -> Bool {
        do throws(ControlError) {
            return LocationKinds(try ask(.plugins).value).isOpaque(format)
        } catch {
            return false
        }
    }

    func toolstack() throws(ControlError) -> Toolstack {
        try Toolstack(store: try StoreAccess.open(loopback: loopback), loopback: loopback)
    }
}

/// The device to act on.
struct Device: ParsableArguments {
    @Argument(help: "The guest's domain number.")
    var domid: UInt16

    @Argument(help: "The virtual device: xvda, xvda1, sda, hda or a number.")
    var vdev: String

    @Option(
        help: ArgumentHelp("The directory below backend/, where more than one has the device.", valueName: "kind"))
    var kind: String?

    /// Checks a device's two words, also if the device is optional.
    static func check(domid: UInt16, vdev: String) throws {
        guard domid < 0x7ff0 else { throw ValidationError("domain \(domid): expected 0 to 32751") }
        guard VirtualDevice.number(of: vdev) != nil else {
            throw ValidationError("'\(vdev)' is no virtual device: expected a name such as xvda, or its number")
        }
    }

    func validate() throws {
        try Self.check(domid: domid, vdev: vdev)
        if let kind, !VBDAddress.isKind(kind) {
            throw ValidationError("--kind '\(kind)': expected a name such as vbd, qdisk or vbd3")
        }
    }

    var reference: VBDReference {
        get throws(ControlError) {
            guard let number = VirtualDevice.number(of: vdev),
                let reference = VBDReference(kind: kind, domain: domid, device: number)
            else { throw ControlError("'\(vdev)' is no virtual device") }
            return reference
        }
    }
}

/// The interval between repetitions.
struct Pace: ParsableArguments {
    @Option(help: ArgumentHelp("Seconds between two looks, 0.1 to 3600.", valueName: "seconds"))
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
            Swift.print(answer.text)
        } else {
            for line in text(answer.value) { Swift.print(line) }
        }
    }
}

/// Runs a subcommand; an error goes to standard error and becomes the exit status.
func perform(_ body: () throws(ControlError) -> Void) throws {
    do throws(ControlError) {
        try body()
    } catch {
        let line = "xbbctl: \(TextTable.printable(error.description))\n"
        _ = unsafe line.withCString { unsafe write(2, $0, strlen($0)) }
        throw ExitCode(error.status.rawValue)
    }
}
