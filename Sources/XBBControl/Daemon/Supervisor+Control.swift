// SPDX-License-Identifier: BSD-2-Clause
// The answers of xbbd to xbbctl: from its own records or from the worker.
import Base
import CLinux
import Glibc
import XenBus
import Support

extension Supervisor {
    /// Takes a line of a client and answers it, at once or when the worker has answered.
    func request(_ line: [UInt8], from client: ControlServer.ClientID) {
        do throws(ControlError) {
            let request = try ControlRequest(parsing: line)
            if request.isForRoot, !isPrivileged(client) {
                throw ControlError("only root may: this decides on images and on what guests get")
            }
            switch request {
            case .ping: answer(.object([("pid", .integer(getpid()))]), to: client)
            case .list: lookAtImages { [unowned self] in answerList(to: client) }
            case .plugins: dumpPlugins(for: client)
            case .worker(let vbd): answer(workers(of: vbd), to: client)
            case .domain(let name):
                answer(.object([("domid", .integer(try DomainName.find(name, in: store)))]), to: client)
            case .top: try top(for: client)
            case .metrics: try metrics(for: client)
            case .events(let cursor, let waits): try tellEvents(cursor, waits: waits, to: client)
            case .state(let vbd): answer(state(of: vbd), to: client)
            case .log(let vbd): try tellLog(of: vbd, to: client)
            case .upgrade(let vbd): answer(.object([("vbds", .array(try upgrade(vbd)))]), to: client)
            case .show(let vbd):
                _ = try record(vbd)
                lookAtImages { [unowned self] in forward(request, to: vbd, for: client) }
            case .pause(let vbd, let seconds, let kind): try pause(try record(vbd), seconds, kind, for: client)
            case .resume(let vbd, let restores): try resume(try record(vbd), restores: restores, for: client)
            case .swap(let vbd, let seconds, let storage, let condition):
                try exchange(try record(vbd), storage, seconds: seconds, condition: condition, for: client)
            case .resize(let vbd, _, _), .extents(let vbd, _):
                try forward(request.workerLine ?? "", to: try record(vbd), limit: Self.pauseLimit, for: client)
            case .stats(let vbd), .set(let vbd, _): forward(request, to: vbd, for: client)
            }
        } catch {
            refuse(error, to: client)
        }
    }

    func refuse(_ error: ControlError, to client: ControlServer.ClientID) {
        let status: [JSON.Member] = error.status == .failed ? [] : [("status", .integer(error.status.rawValue))]
        answer(.object([("error", .string(error.description))] + status), to: client)
    }

    private func answerList(to client: ControlServer.ClientID) {
        do throws(ControlError) {
            answer(.object([("vbds", .array(try list()))]), to: client)
        } catch {
            refuse(error, to: client)
        }
    }

    // MARK: What a worker answers

    /// Sends a line to a worker, which has `limit` ns for its answer; nil: any time. Throws if nobody listens at its socket.
    ///
    /// - Returns: the number of the call in `calls`, which `completion` gets too, with the answer.
    func call(
        _ address: VBDAddress, _ line: String, limit: UInt64? = WorkerCall.timeLimit,
        answerLimit: Int = WorkerCall.answerLimit,
        _ completion: @escaping (_ id: UInt64, Result<[UInt8], ControlError>) -> Void
    ) throws(ControlError) -> UInt64 {
        lastCall += 1
        let id = lastCall
        calls[id] = try WorkerCall(
            path: directory.workerSocket(address), line: line, loop: loop, limit: limit, answerLimit: answerLimit
        ) { [unowned self] result in
            calls[id] = nil
            completion(id, result)
        }
        return id
    }

    func record(_ vbd: VBDReference) throws(ControlError) -> Record {
        let found = records.values.filter { vbd.matches($0.address) }
        guard let record = found.first else {
            throw ControlError("there is no VBD \(vbd); 'xbbctl list' shows those that there are")
        }
        guard found.count == 1 else {
            let kinds = found.map(\.address.kind).sorted().joined(separator: ", ")
            throw ControlError("there is a VBD \(vbd) of each kind: \(kinds); --kind says which")
        }
        return record
    }

    /// Hands a request to the worker, and its answer to the client.
    private func forward(_ request: ControlRequest, to vbd: VBDReference, for client: ControlServer.ClientID) {
        do throws(ControlError) {
            guard let line = request.workerLine else { return }
            try forward(line, to: try record(vbd), for: client)
        } catch {
            refuse(error, to: client)
        }
    }

    func forward(
        _ line: String, to record: Record, limit: UInt64? = WorkerCall.timeLimit, for client: ControlServer.ClientID
    ) throws(ControlError) {
        try ask(record, line, limit: limit) { [unowned self] result in
            switch result {
            case .success(let text): answer(line == "show" ? completed(text, record.address) : text, to: client)
            case .failure(let error): refuse(error, to: client)
            }
        }
    }

