// SPDX-License-Identifier: BSD-2-Clause
// xbbctl events and xbbctl wait: what happens to disks.
import ArgumentParser
import CLinux
import Glibc
import Support
import XBBControl

extension XBBCtl {
    struct Events: ParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Shows what happened to all devices or one: attached, connected, errors, detached and more.",
            discussion: """
                Events have sequence numbers: whoever asks from the number behind the last one has missed nothing, or is told \
                of a gap. See xbbctl(8) for the events and the JSON.
                """)
        @ParentCommand var parent: XBBCtl
        @OptionGroup var device: OptionalDevice
        @Option(
            help: ArgumentHelp(
                "Events from this sequence number on, with its epoch if it is to be sure; now: what comes.",
                valueName: "seq"))
        var since: String?
        @Flag(help: "Show new events as they come.")
        var follow = false
        @OptionGroup var connection: Connection
        @OptionGroup var format: Format

        func validate() throws {
            if let since, since != "now", EventCursor(parsing: since) == nil {
                throw ValidationError("--since '\(since)': expected a sequence number, EPOCH:NUMBER, or now")
            }
        }

        func run() throws {
            try perform { () throws(ControlError) in
                let connection = connection.over(parent.connection)
                let vbd = try device.reference(connection)
                var reader = EventReader(path: connection.socketPath)
                if since == "now" {
                    try reader.skip()
                } else if let since {
                    reader.cursor = EventCursor(parsing: since)
                }
                repeat {
                    let answer = try reader.next(waits: follow && reader.cursor != nil)
                    if format.json && !follow {
                        print(JSONForm.line(EventReports.filtered(answer, of: vbd)))
                    } else {
                        for line in EventReports.lines(answer, of: vbd, json: format.json) { print(line) }
                    }
                    fflush(nil)
                    // What does not fit into one answer is asked for at once.
                } while follow || (!format.json && reader.hasMore)
            }
        }
    }

    struct Wait: ParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Waits until a device is in a state; the exit status is 75 if that takes too long.",
            discussion:
                "States are attached, connected, disconnected, paused, running, failed and detached; see xbbctl(8).")
        @ParentCommand var parent: XBBCtl
        @OptionGroup var device: Device
        @Argument(help: "The state.", completion: .list(AwaitedState.allCases.map(\.rawValue)))
        var state: AwaitedState
        @Option(help: ArgumentHelp("How long to wait, 0 to 86400.", valueName: "seconds"))
        var timeout = 30.0
        @OptionGroup var connection: Connection
        @OptionGroup var format: Format

        func validate() throws {
            try XBBCtl.check(timeout: timeout, from: 0)
        }

        func run() throws {
            try perform { () throws(ControlError) in
                let connection = connection.over(parent.connection)
                let vbd = try device.reference(connection)
                let end = clinux_monotonic_ns() + UInt64(timeout * 1e9)
                var reader = EventReader(path: connection.socketPath, end: end)
                while true {
                    let answer = try reader.ask(.state(vbd))
                    if state.holds(answer.value) {
                        if format.json { print(JSONForm.line(answer.text)) }
                        return
                    }
                    guard clinux_monotonic_ns() < end else {
                        throw ControlError(
                            "\(vbd) is not \(state.rawValue) after \(timeout) s: \(AwaitedState.text(answer.value))",
                            status: .timedOut)
                    }
                    reader.cursor = EventCursor(
                        epoch: answer.value["epoch"]?.string, sequence: answer.value["next"]?.unsigned ?? 0)
                    _ = try reader.next(waits: true)
                }
            }
        }
    }
}

extension AwaitedState: ExpressibleByArgument {}
