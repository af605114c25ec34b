// SPDX-License-Identifier: BSD-2-Clause
// JSON of a worker, a plugin or a client of QMP.
import Base
import Support
import TestSupport

@testable import XBBControl

/// Any bytes as JSON.
func readJSON() -> [String] {
    let bytes = FuzzInput.takeRest()
    _ = MachineProtocol.answer(bytes).serialized
    let isAccepted = (try? JSON.check(bytes)) != nil
    guard let value = try? JSON(parsing: bytes) else { return isAccepted ? ["checked, but not read"] : [] }
    guard isAccepted else { return ["read, but refused by the check"] }
    let text = value.serialized
    guard let again = try? JSON(parsing: text), again == value else { return ["\(text) is not what was read"] }
    // What a worker says goes to terminals.
    return !text.hasControlCharacters ? [] : ["control characters in \(text.debugDescription)"]
}

/// The answers of workers as metrics.
func readMetrics() -> [String] {
    guard let flags = FuzzInput.take(1), let value = try? JSON(parsing: FuzzInput.takeRest()) else { return [] }
    let format: MetricsFormat = flags & 1 == 0 ? .prometheus : .openmetrics
    let answer: JSON = .object([
        (
            "disks",
            .array([
                .object([
                    ("domid", .integer(1)), ("devid", .integer(51712)), ("device", .string("xvda")),
                    ("kind", .string("vbd")),
                    ("counted", value),
                ])
            ])
        )
    ])
    let text = MetricsReport.text(flags & 2 == 0 ? answer : value, format)
    let lines = text.split(separator: UInt8(ascii: "\n"))
    for line in lines where String(decoding: line, as: UTF8.self).hasControlCharacters {
        return ["a line with control characters"]
    }
    // A worker makes no series: the families of one disk, and some storage errors.
    return flags & 2 == 0 && lines.count > 1000 ? ["\(lines.count) lines for one disk"] : []
}