    /// Asks the worker of a disk, which has `limit` ns for its answer. Throws where there is none to ask.
    func ask(
        _ record: Record, _ line: String, limit: UInt64? = WorkerCall.timeLimit,
        _ completion: @escaping (Result<[UInt8], ControlError>) -> Void
    ) throws(ControlError) {
        let address = record.address
        if let silence = silence(of: record) { throw ControlError("\(address): \(silence)", status: .timedOut) }
        guard record.process != nil || isForeign(record) else { throw missingWorker(of: record) }
        do throws(ControlError) {
            _ = try call(address, line, limit: limit) { _, result in
                completion(result.mapError { ControlError("\(address): \($0)", status: $0.status) })
            }
        } catch {
            throw ControlError("\(address): \(error)", status: error.status)
        }
    }

    /// A disk has no worker that could be asked: a temporary failure where one is about to begin, whatever was to be asked.
    func missingWorker(of record: Record) -> ControlError {
        let reason = lastError(of: record.address).map { "; its last error: \($0)" } ?? ""
        let text = "\(record.address) has no worker: \(describe(record))\(reason)"
        switch record.supervision.phase {
        case .idle, .starting, .running: return ControlError("\(text); try again", status: .timedOut)
        case .waiting: return ControlError(text, status: .timedOut)
        case .foreign, .released, .failed, .over: return ControlError(text)
        }
    }

    /// A worker's answer to `show` with what it does not know: the device by name and number, as in `list`, and whether its
    /// image is where it was.
    private func completed(_ answer: [UInt8], _ address: VBDAddress) -> [UInt8] {
        let problem = records[address].flatMap { imageProblem(of: $0) }
        do throws(JSONError) {
            let members = try JSON(parsing: answer).members.flatMap { member -> [JSON.Member] in
                switch member.name {
                case "device":
                    return [
                        (member.name, .string(VirtualDevice.name(of: address.device))),
                        ("devid", .integer(address.device)),
                    ]
                case "trouble":
                    let troubles = [member.value.string, problem].compactMap { $0 }
                    return [(member.name, .text(troubles.isEmpty ? nil : troubles.joined(separator: "; ")))]
                default: return [member]
                }
            }
            return members.isEmpty ? answer : [UInt8](JSON.object(members).serialized.utf8)
        } catch {
            return answer
        }
    }

    private func isForeign(_ record: Record) -> Bool {
        if case .foreign = record.supervision.phase { true } else { false }
    }

    // MARK: What xbbd knows

    /// Lines of an answer.
    private static let mostEvents = 1024

    /// One word for the worker of a VBD.
    func word(_ record: Record) -> String {
        switch record.supervision.phase {
        case .idle, .starting: "starting"
        case .running: record.process?.isAdopted == true ? "adopted" : "running"
        case .foreign: "foreign"
        case .released: "released"
        case .waiting: "waiting"
        case .failed: "failed"
        case .over: "closed"
        }
    }

    private func describe(_ record: Record) -> String {
        switch record.supervision.phase {
        case .waiting(let until):
            let now = clinux_monotonic_ns()
            let seconds = (max(until, now) - now) / RestartPolicy.second + 1
            let failure = record.supervision.lastFailure ?? "a failure"
            return "the last one ended with \(failure), the next starts in \(seconds) s"
        case .released(let until):
            let now = clinux_monotonic_ns()
            let seconds = (max(until, now) - now) / RestartPolicy.second + 1
            return "its storage is released for \(seconds) s, unless 'xbbctl resume' ends that"
        case .failed(let text): return text
        case .over: return "it is closed"
        case .idle, .starting, .running, .foreign: return "it is being started"
        }
    }

    /// What has the storage of a VBD, also of one whose node is gone; null where nothing has.
    private func workers(of vbd: VBDReference) -> JSON {
        let record = records.values.first { vbd.matches($0.address) && ($0.process != nil || isForeign($0)) }
        return .object([
            ("worker", .text(record.map(word))),
            ("pid", record?.process.map { .integer($0.process) } ?? .null),
            ("silent", .text(record.flatMap { silence(of: $0) })),
        ])
    }

    func list() throws(ControlError) -> [JSON] {
        do throws(OperationError) {
            var rows: [JSON] = []
            for (address, record) in records.sorted(by: { $0.key < $1.key }) { rows.append(try row(address, record)) }
            return rows
        } catch {
            throw ControlError("\(error)")
        }
    }

