// SPDX-License-Identifier: BSD-2-Clause
// What clients send to xbbd and to the port of metrics, and what a user says to xbbctl.
import Base
import Settings
import Support
import TestSupport
import XenBus

@testable import XBBControl

/// Any bytes, in the pieces in which they come.
func readRequest() -> [String] {
    guard let limit = FuzzInput.take(1), let piece = FuzzInput.take(1) else { return [] }
    let bytes = FuzzInput.takeRest()
    var problems: [String] = []
    var buffer = LineBuffer(limit: Int(limit))
    var lines: [[UInt8]] = []
    var rest = bytes[...]
    while !rest.isEmpty {
        buffer.append(rest.prefix(Int(piece) + 1))
        rest = rest.dropFirst(Int(piece) + 1)
        while let line = buffer.next() { lines.append(line) }
    }
    if lines.contains(where: { $0.count > Int(limit) || $0.contains(UInt8(ascii: "\n")) }) {
        problems.append("a line beyond its limit")
    }
    for line in lines + [bytes] { problems += check(line) }
    _ = ScrapeRequest(bytes)
    let text = String(decoding: bytes, as: UTF8.self)
    if let size = try? ByteSize(parsing: text), let new = try? size.applied(to: 1 << 30), new % 512 != 0 || new == 0 {
        problems.append("a size of \(new)")
    }
    if let disk = try? DiskSpecification(parsing: text, workingDirectory: "/work", isOpaque: { $0 == "nbd" }) {
        if disk.target.hasControlCharacters {
            problems.append("target \(disk.target.debugDescription)")
        }
        _ = try? PluginOptions(disk.options)
    }
    _ = try? DeviceModelArguments(parsing: text.split(separator: " ").map(String.init))
    return problems
}

/// A request is the same one when it is sent on.
private func check(_ line: [UInt8]) -> [String] {
    guard let request = try? ControlRequest(parsing: line) else { return [] }
    guard let again = try? ControlRequest(parsing: Array(request.line.utf8)), again == request else {
        return ["\(request) is sent on as \(request.line)"]
    }
    if let worker = request.workerLine, worker.contains("\n") {
        return ["two lines for a worker: \(worker.debugDescription)"]
    }
    if case .set(_, let changes) = request {
        for change in changes {
            guard let checked = try? change.checked() else { continue }
            guard (try? checked.checked()) == checked else { return ["\(change) becomes \(checked), which is refused"] }
        }
    }
    if case .swap(_, _, let target, _) = request {
        _ = (try? target.checkSettings(), target.keys(for: .params), target.keys(for: .hotplug))
    }
    return []
}
