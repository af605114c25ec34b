// SPDX-License-Identifier: BSD-2-Clause
// One question to many workers: all are asked at the same time, and one that does not answer holds up nobody.
import Base
import CLinux
import Support
import Xen

/// Answers that are complete when all workers have said something, or their time is over.
struct Gathering {
    /// Calls without an answer.
    var waiting: Set<UInt64> = []
    /// Each is one line of JSON.
    var answers: [VBDAddress: [UInt8]] = [:]
    let completion: ([VBDAddress: [UInt8]]) -> Void
}

extension Supervisor {
    /// How long workers have, in ns: somebody looks at the screen.
    private static let gatheringLimit: UInt64 = 500 * RestartPolicy.millisecond

    /// Asks the workers of `records`; `completion` gets the answers of those that have answered in time.
    func ask(
        _ line: String, of records: some Sequence<Record>, answerLimit: Int = WorkerCall.answerLimit,
        _ completion: @escaping ([VBDAddress: [UInt8]]) -> Void
    ) {
        lastGathering += 1
        let number = lastGathering
        gatherings[number] = Gathering(completion: completion)
        // One that is known not to answer is not waited for.
        for record in records where record.process != nil && silence(of: record) == nil {
            let address = record.address
            do throws(ControlError) {
                let id = try call(address, line, limit: Self.gatheringLimit, answerLimit: answerLimit) {
                    [unowned self] id, result in
                    gatherings[number]?.waiting.remove(id)
                    if case .success(let text) = result { gatherings[number]?.answers[address] = text }
                    finishGathering(number)
                }
                gatherings[number]?.waiting.insert(id)
            } catch {
                // It says nothing, as one that does not answer.
            }
        }
        finishGathering(number)
    }

    private func finishGathering(_ number: UInt64) {
        guard let gathering = gatherings[number], gathering.waiting.isEmpty else { return }
        gatherings[number] = nil
        gathering.completion(gathering.answers)
    }

    private static func parsed(_ answers: [VBDAddress: [UInt8]]) -> [VBDAddress: JSON] {
        answers.compactMapValues { text in
            do throws(JSONError) { return try JSON(parsing: text) } catch { return nil }
        }
    }

    /// The rows of `list` with the names of their domains, and counters where a worker has said some.
    func top(for client: ControlServer.ClientID) throws(ControlError) {
        let rows = try list()
        let names: [DomainID: JSON]
        do throws(OperationError) { names = try domainNames() } catch { throw ControlError("\(error)") }
        ask("stats", of: records.values) { [unowned self] stats in
            var named: [String: JSON] = [:]
            for (address, counters) in Self.parsed(stats) { named["\(address)"] = counters }
            let vbds = rows.map { row -> JSON in
                let domain = row["domid"]?.unsigned.flatMap { DomainID(exactly: $0) }
                return .object(
                    row.members + [
                        ("domain", domain.flatMap { names[$0] } ?? .null),
                        ("stats", row["vbd"]?.string.flatMap { named[$0] } ?? .null),
                    ])
            }
            answer(.object([("vbds", .array(vbds))]), to: client)
        }
    }

    /// The names of all domains that have disks, or null; XenStore is asked once for each.
    func domainNames() throws(OperationError) -> [DomainID: JSON] {
        var names: [DomainID: JSON] = [:]
        for domain in Set(records.keys.map(\.domain)) {
            let name = try store.valueIfReadable("/local/domain/\(domain)/name")
            names[domain] = .text(name.map { String(decoding: $0, as: UTF8.self) })
        }
        return names
    }

    /// The remembered lines of the log with those of workers. A worker is asked that had no room for its file.
    func tellLog(of vbd: VBDReference?, to client: ControlServer.ClientID) {
        let fileless = records.values.filter { record in
            (vbd?.matches(record.address) ?? true) && workerLines(record.address, limit: LogFile.mostBytes).isEmpty
        }
        ask("log", of: fileless) { [unowned self] answers in
            var lines = log.history?.lines ?? []
            for address in records.keys where vbd?.matches(address) ?? true {
                lines += workerLines(address, limit: vbd == nil ? 8 << 10 : LogFile.mostBytes)
            }
            for (address, said) in Self.parsed(answers) { lines += Self.lines(said, of: address) }
            answer(.object([("events", .array(events(lines, of: vbd)))]), to: client)
        }
    }

    /// Lines of a worker's answer, which may be anything.
    private static func lines(_ answer: JSON, of address: VBDAddress) -> [LogHistory.Line] {
        (answer["events"]?.elements ?? []).suffix(LogHistory.workerLimit).compactMap { event in
            guard let time = event["time"]?.double, time.isFinite, (0...1e11).contains(time),
                let level = event["level"]?.string.flatMap({ LogLevel(word: $0) }), let text = event["text"]?.string
            else { return nil }
            return LogHistory.Line(
                time: time, level: level, text: "\(address): \(String(text.prefix(1100)))",
                vbd: (address.domain, address.device))
        }
    }
}