    private func row(_ address: VBDAddress, _ record: Record) throws(OperationError) -> JSON {
        let path = address.backendPath(own: own)
        func key(_ name: String) throws(OperationError) -> JSON {
            .text(try store.valueIfReadable("\(path)/\(name)").map { String(decoding: $0, as: UTF8.self) })
        }
        let error = lastError(of: address)
        let location = try location(of: address)
        let node = record.supervision.node
        return .object([
            ("vbd", .string("\(address)")), ("kind", .string(address.kind)),
            ("domid", .integer(address.domain)), ("devid", .integer(address.device)),
            ("device", .string(VirtualDevice.name(of: address.device))),
            ("backend_path", .string(path)), ("worker", .string(word(record))),
            ("pid", record.process.map { .integer($0.process) } ?? .null),
            ("starts", .integer(record.startCount)), ("went_back", .bool(record.replacement.hasRolledBack)),
            ("stalled", try key(BackendKey.stall)), ("silent", .text(silence(of: record))),
            ("refused", .text(record.refusal)), ("paused", .bool(try key(BackendKey.paused) != .null)),
            ("exchange", .text(node?.exchange.map { $0.direction == .forth ? "forth" : "back" })),
            ("last_failure", .text(record.supervision.lastFailure ?? error)),
            ("trouble", .text(trouble(of: record, try key(BackendKey.trouble).string, error))),
            ("state", .text(node.map { "\($0.state)" })),
            ("online", node.map { .bool($0.isOnline) } ?? .null),
            ("mode", try key(BackendKey.mode)), ("format", .text(location.format)), ("path", .text(location.path)),
        ])
    }

    /// Where a disk's node says that its storage is.
    func location(of address: VBDAddress) throws(OperationError) -> Location {
        let path = address.backendPath(own: own)
        func key(_ name: String) throws(OperationError) -> String? {
            try store.valueIfReadable("\(path)/\(name)").map { String(decoding: $0, as: UTF8.self) }
        }
        // In params the format stands in front of the path.
        if StorageSource(kind: address.kind) == .params {
            return Location(format: nil, path: try key(BackendKey.params))
        }
        return Location(format: try key(BackendKey.format), path: try key(BackendKey.physicalDevicePath))
    }

    /// What is wrong with a disk, in one line; nil: nothing that anybody knows of. `told` is the worker's word while it
    /// serves, `error` the last error that somebody reported: it counts until a guest is served.
    private func trouble(of record: Record, _ told: String?, _ error: String?) -> String? {
        switch record.supervision.phase {
        case .waiting, .failed, .released: return describe(record)
        case .idle, .starting, .running, .foreign, .over:
            let isServed = record.supervision.node?.state == .connected
            let troubles = [
                silence(of: record), isForeign(record) ? foreignText(record) : nil,
                told.map { OperatorText.message($0) } ?? (isServed ? nil : error), imageProblem(of: record),
            ].compactMap { $0 }
            return troubles.isEmpty ? nil : troubles.joined(separator: "; ")
        }
    }

    private func foreignText(_ record: Record) -> String {
        let path = directory.workerLock(record.address)
        return
            "a process that xbbd does not know has the disk's lock; 'fuser \(path)' names it, and when it ends a worker starts"
    }

    /// The last lines that workers of a VBD logged, of the last `limit` bytes.
    func workerLines(_ address: VBDAddress, limit: Int) -> [LogHistory.Line] {
        LogFile.lines(directory.workerLog(address), limit: limit, about: (address.domain, address.device)).map {
            LogHistory.Line(time: $0.time, level: $0.level, text: "\(address): \($0.text)", vbd: $0.vbd)
        }
    }

    /// The newest of the lines, oldest first, also for a VBD that is gone.
    func events(_ all: [LogHistory.Line], of vbd: VBDReference?) -> [JSON] {
        var lines = all.filter { vbd == nil || $0.vbd?.domain == vbd?.domain && $0.vbd?.device == vbd?.device }
        lines.sort { $0.time < $1.time }
        return lines.suffix(Self.mostEvents).map { line in
            return .object([
                ("time", .decimal((line.time * 1000).rounded() / 1000)), ("level", .string(line.level.word)),
                ("domid", line.vbd.map { .integer($0.domain) } ?? .null),
                ("devid", line.vbd.map { .integer($0.device) } ?? .null), ("text", .string(line.text)),
            ])
        }
    }

    // MARK: Plugins

    private func dumpPlugins(for client: ControlServer.ClientID) {
        dumpClients.append(client)
        guard pluginDump == nil else { return }
        do throws(OperationError) {
            pluginDump = try PluginDump(arguments: settings.workers.dumpArguments, loop: loop) { [unowned self] in
                finishDump($0)
            }
        } catch {
            finishDump(.failure(ControlError("\(error)")))
        }
    }

    private func finishDump(_ result: Result<JSON, ControlError>) {
        let clients = dumpClients
        dumpClients = []
        pluginDump = nil
        for client in clients {
            switch result {
            case .success(let value): answer(.object([("plugins", value)]), to: client)
            case .failure(let error): refuse(error, to: client)
            }
        }
    }
}
