// SPDX-License-Identifier: BSD-2-Clause
// What many workers are asked at once (``WorkerGathering``), and what is made of their answers.
import Base
import CLinux
import Support
import Xen

/// Who waits for the answers of workers.
struct GatheringWait {
    let client: ControlServer.ClientID
    let completion: (WorkerGathering.Answers) -> Void
}

extension Supervisor {
    /// Asks the workers of `records` for a client; `completion` gets the answers of those that have answered in time. It is
    /// called later, from the loop, unless the client goes before that.
    func ask(
        _ line: String, of records: some Sequence<Record>, answerLimit: Int = WorkerCall.answerLimit,
        for client: ControlServer.ClientID, _ completion: @escaping (WorkerGathering.Answers) -> Void
    ) throws(ControlError) {
        // One that is known not to answer is not waited for.
        let workers = records.compactMap { record -> WorkerGathering.Worker? in
            guard let process = record.process, record.answers?.isSilent != true else { return nil }
            let socket = directory.workerSocket(record.address)
            return WorkerGathering.Worker(address: record.address, socket: socket, process: process.process)
        }
        do throws(OperationError) {
            // The connection ends with the answer, so that no worker is woken once more.
            let question = WorkerGathering.Question(line: "\(line) last", answerLimit: answerLimit, workers: workers)
            gatherings[try gathering().begin(question)] = GatheringWait(client: client, completion: completion)
        } catch {
            throw ControlError("cannot ask the workers: \(error)")
        }
    }

    private func gathering() throws(OperationError) -> WorkerGathering {
        if let workerGathering { return workerGathering }
        let made = try WorkerGathering()
        try loop.add(made.descriptor) { [unowned self] in takeGatherings() }
        workerGathering = made
        return made
    }

    private func takeGatherings() {
        for answered in workerGathering?.take() ?? [] {
            gatherings.removeValue(forKey: answered.number)?.completion(answered.answers)
        }
    }

    /// A client has gone: nobody is asked for it any more.
    func endGatherings(of client: ControlServer.ClientID) {
        for (number, wait) in gatherings where wait.client == client {
            gatherings[number] = nil
            workerGathering?.forget(number)
        }
    }

    private static func parsed(_ answers: WorkerGathering.Answers) -> [VBDAddress: JSON] {
        answers.compactMapValues { text in
            do throws(JSONError) { return try JSON(parsing: text) } catch { return nil }
        }
    }

    /// The rows of `list` with the names of their domains, and counters where a worker has said some.
    func top(for client: ControlServer.ClientID) throws(ControlError) {
        let rows = try list()
        let names: [DomainID: JSON]
        do throws(OperationError) { names = try domainNames() } catch { throw ControlError("\(error)") }
        try ask("stats", of: records.values, for: client) { [unowned self] stats in
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
    func tellLog(of vbd: VBDReference?, to client: ControlServer.ClientID) throws(ControlError) {
        let fileless = records.values.filter { record in
            (vbd?.matches(record.address) ?? true) && workerLines(record.address, limit: LogFile.mostBytes).isEmpty
        }
        try ask("log", of: fileless, for: client) { [unowned self] answers in
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
