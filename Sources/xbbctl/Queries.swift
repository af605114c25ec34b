// SPDX-License-Identifier: BSD-2-Clause
// Subcommands that query xbbd.
import ArgumentParser
import CLinux
import Glibc
import Settings
import XBBControl
import Support

extension XBBCtl {
    struct List: ParsableCommand {
        static let configuration = CommandConfiguration(abstract: "Lists all devices and their workers.")
        @ParentCommand var parent: XBBCtl
        @OptionGroup var connection: Connection
        @OptionGroup var format: Format

        func run() throws {
            try perform { () throws(ControlError) in
                format.print(try connection.over(parent.connection).ask(.list), Reports.list)
            }
        }
    }

    struct Show: ParsableCommand {
        static let configuration = CommandConfiguration(abstract: "Shows one device as its worker sees it.")
        @ParentCommand var parent: XBBCtl
        @OptionGroup var device: Device
        @OptionGroup var connection: Connection
        @OptionGroup var format: Format

        func run() throws {
            try perform { () throws(ControlError) in
                let connection = connection.over(parent.connection)
                let request = ControlRequest.show(try device.reference(connection))
                format.print(try connection.ask(request), Reports.show)
            }
        }
    }

    struct Set: ParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Changes settings of one device while it is served.",
            discussion: "Settings are "
                + SettingsSchema.changing.map { "\($0.name) (\($0.type.bounds))" }.joined(separator: ", ")
                + ". Several are changed at once, or none of them; see xbbctl(8).")
        @ParentCommand var parent: XBBCtl
        @OptionGroup var device: Device
        @Argument(
            help: ArgumentHelp(
                "A setting and its value: key=value; may be given more than once.", valueName: "setting"),
            completion: .list(SettingsSchema.changing.map { $0.name + "=" }))
        var settings: [String]
        @OptionGroup var connection: Connection
        @OptionGroup var format: Format

        func run() throws {
            try perform { () throws(ControlError) in
                let settings = try TunableSetting.all(parsing: settings)
                let connection = connection.over(parent.connection)
                let request = ControlRequest.set(try device.reference(connection), settings)
                format.print(try connection.ask(request), Reports.show)
            }
        }
    }

    struct Resume: ParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Lets one device go on: tries again what waits for space, and ends a pause.",
            discussion: "With on-enospc=stop, requests for which the storage has no space wait; see xbbctl(8).")
        @ParentCommand var parent: XBBCtl
        @OptionGroup var device: Device
        @OptionGroup var connection: Connection
        @OptionGroup var format: Format

        func run() throws {
            try perform { () throws(ControlError) in
                let connection = connection.over(parent.connection)
                let request = ControlRequest.resume(try device.reference(connection))
                format.print(try connection.ask(request)) { answer in
                    let count = answer["tried_again"]?.unsigned ?? 0
                    return [count == 0 ? "no request waited" : "\(count) requests are tried again"]
                }
            }
        }
    }

    struct Plugins: ParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Describes the plugins, with their formats and options.")
        @ParentCommand var parent: XBBCtl
        @OptionGroup var connection: Connection
        @OptionGroup var format: Format

        func run() throws {
            try perform { () throws(ControlError) in
                format.print(try connection.over(parent.connection).ask(.plugins), Reports.plugins)
            }
        }
    }

    struct Stats: ParsableCommand {
        static let configuration = CommandConfiguration(abstract: "Shows counters and latencies of one device.")
        @ParentCommand var parent: XBBCtl
        @OptionGroup var device: Device
        @Flag(help: "Show them again and again, with what each counter grows by in a second.")
        var watch = false
        @Flag(help: "Draw the latencies of each operation.")
        var histogram = false
        @OptionGroup var pace: Pace
        @OptionGroup var connection: Connection
        @OptionGroup var format: Format

        func run() throws {
            try perform { () throws(ControlError) in
                let connection = connection.over(parent.connection)
                let request = ControlRequest.stats(try device.reference(connection))
                let client = try connection.client()
                var earlier: JSON?
                var before = clinux_monotonic_ns()
                repeat {
                    let answer = try client.call(request)
                    let now = clinux_monotonic_ns()
                    let seconds = Double(now - before) / 1e9
                    format.print(answer) { answer in
                        histogram
                            ? Reports.histogram(
                                answer, earlier: earlier, TerminalSession.barStyle, columns: TerminalSession.columns)
                            : Reports.stats(answer, earlier: earlier, seconds: seconds)
                    }
                    before = now
                    guard watch else { break }
                    if !format.json { print("") }
                    earlier = answer.value
                    fflush(nil)
                    pace.wait()
                } while true
            }
        }
    }
}
