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
            discussion: "Each look is compared with the one before. See xbbctl(8) for the columns.")
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
            var samples: [DiskSample] = []
            for row in try client.call(.list).value["vbds"]?.elements ?? [] {
                guard let name = row["vbd"]?.string, let vbd = VBDReference(parsing: name) else { continue }
                var stats: JSON?
                do throws(ControlError) {
                    stats = try client.call(.stats(vbd)).value
                } catch {
                    // A worker that does not answer gets a line without numbers; if xbbd does not answer, this ends.
                    if error.status == .unreachable { throw error }
                }
                samples.append(DiskSample(row: row, stats: stats, time: clinux_monotonic_ns()))
            }
            return samples
        }

        private func show(_ report: JSON) {
            if format.json {
                print(report.serialized)
            } else {
                if !once && isatty(1) == 1 { print("\u{1b}[H\u{1b}[J", terminator: "") }
                for line in TopReport.lines(report) { print(line) }
                if !once && isatty(1) != 1 { print("") }
            }
            fflush(nil)
        }
    }
}
