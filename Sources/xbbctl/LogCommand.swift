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
                Runs journalctl where there is a journal. Elsewhere, and with --socket, xbbd is asked for the last \
                lines of its own; those of workers are where its standard error goes.
                """)
        @ParentCommand var parent: XBBCtl
        @Argument(help: "The guest's domain number; without it the lines of all devices are shown.")
        var domid: UInt16?
        @Argument(help: "The virtual device: xvda, xvda1, sda, hda or a number.")
        var vdev: String?
        @Flag(help: "Show new lines as they come; with the journal only.")
        var follow = false
        @Option(help: ArgumentHelp("How many of the last lines, 1 to 100000.", valueName: "n"))
        var lines = 100
        @OptionGroup var connection: Connection
        @OptionGroup var format: Format

        func validate() throws {
            if let domid {
                guard let vdev else {
                    throw ValidationError("expected a virtual device after the domain, as in 1 xvda")
                }
                try Device.check(domid: domid, vdev: vdev)
            }
            guard (1...100_000).contains(lines) else {
                throw ValidationError("--lines \(lines): expected 1 to 100000")
            }
        }

        func run() throws {
            try perform { () throws(ControlError) in
                let connection = connection.over(parent.connection)
                let number = vdev.flatMap { VirtualDevice.number(of: $0) }
                if connection.socket == nil, let journalctl = JournalCommand.find() {
                    let arguments = JournalCommand.arguments(
                        domain: domid, device: number, lines: lines, follows: follow, json: format.json)
                    throw JournalCommand.run(journalctl, arguments)
                }
                if follow { throw ControlError("--follow needs the journal, and there is none here") }
                var vbd: VBDReference?
                if let domid, let number { vbd = VBDReference(domain: domid, device: number) }
                let answer = try connection.ask(.log(vbd))
                if format.json { return print(answer.text) }
                for line in Reports.log(answer.value).suffix(lines) { print(line) }
            }
        }
    }
}
