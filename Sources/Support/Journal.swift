// SPDX-License-Identifier: BSD-2-Clause
// The journal's native protocol: each line is a datagram of fields, so that the lines of one disk can be found.
import CLinux
import Glibc

/// The socket of systemd's journal. systemd.io/JOURNAL_NATIVE_PROTOCOL.
public final class Journal: Sendable {
    private let socket: Int32

    /// The journal, if this process's standard error goes there; looked up once.
    public static let ofStandardError = Journal(
        path: "/run/systemd/journal/socket", descriptor: 2,
        stream: unsafe getenv("JOURNAL_STREAM").map { unsafe String(cString: $0) })

    /// The journal at `path`, if `descriptor` is the stream `stream` ("DEVICE:INODE", as in $JOURNAL_STREAM); else nil.
    ///
    /// The variable is also set for a service whose standard error was redirected: its lines belong where it was
    /// redirected to.
    public init?(path: String, descriptor: Int32, stream: String?) {
        var status = stat()
        guard let stream, unsafe fstat(descriptor, &status) == 0, stream == "\(status.st_dev):\(status.st_ino)" else {
            return nil
        }
        let raw = unsafe clinux_unix_connect(path, Int32(SOCK_DGRAM.rawValue | SOCK_NONBLOCK.rawValue))
        if raw < 0 { return nil }
        socket = raw
    }

    deinit {
        close(socket)
    }

    /// What became of a line.
    enum Outcome {
        case sent
        /// The journal has no room: its reader stalls.
        case busy
        /// There is no journal any more, or it does not take this.
        case failed
    }

    /// Sends one line with its fields. Never waits.
    func send(_ line: LogLine) -> Outcome {
        let parts = line.name.split(separator: " ", maxSplits: 1)
        let about = parts.count == 2 ? "\(parts[1]): " : ""
        var text = "PRIORITY=\(line.level.rawValue)\nSYSLOG_IDENTIFIER=\(parts.first ?? "xbb")\n"
        text += "MESSAGE=\(about)\(line.message)\n"
        for field in line.fields { text += field + "\n" }
        let bytes = [UInt8](text.utf8)
        let sent = unsafe bytes.withUnsafeBytes {
            unsafe Glibc.send(socket, $0.baseAddress, $0.count, Int32(MSG_NOSIGNAL | MSG_DONTWAIT))
        }
        if sent == bytes.count { return .sent }
        return sent < 0 && (errno == EAGAIN || errno == ENOBUFS) ? .busy : .failed
    }
}
