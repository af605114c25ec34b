// SPDX-License-Identifier: BSD-2-Clause
// Subcommands for CD drives and removable disks: another medium, or none.
import ArgumentParser
import Support
import XBBControl

extension XBBCtl {
    struct Insert: ParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Puts a medium into a drive, in place of the one that is there, as xl cd-insert does.",
            discussion: """
                The guest waits for a moment and finds a drive of another size. Where the medium cannot be served within the \
                time limit (10 seconds unless --timeout says otherwise), the drive keeps the one that it has.
                """)
        @ParentCommand var parent: XBBCtl
        @OptionGroup var device: Device
        @Argument(
            help: ArgumentHelp("The format and where the image is, as in attach.", valueName: "format:location"),
            completion: Completions.images)
        var image: String
        @OptionGroup var limit: TimeLimit
        @OptionGroup var connection: Connection
        @OptionGroup var format: Format

        func run() throws {
            try perform { () throws(ControlError) in
                try XBBCtl.changeMedium(
                    try device.reference(connection.over(parent.connection)), image, "inserted", limit,
                    connection.over(parent.connection), format)
            }
        }
    }

    struct Eject: ParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Takes the medium out of a drive, as xl cd-eject does.",
            discussion: """
                The image is closed when the command returns. What the guest reads from then on fails, also of a medium that \
                it has mounted.
                """)
        @ParentCommand var parent: XBBCtl
        @OptionGroup var device: Device
        @OptionGroup var limit: TimeLimit
        @OptionGroup var connection: Connection
        @OptionGroup var format: Format

        func run() throws {
            try perform { () throws(ControlError) in
                let connection = connection.over(parent.connection)
                let reference = try device.reference(connection)
                let shown = try connection.ask(.show(reference)).value
                if shown["format"]?.string == DiskSpecification.emptyDrive {
                    if format.json {
                        print(JSONForm.line(.object([("result", .string("ejected")), ("pause_ms", .null)])))
                    }
                    return
                }
                try XBBCtl.changeMedium(
                    reference, DiskSpecification.emptyDrive + ":", "ejected", limit, connection, format)
            }
        }
    }

    /// Gives a drive another medium.
    private static func changeMedium(
        _ reference: VBDReference, _ image: String, _ result: String, _ limit: TimeLimit, _ connection: Connection,
        _ format: Format
    ) throws(ControlError) {
        guard try connection.toolstack().isDrive(reference) else {
            throw ControlError(
                "\(reference) is neither a CD drive nor removable: 'xbbctl swap' gives a disk another image")
        }
        let answer = try XBBCtl.exchange(reference, image, seconds: limit.timeout ?? 10, force: false, connection)
        if format.json {
            print(
                JSONForm.line(
                    .object([("result", .string(result)), ("pause_ms", answer.value["pause_ms"] ?? .null)])))
        }
    }
}
