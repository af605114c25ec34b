// SPDX-License-Identifier: BSD-2-Clause
// What the XenStore tests share: a daemon in a directory of its own, its clients, and a core without a daemon.
import Base
import CLinux
import CXen
import Glibc
import Testing
import Xen

@testable import XenLoopback

/// Tests with a daemon come one after the other.
@Suite(.serialized) enum XenStoreTests {}

/// A daemon in a new directory, which goes with it.
final class TestDaemon {
    let directory: String
    let server: XenStoreServer

    init(limits: XenStoreLimits = XenStoreLimits()) throws {
        var template = Array("/tmp/xbb-xenstore-XXXXXX\0".utf8CString)
        directory = String(cString: try #require(mkdtemp(&template)))
        server = try XenStoreServer(directory: directory, limits: limits)
    }

    deinit {
        server.stop()
        rmdir(directory)
    }

    /// A client of libxenstore.
    func open(as domain: DomainID = 0) throws -> any XenStore {
        try LoopbackPlatform(directory: directory, domain: domain).openStore()
    }

    /// A client of libxenstore for what the Swift seam does not bring; in a process that has nothing else to do with
    /// XENSTORED_PATH.
    func openHandle(as domain: DomainID = 0) throws -> TestHandle {
        setenv("XENSTORED_PATH", server.socketPath(of: domain), 1)
        return TestHandle(try #require(xs_open(0)))
    }

    /// What the store says of itself: CONTROL with "check".
    func isConsistent() throws -> Bool {
        let client = try connect()
        client.send(XenStoreRequestType.control.rawValue, "check|")
        return client.receiveMessage().map { text($0.payload) } == "OK|"
    }

    /// A client that sends what it wants.
    func connect(as domain: DomainID = 0) throws -> TestSocket {
        let descriptor = clinux_unix_connect(server.socketPath(of: domain), Int32(SOCK_STREAM.rawValue))
        try #require(descriptor >= 0)
        return TestSocket(descriptor)
    }

    /// Runs one of Xen's tools; what it printed, stderr included, and its exit status.
    func run(_ command: String, as domain: DomainID = 0) throws -> (output: String, status: Int32) {
        let tool = try start(command, as: domain)
        var output = ""
        while let line = tool.line() { output += line }
        return (output, tool.end())
    }

    func start(_ command: String, as domain: DomainID = 0) throws -> TestTool {
        TestTool(try #require(popen("XENSTORED_PATH=\(server.socketPath(of: domain)) \(command) 2>&1", "r")))
    }
}

/// A tool that runs.
final class TestTool {
    private let stream: UnsafeMutablePointer<FILE>

    init(_ stream: UnsafeMutablePointer<FILE>) {
        self.stream = stream
    }

    /// The next line that it prints, nil at its end.
    func line() -> String? {
        var line: UnsafeMutablePointer<CChar>?
        var capacity = 0
        defer { free(line) }
        guard getline(&line, &capacity, stream) > 0, let line else { return nil }
        return String(cString: line)
    }

    func end() -> Int32 { pclose(stream) >> 8 }
}

/// A handle of libxenstore.
final class TestHandle {
    private let handle: OpaquePointer

    init(_ handle: OpaquePointer) {
        self.handle = handle
    }

    deinit {
        xs_close(handle)
    }

    /// 0, or the errno of a call that returned false.
    func code(_ call: (OpaquePointer) -> Bool) -> Int32 {
        withExtendedLifetime(self) { call(handle) ? 0 : errno }
    }

    /// What CONTROL answers, nil if it was refused.
    func control(_ command: String) -> String? {
        withExtendedLifetime(self) {
            let reply = xs_control_command(handle, command, nil, 0)
            defer { free(reply) }
            return reply.map { String(cString: $0) }
        }
    }
}

/// A bare connection.
final class TestSocket {
    let descriptor: Int32

    init(_ descriptor: Int32) {
        self.descriptor = descriptor
    }

    deinit {
        close(descriptor)
    }

    /// False if the other side is gone.
    @discardableResult
    func send(_ bytes: [UInt8]) -> Bool {
        var rest = bytes[...]
        while !rest.isEmpty {
            let count = rest.withUnsafeBytes { Glibc.send(descriptor, $0.baseAddress, $0.count, Int32(MSG_NOSIGNAL)) }
            if count < 0 && errno == EINTR { continue }
            if count <= 0 { return false }
            rest = rest.dropFirst(count)
        }
        return true
    }

    @discardableResult
    func send(_ type: UInt32, _ payload: String, transaction: UInt32 = 0, id: UInt32 = 7) -> Bool {
        send(message(type, payload, transaction: transaction, id: id))
    }

    /// Up to `count` bytes, none at the end of the connection. Blocks.
    func receive(_ count: Int) -> [UInt8] {
        var bytes = [UInt8](repeating: 0, count: count)
        let got = bytes.withUnsafeMutableBytes { recv(descriptor, $0.baseAddress, $0.count, 0) }
        return Array(bytes.prefix(max(got, 0)))
    }

    /// The next message, nil at the end of the connection. Blocks.
    func receiveMessage() -> XenStoreMessage? {
        var decoder = XenStoreMessageDecoder()
        guard let header = receiveAll(XenStoreMessage.headerByteCount) else { return nil }
        let length = header[12...].reversed().reduce(0) { $0 << 8 | Int($1) }
        guard let payload = receiveAll(length) else { return nil }
        decoder.append((header + payload)[...])
        return try? decoder.next()
    }

    private func receiveAll(_ count: Int) -> [UInt8]? {
        var bytes: [UInt8] = []
        while bytes.count < count {
            let more = receive(count - bytes.count)
            if more.isEmpty { return nil }
            bytes += more
        }
        return bytes
    }
}

/// The wire form of a request; "|" in the payload stands for NUL.
func message(_ type: UInt32, _ payload: String, transaction: UInt32 = 0, id: UInt32 = 7) -> [UInt8] {
    var bytes: [UInt8] = []
    XenStoreMessage(type: type, requestID: id, transactionID: transaction, payload: wire(payload))
        .serialize(into: &bytes)
    return bytes
}

/// Bytes of a text in which "|" stands for NUL.
func wire(_ text: String) -> [UInt8] {
    text.utf8.map { $0 == UInt8(ascii: "|") ? 0 : $0 }
}

/// A text in which "|" stands for NUL.
func text(_ payload: some Sequence<UInt8>) -> String {
    String(decoding: payload.map { $0 == 0 ? UInt8(ascii: "|") : $0 }, as: UTF8.self)
}

/// A core and its clients.
final class TestCore {
    var core: XenStoreCore
    private var events: [XenStoreConnectionID: [String]] = [:]

    init(limits: XenStoreLimits = XenStoreLimits(), domains: DomainID...) {
        core = XenStoreCore(limits: limits)
        for domain in domains { core.addDomain(domain) }
    }

    func connect(as domain: DomainID = 0) throws -> XenStoreConnectionID {
        let id = core.connect(as: domain)
        return try #require(id)
    }

    /// The answer of one request, with "|" for NUL; the name of the error if it was refused.
    func ask(
        _ id: XenStoreConnectionID, _ type: XenStoreRequestType, _ payload: String, transaction: UInt32 = 0
    ) -> String {
        core.receive(message(type.rawValue, payload, transaction: transaction)[...], from: id)
        let answers = drain(id)
        guard answers.count == 1, let answer = answers.first else { return "\(answers.count) answers" }
        guard answer.requestID == 7, answer.transactionID == transaction else { return "wrong answer" }
        if answer.type == XenStoreMessage.errorType { return text(answer.payload.dropLast()) }
        return answer.type == type.rawValue ? text(answer.payload) : "type \(answer.type)"
    }

    func start(_ id: XenStoreConnectionID) throws -> UInt32 {
        try #require(UInt32(ask(id, .transactionStart, "|").dropLast()))
    }

    /// Watch events since the last call, as "path|token|".
    func takeEvents(_ id: XenStoreConnectionID) -> [String] {
        _ = drain(id)
        return events.removeValue(forKey: id) ?? []
    }

    /// Takes all that waits for a client; events are kept aside.
    func drain(_ id: XenStoreConnectionID) -> [XenStoreMessage] {
        var decoder = XenStoreMessageDecoder()
        var answers: [XenStoreMessage] = []
        while true {
            let bytes = core.bytesToSend(to: id, about: 1000)
            if bytes.isEmpty { return answers }
            core.didSend(bytes.count, to: id)
            core.resume(id)
            decoder.append(bytes[...])
            while let message = try? decoder.next() {
                if message.type == XenStoreMessage.watchEventType {
                    events[id, default: []].append(text(message.payload))
                } else {
                    answers.append(message)
                }
            }
        }
    }
}

extension XenStore {
    /// The next watch event; fails after a long time without one.
    func waitForEvent() throws -> XenStoreWatchEvent {
        while true {
            if let event = try nextWatchEvent() { return event }
            var waiting = pollfd(fd: watchFileDescriptor, events: Int16(POLLIN), revents: 0)
            try #require(poll(&waiting, 1, 30_000) == 1, "no watch event")
        }
    }

    /// The errno of what fails, 0 for what does not.
    func code(_ body: (any XenStore) throws -> Void) -> Int32 {
        do {
            try body(self)
            return 0
        } catch let error as OperationError {
            return error.code
        } catch {
            return -1
        }
    }
}

/// A thread that runs a closure.
final class TestThread {
    private final class Body {
        let run: @Sendable () -> Void

        init(_ run: @escaping @Sendable () -> Void) {
            self.run = run
        }
    }

    private var thread = pthread_t()

    init(_ run: @escaping @Sendable () -> Void) {
        pthread_create(
            &thread, nil,
            { argument in
                if let argument { Unmanaged<Body>.fromOpaque(argument).takeRetainedValue().run() }
                return nil
            }, Unmanaged.passRetained(Body(run)).toOpaque())
    }

    func join() { pthread_join(thread, nil) }
}
