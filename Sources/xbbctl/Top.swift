// SPDX-License-Identifier: BSD-2-Clause
// xbbctl top: the activity of all disks, repeatedly.
import ArgumentParser
import CLinux
import Glibc
import Support
import XBBControl

extension XBBCtl {
    struct Top: ParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Shows what all devices do: requests and bytes in a second, latencies, queue depth.",
            discussion:
                "The busiest come first. Each look is compared with the one before. See xbbctl(8) for the columns.")
        @ParentCommand var parent: XBBCtl
        @Flag(help: "Look twice, show what was between, and end.")
        var once = false
        @OptionGroup var pace: Pace
        @OptionGroup var connection: Connection
        @OptionGroup var format: Format

        func run() throws {
            try perform { () throws(ControlError) in
                let client = try connection.over(parent.connection).client()
                var before = try look(client)
                repeat {
                    pace.wait()
                    let now = try look(client)
                    show(TopReport.json(before: before, now: now))
                    before = now
                } while !once
            }
        }

        private func look(_ client: ControlClient) throws(ControlError) -> [DiskSample] {
            let rows = try client.call(.top).value["vbds"]?.elements ?? []
            let now = clinux_monotonic_ns()
            return rows.map { row in
                // A worker that does not answer at once gets a line without numbers.
                DiskSample(row: row, stats: row["stats"] == .null ? nil : row["stats"], time: now)
            }
        }

        private func show(_ report: JSON) {
            if format.json {
                print(report.serialized)
            } else {
                let screen = once ? nil : Self.screen
                if screen != nil { print("\u{1b}[H\u{1b}[J", terminator: "") }
                let lines = TopReport.lines(report, rows: screen.map { $0.rows - 1 }, columns: screen?.columns)
                for line in lines { print(line) }
                if !once && screen == nil { print("") }
            }
            fflush(nil)
        }

        /// The size of the terminal; nil where standard output is none.
        private static var screen: (rows: Int, columns: Int)? {
            var size = winsize()
            guard isatty(1) == 1, unsafe clinux_ioctl_pointer(1, UInt(TIOCGWINSZ), &size) == 0 else { return nil }
            return (max(Int(size.ws_row), 4), max(Int(size.ws_col), 20))
        }
    }
}
