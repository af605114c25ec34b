// SPDX-License-Identifier: BSD-2-Clause
// What the hotplug script block-xbb asks: who uses the storage, and whether a disk's worker has ended.
import ArgumentParser
import XBBControl

extension XBBCtl {
    struct Hotplug: ParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Answers the hotplug script block-xbb.", shouldDisplay: false,
            subcommands: [Check.self, AwaitEnd.self])

        struct Check: ParsableCommand {
            static let configuration = CommandConfiguration(
                abstract: "Says who uses some storage in a way that excludes a disk.",
                discussion:
                    "Prints 'same-guest' if another domain of the guest has it. Exit status 1 and the reason if somebody else has it."
            )
            @Option(help: "The backend's node, as in XENBUS_PATH.") var node: String
            @Option(help: "The mode of the node.") var mode: String
            @Option(help: "The format of the image.") var format: String
            @Option(help: "Where the image is.") var location: String
            @Option(name: .customLong("opaque"), help: "A format whose locations are no paths.") var opaque: [String] =
                []
            @OptionGroup var connection: Connection

            func run() throws {
                try perform { () throws(ControlError) in
                    let finding = try AttachSharing.check(
                        node: node, mode: mode, format: format, location: location, opaqueFormats: Swift.Set(opaque),
                        store: try StoreAccess.open(loopback: connection.loopback))
                    if let conflict = finding.conflict {
                        print(conflict)
                        throw ControlError("", status: .failed)
                    }
                    if finding.isSameGuest { print("same-guest") }
                }
            }
        }

        struct AwaitEnd: ParsableCommand {
            static let configuration = CommandConfiguration(
                commandName: "await-end", abstract: "Waits until no worker has the storage of a disk.")
            @Option(help: "The backend's node, as in XENBUS_PATH.") var node: String
            @Option(help: "How long to wait.") var seconds = 30.0
            @OptionGroup var connection: Connection

            func run() throws {
                try perform { () throws(ControlError) in
                    guard let address = VBDAddress(node: node) else {
                        throw ControlError("'\(node)' is no node of a disk")
                    }
                    guard WorkerPresence(socket: connection.socketPath).awaitEnd(of: address, seconds: seconds) else {
                        throw ControlError(
                            "the worker of \(address) has not ended after \(Int(seconds)) s: its storage may still be "
                                + "open; 'xbbctl list' and the log of xbbd say more", status: .timedOut)
                    }
                }
            }
        }
    }
}
