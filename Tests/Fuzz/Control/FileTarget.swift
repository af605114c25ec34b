// SPDX-License-Identifier: BSD-2-Clause
// Files of the run directory, as a worker that was taken over or a full file system leaves them.
import Base
import DiskEvents
import StorageKeeping
import Support
import TestSupport

@testable import PluginHost
@testable import XBBControl

/// Any bytes as each of the files.
func readFiles() -> [String] {
    let bytes = FuzzInput.takeRest()
    var problems: [String] = []
    if var history = EventHistory(text: bytes) {
        let next = history.next
        guard let again = EventHistory(text: history.text), again.next == next, again.events == history.events,
            again.states == history.states
        else { return ["a history that is another one when it is written"] }
        if history.events.count > EventHistory.limit { problems.append("\(history.events.count) events") }
        for sequence in [0, 1, next, .max] {
            let part = history.part(from: EventCursor(epoch: history.epoch, sequence: sequence))
            if part.events.contains(where: { $0.sequence >= part.next }) { problems.append("an event is told twice") }
        }
        if let address = history.states.keys.first {
            _ = history.add(.error, address, DiskEventDetails([("text", .string("x"))]), time: 1)
            if next < .max - 1, history.next != next + 1 {
                problems.append("the number \(history.next) follows \(next)")
            }
        }
    }
    let note = LockNote(reading: bytes)
    if LockNote(reading: note.bytes) != note { problems.append("\(note) is another one when it is written") }
    if note.bytes.count != LockNote.size { problems.append("a note of \(note.bytes.count) bytes") }
    if let entries = KeptStorage.readManifest(bytes[...]) {
        let written = entries.map { Array($0.format.utf8) + [0] + Array($0.path.utf8) + [0] as [UInt8] }.joined()
        if Array(written) != bytes { problems.append("a manifest that is another one when it is written") }
    }
    _ = PluginDescription(parsing: bytes, name: "qcow")
    let details = DiskEventDetails(((try? JSON(parsing: bytes)) ?? .null).members)
    for member in details.members {
        let text = member.value.string ?? ""
        if text.hasControlCharacters || text.unicodeScalars.count > 300 {
            problems.append("details \(text.debugDescription)")
        }
    }
    return problems
}
