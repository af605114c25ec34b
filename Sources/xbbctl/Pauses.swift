// SPDX-License-Identifier: BSD-2-Clause
// Subcommands that keep a guest waiting for a moment: a pause, and other storage.
import ArgumentParser
import Support
import XBBControl

/// How long something may take.
struct TimeLimit: ParsableArguments {
    @Option(help: ArgumentHelp("The time limit, 0.1 to 86400.", valueName: "seconds"))
    var timeout: Double?

    func validate() throws {
        if let timeout { try XBBCtl.check(timeout: timeout) }
    }
}

extension XBBCtl {
    struct Pause: ParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Lets one device take no requests for a while: its guest waits, and nothing is lost.",
            discussion: """
                Returns when nothing is in flight and all that was answered is durable. The device goes on with 'xbbctl \
                resume', or when the time limit is over (60 seconds unless --timeout says otherwise), also where its worker \
                or xbbd has been killed meanwhile. Where requests in flight are not answered within 10 seconds, it is not \
                paused. --timeout of another pause counts from then on.
                """)
        @ParentCommand var parent: XBBCtl
        @OptionGroup var device: Device
        @OptionGroup var limit: TimeLimit
        @Flag(help: "Close the storage too, so that other programs can lock it.")
        var release = false
        @OptionGroup var connection: Connection
        @OptionGroup var format: Format

        func run() throws {
            try perform { () throws(ControlError) in
                let connection = connection.over(parent.connection)
                let request = ControlRequest.pause(
                    try device.reference(connection), seconds: "\(limit.timeout ?? 60)",
                    release ? .releases : .plain)
                format.print(try connection.ask(request, seconds: 60)) { _ in [] }
            }
        }
    }

    struct Swap: ParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Gives one device another image while its guest uses it.",
            discussion: """
                The image has to be as large at least as the device. Where it cannot be served within the time limit (10 \
                seconds unless --timeout says otherwise), for whatever reason, the device has the image that it had before.
                """)
        @ParentCommand var parent: XBBCtl
        @OptionGroup var device: Device
        @Option(
            help: ArgumentHelp("The format and where the image is, as in attach.", valueName: "format:location"),
            completion: Completions.images)
        var image: String
        @OptionGroup var limit: TimeLimit
        @Flag(
            help: ArgumentHelp(
                "Also an image that somebody else uses, or that is below the one that is served; not one that is locked."
            ))
        var force = false
        @OptionGroup var connection: Connection
        @OptionGroup var format: Format

        func run() throws {
            try perform { () throws(ControlError) in
                let connection = connection.over(parent.connection)
                let answer = try XBBCtl.exchange(
                    try device.reference(connection), image, seconds: limit.timeout ?? 10, force: force, connection)
                format.print(answer) { _ in [] }
            }
        }
    }

    /// Gives a device another image, unless somebody uses that.
    static func exchange(
        _ reference: VBDReference, _ image: String, seconds: Double, force: Bool, _ connection: Connection
    ) throws(ControlError) -> ControlAnswer {
        let kinds = connection.locationKinds()
        let disk = try DiskSpecification(
            parsing: image, workingDirectory: DiskSpecification.currentDirectory, isOpaque: kinds.isOpaque)
        let target = try ExchangeTarget(disk)
        if !force {
            // An administrator has the storage of a released disk, and what was below it is theirs to know.
            if try connection.row(of: reference)?["worker"]?.string != "released" {
                try target.check(against: try connection.ask(.show(reference)).value)
            }
            let toolstack = try connection.toolstack()
            if let conflict = try toolstack.conflict(
                try toolstack.find(reference), disk, opaqueFormats: kinds.opaqueFormats)
            {
                throw ControlError("\(conflict); --force uses it all the same")
            }
        }
        return try connection.ask(.swap(reference, seconds: "\(seconds)", target), seconds: Int(seconds) + 60)
    }
}
