// SPDX-License-Identifier: BSD-2-Clause
// The client's end of xbbd's socket.
import Base
import CLinux
import Glibc
import Settings
import Support

/// A connection to xbbd. Calls block until the answer arrives. Use from one thread.
public final class ControlClient {
    /// The default path of xbbd's socket.
    public static let defaultSocket = SettingsSchema.usualRunDirectory + "/xbbd.sock"

    private let path: String
    private let timeoutSeconds: Int
    private var socket: Descriptor
    /// The connection has had an answer: xbbd may have ended it since, because it was silent for too long.
    private var isUsed = false
    private var input = LineBuffer(limit: 16 << 20)

    /// Connects. Throws `.unreachable`, with advice.
    public init(path: String, timeoutSeconds: Int = 20) throws(ControlError) {
        self.path = path
        self.timeoutSeconds = timeoutSeconds
        socket = try Self.connect(path, timeoutSeconds)
    }

    private static func connect(_ path: String, _ timeoutSeconds: Int) throws(ControlError) -> Descriptor {
        let raw = unsafe clinux_unix_connect(path, Int32(SOCK_STREAM.rawValue))
        if raw < 0 {
            let code = errno
            let hint =
                switch code {
                case ENOENT, ECONNREFUSED: "is xbbd running? --socket names another socket"
                case EACCES: "only root may"
                default: "see xbbctl(8)"
                }
            throw ControlError("cannot reach xbbd at \(path): \(errnoText(code)); \(hint)", status: .unreachable)
        }
        let socket = Descriptor(owning: raw)
        var limit = timeval(tv_sec: timeoutSeconds, tv_usec: 0)
        let size = socklen_t(MemoryLayout<timeval>.size)
        unsafe setsockopt(raw, SOL_SOCKET, SO_RCVTIMEO, &limit, size)
        unsafe setsockopt(raw, SOL_SOCKET, SO_SNDTIMEO, &limit, size)
        return socket
    }

    /// xbbd has ended the connection: between two requests nothing else makes it readable.
    private var hasHungUp: Bool {
        var entry = pollfd(fd: socket.raw, events: Int16(POLLIN), revents: 0)
        return unsafe poll(&entry, 1, 0) == 1
    }

    /// Sends a request and returns the answer. Throws `.unreachable` if there is none, and xbbd's own text if it
    /// answers with an error.
    public func call(_ request: ControlRequest) throws(ControlError) -> ControlAnswer {
        if isUsed, hasHungUp {
            socket = try Self.connect(path, timeoutSeconds)
            input = LineBuffer(limit: 16 << 20)
        }
        isUsed = true
        var left = [UInt8]((request.line + "\n").utf8)[...]
        while !left.isEmpty {
            guard let count = socket.sendAvailable(left), count > 0 else {
                throw ControlError("xbbd at \(path) does not listen", status: .unreachable)
            }
            left = left.dropFirst(count)
        }
        while true {
            if let line = input.next() { return try ControlAnswer(line: line) }
            guard !input.isOverlong else { throw ControlError("the answer of xbbd is too long", status: .unreachable) }
            switch socket.readAvailable() {
            case .bytes(let bytes): input.append(bytes)
            case .wouldBlock:
                if errno == EINTR { continue }
                throw ControlError("xbbd at \(path) does not answer", status: .unreachable)
            case .ended: throw ControlError("xbbd at \(path) closed the connection", status: .unreachable)
            }
        }
    }
}

/// An answer of xbbd that is not an error.
public struct ControlAnswer: Sendable {
    /// The line as it arrived.
    public let text: String
    /// The parsed value.
    public let value: JSON

    init(line: [UInt8]) throws(ControlError) {
        text = String(decoding: line, as: UTF8.self)
        do throws(JSONError) {
            value = try JSON(parsing: line)
        } catch {
            throw ControlError("the answer of xbbd is \(error)")
        }
        if let problem = value["error"]?.string {
            let status = value["status"]?.unsigned.flatMap { Int32(exactly: $0) }.flatMap {
                ControlStatus(rawValue: $0)
            }
            throw ControlError(problem, status: status ?? .failed)
        }
    }
}
