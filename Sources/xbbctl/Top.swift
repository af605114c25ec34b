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
            discussion: """
                Each look is compared with the one before. In a terminal keys sort and filter: 'h' shows them. Elsewhere, \
                and with --batch or --json, each look is printed below the one before. See xbbctl(8) for the columns.
                """)
        @ParentCommand var parent: XBBCtl
        @Flag(name: [.long, .customShort("b")], help: "Print each look, as for a script; without keys.")
        var batch = false
        @Option(
            name: [.long, .customShort("n")], help: ArgumentHelp("End after this many looks.", valueName: "n"))
        var iterations: Int?
        @Option(name: [.long, .customShort("s")], help: "What is sorted by.")
        var sort = TopOrder.activity
        @Flag(name: [.long, .customShort("r")], help: "The other way round.")
        var reverse = false
        @Option(
            name: [.long, .customShort("F")],
            help: ArgumentHelp(
                "Only devices with these words: a part of domain, device, format or path, or all of it as in "
                    + "'domain=web format=qcow2'.",
                valueName: "words"))
        var filter = ""
        @OptionGroup var pace: Pace
        @OptionGroup var connection: Connection
        @OptionGroup var format: Format

        func validate() throws {
            if let iterations, iterations < 1 {
                throw ValidationError("--iterations \(iterations): expected a number from 1 on")
            }
        }

        func run() throws {
            try perform { () throws(ControlError) in
                let connection = connection.over(parent.connection)
                if batch || format.json || !TerminalSession.isPossible {
                    try print(connection)
                } else {
                    try show(connection)
                }
            }
        }

        /// Whether there is another look after `looks` of them.
        private func goesOn(after looks: Int) -> Bool { iterations.map { looks < $0 } ?? true }

        private func look(_ client: ControlClient) throws(ControlError) -> [DiskSample] {
            let rows = try client.call(.top).value["vbds"]?.elements ?? []
            let now = clinux_monotonic_ns()
            return rows.map { row in
                // A worker that does not answer at once gets a line without numbers.
                DiskSample(row: row, stats: row["stats"] == .null ? nil : row["stats"], time: now)
            }
        }

        // MARK: For scripts

        private func print(_ connection: Connection) throws(ControlError) {
            let client = try connection.client()
            let filter = TopFilter(filter)
            var before = try look(client)
            var looks = 0
            repeat {
                pace.wait()
                let now = try look(client)
                let rows = TopTable.chosen(
                    TopRow.rows(before: before, now: now), filter, sort, isReversed: reverse)
                if format.json {
                    Swift.print(JSONForm.line(TopRow.json(rows)))
                } else {
                    if looks > 0 { Swift.print("") }
                    for line in TopTable.lines(rows) { Swift.print(line) }
                }
                fflush(nil)
                before = now
                looks += 1
            } while goesOn(after: looks)
        }

        // MARK: For people

        private func show(_ connection: Connection) throws(ControlError) {
            var client: ControlClient? = try connection.client(seconds: 2)
            var before = try client.map { (client) throws(ControlError) in try look(client) } ?? []
            var screen = TopScreen(interval: pace.interval, style: TerminalSession.barStyle)
            (screen.order, screen.isReversed, screen.filter) = (sort, reverse, TopFilter(filter))
            let terminal = try TerminalSession()
            var end: Int32?
            defer {
                terminal.leave()
                if let end { TerminalSession.raiseDefault(end) }
            }
            screen.take(TopRow.rows(before: [], now: before), at: TopTable.clock)
            let step = UInt64(pace.interval * 1e9)
            var next = clinux_monotonic_ns() &+ step
            var looks = 0
            while goesOn(after: looks) {
                terminal.show(screen.lines(terminal.size))
                switch terminal.wait(until: next) {
                case .redraw: continue
                case .hungUp: return
                case .ended(let number):
                    end = number
                    return
                case .keys(let keys):
                    let wishes = keys.map { screen.take($0, terminal.size) }
                    if wishes.contains(.quit) { return }
                    if !wishes.contains(.lookNow) { continue }
                case .time: break
                }
                do throws(ControlError) {
                    let asked: ControlClient
                    if let client { asked = client } else { asked = try connection.client(seconds: 2) }
                    client = asked
                    let now = try look(asked)
                    screen.take(TopRow.rows(before: before, now: now), at: TopTable.clock)
                    before = now
                } catch {
                    // It is being started anew, perhaps: what is known stays.
                    client = nil
                    screen.take(problem: error.description)
                }
                next = clinux_monotonic_ns() &+ step
                looks += 1
            }
            terminal.show(screen.lines(terminal.size))
        }
    }
}

extension TopOrder: ExpressibleByArgument {}
