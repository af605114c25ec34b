// SPDX-License-Identifier: BSD-2-Clause
// Metrics over HTTP, on sockets that the service manager made. One thread; whatever scrapers do, memory, descriptors and time
// of each are bounded, and xbbd is asked at most once in a second.
public import Base
import CLinux
import Glibc
public import Support

/// Answers scrapers until none has come for a while.
public final class MetricsServer {
    /// The most scrapers at once; one more takes the place of the one that came first.
    static let clientLimit = 128
    /// How long a scraper may take for everything, in ns.
    static let timeLimit: UInt64 = 10 * RestartPolicy.second
    /// How long an answer is given again, in ns.
    static let freshness: UInt64 = RestartPolicy.second
    /// What the kernel keeps for a scraper that does not read, in bytes.
    private static let sendBuffer: Int32 = 128 << 10

    private struct Client {
        let socket: Descriptor
        let deadline: UInt64
        var input: [UInt8] = []
        /// Nil: the request is not complete.
        var output: ArraySlice<UInt8>?
    }

    private let loop: EventLoop
    private let listeners: [Descriptor]
    private let idleLimit: UInt64
    private let metrics: () throws(ControlError) -> JSON
    private var clients: [UInt64: Client] = [:]
    private var lastClient: UInt64 = 0
    private var lastActive = clinux_monotonic_ns()
    private var answers: [MetricsFormat: (time: UInt64, answer: [UInt8])] = [:]

    /// Serves the listening sockets. `metrics` asks xbbd; it may wait for some seconds, in which no scraper is served.
    public init(
        listeners: [Descriptor], idleSeconds: UInt64 = 60, metrics: @escaping () throws(ControlError) -> JSON
    ) throws(ControlError) {
        self.listeners = listeners
        self.metrics = metrics
        idleLimit = idleSeconds &* RestartPolicy.second
        do throws(OperationError) {
            loop = try EventLoop()
            for listener in listeners {
                _ = clinux_fcntl_int(listener.raw, F_SETFL, O_NONBLOCK)
                var size = Self.sendBuffer
                // Sockets that are accepted have it too.
                unsafe setsockopt(
                    listener.raw, SOL_SOCKET, SO_SNDBUF, &size, socklen_t(MemoryLayout<Int32>.size))
                try loop.add(listener.raw) { [unowned self, raw = listener.raw] in accept(raw) }
            }
        } catch {
            throw ControlError("\(error)")
        }
    }

    /// Returns when no scraper has come for a while.
    public func run() throws(ControlError) {
        do throws(OperationError) {
            while true {
                let idleEnd = lastActive &+ idleLimit
                try loop.turn(until: clients.values.map(\.deadline).min() ?? idleEnd)
                let now = clinux_monotonic_ns()
                for (number, client) in clients where client.deadline <= now { drop(number) }
                if clients.isEmpty && now >= lastActive &+ idleLimit { return }
            }
        } catch {
            throw ControlError("\(error)")
        }
    }

    private func accept(_ listener: Int32) {
        let raw = clinux_accept(listener)
        guard raw >= 0 else { return }
        let socket = Descriptor(owning: raw)
        if clients.count >= Self.clientLimit, let oldest = clients.keys.min() { drop(oldest) }
        lastClient += 1
        lastActive = clinux_monotonic_ns()
        do throws(OperationError) {
            try loop.add(raw) { [unowned self, number = lastClient] in ready(number) }
            clients[lastClient] = Client(socket: socket, deadline: lastActive &+ Self.timeLimit)
        } catch {
            return  // no memory in the kernel: the scraper sees its connection closed
        }
    }

    private func drop(_ number: UInt64) {
        guard let client = clients.removeValue(forKey: number) else { return }
        loop.remove(client.socket.raw)
        lastActive = clinux_monotonic_ns()
    }

    private func ready(_ number: UInt64) {
        guard let client = clients[number] else { return }
        guard client.output == nil else { return send(number) }
        switch client.socket.readAvailable(limit: ScrapeRequest.longest) {
        case .wouldBlock: return
        case .ended: return drop(number)
        case .bytes(let bytes): clients[number]?.input += bytes
        }
        guard let request = ScrapeRequest(clients[number]?.input ?? []) else { return }
        clients[number]?.input = []
        clients[number]?.output = answer(request)[...]
        loop.change(client.socket.raw, EventLoop.writable)
        send(number)
    }

    private func send(_ number: UInt64) {
        guard let client = clients[number], let output = client.output else { return }
        // A part that the socket may take, as the whole would be copied for each try.
        guard let count = client.socket.sendAvailable(output.prefix(Int(Self.sendBuffer))) else { return drop(number) }
        clients[number]?.output = output.dropFirst(count)
        if count == output.count {
            shutdown(client.socket.raw, Int32(SHUT_WR))
            drop(number)
        }
    }

    private func answer(_ request: ScrapeRequest) -> [UInt8] {
        switch request {
        case .refused(let refusal): return ScrapeRequest.answer(refusal)
        case .metrics(let format, let isHead):
            let answer = answer(format)
            guard isHead else { return answer }
            let end = answer.indices.first { answer[$0...].starts(with: "\r\n\r\n".utf8) }
            return Array(answer[..<((end ?? answer.count) + 4)])
        }
    }

    /// The metrics of a moment ago, the same for all that ask within it.
    private func answer(_ format: MetricsFormat) -> [UInt8] {
        let now = clinux_monotonic_ns()
        if let known = answers[format], now &- known.time < Self.freshness { return known.answer }
        let answer: [UInt8]
        do throws(ControlError) {
            let text = MetricsReport.text(try metrics(), format)
            answer = ScrapeRequest.answer("200 OK", format.contentType, text)
        } catch {
            answer = ScrapeRequest.answer(.unavailable, error.description)
        }
        // The time that it took is no reason to ask again.
        answers[format] = (clinux_monotonic_ns(), answer)
        return answer
    }
}
