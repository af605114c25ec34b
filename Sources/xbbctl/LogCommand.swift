// SPDX-License-Identifier: BSD-2-Clause
// xbbctl log: the journal's lines about a device, or the lines that xbbd remembers.
import ArgumentParser
import CLinux
import Glibc
import Support
import XBBControl

extension XBBCtl {
    struct LogCommand: ParsableCommand {
        static let configuration = CommandConfiguration(
            commandName: "log",
            abstract: "Shows what xbbd and workers logged, of one device or of all.",
            discussion: """
                Runs journalctl where there is a journal. Elsewhere, and with --socket, xbbd is asked for its last \
                lines and those of workers.
                """)
        @ParentCommand var parent: XBBCtl
        @OptionGroup var device: OptionalDevice
        @Flag(help: "Show new lines as they come; with the journal only.")
        var follow = false
        @Option(help: ArgumentHelp("How many of the last lines, 1 to 100000.", valueName: "n"))
        var lines = 100
        @OptionGroup var connection: Connection
        @OptionGroup var format: Format

        func validate() throws {
            guard (1...100_000).contains(lines) else {
                throw ValidationError("--lines \(lines): expected 1 to 100000")
            }
        }

        func run() throws {
            try perform { () throws(ControlError) in
                let connection = connection.over(parent.connection)
                let vbd = try device.reference(connection)
                if connection.socket == nil, let journalctl = JournalCommand.find() {
                    let arguments = JournalCommand.arguments(
                        domain: vbd?.domain, device: vbd?.device, lines: lines, follows: follow, json: format.json)
                    throw JournalCommand.run(journalctl, arguments)
                }
                if follow { throw ControlError("--follow needs the journal, and there is none here") }
                let answer = try connection.ask(.log(vbd))
                if format.json { return print(JSONForm.line(answer.text)) }
                for line in Reports.log(answer.value).suffix(lines) { print(line) }
            }
        }
    }
}
