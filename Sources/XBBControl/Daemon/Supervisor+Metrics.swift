// SPDX-License-Identifier: BSD-2-Clause
// What monitoring is told: one answer about all disks, of what xbbd knows and what their workers count.
import Base
import CLinux
import Support
import Xen

extension Supervisor {
    /// Gathers the workers' counters. A worker that does not answer within the time of a gathering has none, and the others have
    /// theirs; XenStore is asked once for each domain, and for a disk's storage once after each change of its node.
    func metrics(for client: ControlServer.ClientID) throws(ControlError) {
        let began = clinux_monotonic_ns()
        // Completed while the workers make their answers.
        var rows: [(address: VBDAddress, text: String)] = []
        try ask("metrics", of: records.values, answerLimit: WorkerCall.shortAnswerLimit, for: client) {
            [unowned self] answers in
            answer(Self.line(rows, answers, nanoseconds: clinux_monotonic_ns() &- began), to: client)
        }
        do throws(OperationError) {
            rows = try metricsRows()
        } catch {
            endGatherings(of: client)
            throw ControlError("\(error)")
        }
    }

    /// A worker's answer is JSON, which was looked at when it came, and is not written anew.
    private static func line(
        _ rows: [(address: VBDAddress, text: String)], _ answers: WorkerGathering.Answers, nanoseconds: UInt64
    ) -> [UInt8] {
        var line = [UInt8]("{\"version\":\(JSON.string(xbbVersion).serialized),\"vbds\":[".utf8)
        line.reserveCapacity(rows.reduce(256) { $0 + $1.text.utf8.count + 16 + (answers[$1.address]?.count ?? 4) })
        for (index, row) in rows.enumerated() {
            if index > 0 { line.append(UInt8(ascii: ",")) }
            line += row.text.utf8.dropLast()
            line += ",\"counted\":".utf8
            line += answers[row.address] ?? Array("null".utf8)
            line.append(UInt8(ascii: "}"))
        }
        line += "],\"gathering_ns\":\(nanoseconds)}".utf8
        return line
    }

    private func metricsRows() throws(OperationError) -> [(address: VBDAddress, text: String)] {
        let names = try domainNames()
        var rows: [(address: VBDAddress, text: String)] = []
        for (address, record) in records.sorted(by: { $0.key < $1.key }) {
            if record.location == nil { record.location = try location(of: address) }
            let location = record.location
            let row = JSON.object([
                ("vbd", .string("\(address)")), ("kind", .string(address.kind)), ("domid", .integer(address.domain)),
                ("devid", .integer(address.device)), ("device", .string(VirtualDevice.name(of: address.device))),
                ("domain", names[address.domain] ?? .null), ("worker", .string(word(record))),
                ("starts", .integer(record.startCount)), ("format", .text(location?.format)),
                ("path", .text(location?.path)),
            ])
            rows.append((address, row.serialized))
        }
        return rows
    }
}
