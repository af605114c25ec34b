// SPDX-License-Identifier: BSD-2-Clause
// xbbctl upgrade: moves disks to new workers while guests use them.
import ArgumentParser
import CLinux
import Glibc
import Support
import XBBControl

extension XBBCtl {
    struct Upgrade: ParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Lets workers of the installed version take over from those that run.",
            discussion: """
                New workers prepare themselves; then requests in flight are finished, and the new ones go on with the same \
                rings: guests see a short delay. Where a new worker does not get ready, the old one serves on; where it \
                fails later, the program before it comes back. The exit status is 1 then.
                """)
        @ParentCommand var parent: XBBCtl
        @OptionGroup var device: OptionalDevice
        @Option(help: DeviceWords.kindHelp)
        var kind: String?
        @Option(help: ArgumentHelp("How long to wait for the new workers.", valueName: "seconds"))
        var timeout = 30.0
        @OptionGroup var connection: Connection

        func validate() throws {
            try XBBCtl.check(timeout: timeout)
            if let kind, !VBDAddress.isKind(kind) {
                throw ValidationError("--kind '\(kind)': expected a name such as vbd, qdisk or vbd3")
            }
        }

        func run() throws {
            try perform { () throws(ControlError) in
                let connection = connection.over(parent.connection)
                let told =
                    try connection.ask(.upgrade(try device.reference(connection, kind: kind))).value["vbds"]?.elements
                    ?? []
                var old: [String: UInt64] = [:]
                for entry in told {
                    if let name = entry["vbd"]?.string, let process = entry["pid"]?.unsigned { old[name] = process }
                }
                let end = clinux_monotonic_ns() + UInt64(timeout * 1e9)
                var failed = false
                var troubles: [String: String] = [:]
                while !old.isEmpty {
                    for row in try connection.ask(.list).value["vbds"]?.elements ?? [] {
                        guard let name = row["vbd"]?.string, let before = old[name], let now = row["pid"]?.unsigned
                        else {
                            continue
                        }
                        troubles[name] = row["trouble"]?.string
                        if now == before, let reason = row["refused"]?.string {
                            old[name] = nil
                            failed = true
                            print("\(name): worker \(before) serves on, the new one cannot take over: \(reason)")
                            continue
                        }
                        guard now != before, answers(name, connection) else { continue }
                        old[name] = nil
                        let wentBack = row["went_back"].map { $0 == .bool(true) } ?? false
                        failed = failed || wentBack
                        let note = wentBack ? ", which is of the old version: the new one failed" : ""
                        print("\(name): worker \(before) handed over to \(now)\(note)")
                    }
                    if clinux_monotonic_ns() > end {
                        let names = old.keys.sorted().map { $0 + (troubles[$0].map { " (\($0))" } ?? "") }
                            .joined(separator: ", ")
                        throw ControlError("no new worker within \(timeout) s: \(names)", status: .timedOut)
                    }
                    if !old.isEmpty { usleep(20_000) }
                }
                if failed { throw ControlError("a new worker failed; xbbctl log says why") }
            }
        }

        /// True if the new worker is running and has its storage.
        private func answers(_ name: String, _ connection: Connection) -> Bool {
            guard let reference = VBDReference(parsing: name), let answer = try? connection.ask(.show(reference)) else {
                return false
            }
            let stage = answer.value["stage"]?.string ?? ""
            return ["connected", "ready", "idle", "resting"].contains(stage)
        }
    }
}
