// SPDX-License-Identifier: BSD-2-Clause
// What all workers are asked at once, beside workers that misbehave.
import Base
import CLinux
import Glibc
import Support
import TestSupport
import Testing

@testable import XBBControl

@Suite struct GatheringTests {
    /// A connection to xbbd that waits for its answers.
    private func client(_ lab: DaemonLab) throws -> Descriptor {
        let socket = try Descriptor(clinux_unix_connect(lab.socket, Int32(SOCK_STREAM.rawValue)), "connect")
        var limit = timeval(tv_sec: 60, tv_usec: 0)
        setsockopt(socket.raw, SOL_SOCKET, SO_RCVTIMEO, &limit, socklen_t(MemoryLayout<timeval>.size))
        return socket
    }

    private func answer(_ client: Descriptor) throws -> JSON {
        var bytes: [UInt8] = []
        while bytes.last != UInt8(ascii: "\n"), case .bytes(let more) = client.readAvailable() { bytes += more }
        return try JSON(parsing: bytes)
    }

    /// The devices whose workers have answered.
    private func answered(_ metrics: JSON) -> [UInt64] {
        (metrics["vbds"]?.elements ?? []).filter { $0["counted"]?["request"]?.string == "metrics last" }
            .compactMap { $0["devid"]?.unsigned }
    }

    @Test("workers that never end, answer nothing or nonsense, or are stopped hold up neither the others nor xbbd")
    func hostile() throws {
        let lab = try DaemonLab()
        let words = ["serve", "trickle", "endless", "mute", "garbage", "serve", "serve"]
        let devices = words.indices.map { UInt32(51712 + 16 * $0) }
        for (device, word) in zip(devices, words) {
            lab.behave("vbd-1-\(device)", word)
            _ = try lab.makeNode(1, device)
        }
        try lab.startDaemon()
        try eventually("all are served") {
            try lab.ask(.list)["vbds"]?.elements.filter { $0["state"]?.string == "initWait" }.count == words.count
        }
        let stopped = try #require(lab.worker("vbd-1-\(devices[6])"))
        kill(stopped, SIGSTOP)
        // More than are asked at once, and some of them go before they are answered.
        var clients = try (0..<12).map { _ in try client(lab) }
        for client in clients { _ = client.sendAvailable(Array("\(ControlRequest.metrics.line)\n".utf8)[...]) }
        #expect(throws: Never.self) { try lab.ask(.ping) }
        clients.removeFirst(4)
        for client in clients { #expect(answered(try answer(client)) == [51712, 51792]) }
        // Whoever is told of all workers is told of the rest, too.
        #expect(try lab.ask(.top)["vbds"]?.elements.filter { $0["stats"] != .null }.count == 2)
        kill(stopped, SIGCONT)
        try eventually("it answers again") { answered(try lab.ask(.metrics)) == [51712, 51792, 51808] }
    }
}
