// SPDX-License-Identifier: BSD-2-Clause
// `xbbctl events` and `xbbctl wait` with the real xbbd.
import Base
import CLinux
import Glibc
import Support
import Testing

@testable import XBBControl

@Suite struct EventLogTests {
    private func events(_ lab: DaemonLab, _ words: [String] = []) throws -> JSON {
        let (text, exit) = try lab.control(["events", "--json"] + words)
        #expect(exit == .clean, "\(text)")
        return try JSON(parsing: text)
    }

    private func names(_ answer: JSON) -> [String] {
        (answer["events"]?.elements ?? []).map { "\($0["vbd"]?.string ?? "") \($0["event"]?.string ?? "")" }
    }

    private func setState(_ state: String, _ address: VBDAddress, _ lab: DaemonLab) throws {
        try lab.store.write("\(address.backendPath(own: 0))/state", state, in: .none)
    }

    /// A disk in state 4.
    private func connected(_ lab: DaemonLab, _ device: UInt32 = 51712) throws -> VBDAddress {
        let address = try lab.makeNode(1, device)
        try eventually("it is taken") { try lab.row("\(address)")?["state"]?.string == "initWait" }
        try setState("4", address, lab)
        try eventually("it is connected") { try lab.row("\(address)")?["state"]?.string == "connected" }
        return address
    }

    @Test("a disk's life has its events, also across xbbds, with numbers that go on") func life() throws {
        let lab = try DaemonLab()
        try lab.startDaemon()
        let disk = try connected(lab)
        #expect(names(try events(lab)) == ["\(disk) attached", "\(disk) connected"])
        kill(try #require(lab.worker("vbd-1-51712")), SIGKILL)
        try eventually("another worker is told") {
            names(try events(lab, ["--since", "3"])) == ["\(disk) worker-replaced"]
        }
        let replaced = try events(lab, ["--since", "3"])
        #expect(replaced["events"]?.elements.first?["reason"]?.string?.contains("signal 9") == true, "\(replaced)")
        lab.killDaemons()
        try lab.startDaemon()
        let again = try events(lab, ["--since", "1"])
        #expect(again["epoch"] == replaced["epoch"] && names(again).count == 3 && again["gap"] == .bool(false))
        // What happens while no xbbd is there is told by the next one.
        lab.killDaemons()
        try lab.store.remove(disk.backendPath(own: 0), in: .none)
        try eventually("the worker has ended") { !FileLock.isHeld(lab.run + "/vbd-vbd-1-51712.lock") }
        try lab.startDaemon()
        #expect(names(try events(lab, ["--since", "4"])) == ["\(disk) detached"])
        #expect(names(try events(lab, ["1", "xvdb", "--since", "1"])) == [])
        let text = try lab.control(["events", "1", "xvda"]).text
        #expect(text.contains("vbd/1/51712 worker-replaced") && text.split(separator: "\n").count == 4, "\(text)")
    }

    @Test("a history that cannot be written is numbered anew, which is told") func anotherEpoch() throws {
        let lab = try DaemonLab()
        try lab.startDaemon()
        _ = try connected(lab)
        let before = try events(lab)
        let cursor = "\(before["epoch"]?.string ?? ""):\(before["next"]?.unsigned ?? 0)"
        #expect(try events(lab, ["--since", cursor])["gap"] == .bool(false))
        lab.killDaemons()
        unlink(lab.run + "/events")
        try lab.startDaemon()
        let after = try events(lab, ["--since", cursor])
        #expect(after["gap"] == .bool(true) && after["dropped"] == .null && after["epoch"] != before["epoch"])
        #expect(names(after) == ["vbd/1/51712 attached", "vbd/1/51712 connected"])
    }

    @Test("followers see events as they come, across a restart") func following() throws {
        let lab = try DaemonLab()
        try lab.startDaemon()
        let disk = try connected(lab)
        let path = lab.root + "/followed"
        let follower = try Program([
            "/bin/sh", "-c",
            "exec \(DaemonLab.products)/xbbctl events --follow --json --since now --socket \(lab.socket) >\(path)",
        ])
        func lines() throws -> [JSON] {
            try String(decoding: SmallFile.contents(path, limit: 1 << 16) ?? [], as: UTF8.self).split(separator: "\n")
                .map { try JSON(parsing: String($0)) }
        }
        // It must have begun before something happens.
        let vbd = try #require(VBDReference(parsing: "\(disk)"))
        var states = ["5", "4"].makeIterator()
        try eventually("the follower sees something") {
            try setState(states.next() ?? "5", disk, lab)
            usleep(50_000)
            if let next = states.next() { try setState(next, disk, lab) } else { states = ["5", "4"].makeIterator() }
            return try !lines().isEmpty
        }
        lab.killDaemons()
        try lab.startDaemon()
        try lab.store.remove(disk.backendPath(own: 0), in: .none)
        try eventually("it is told of the end") { try lines().last?["event"]?.string == "detached" }
        let numbers = try lines().compactMap { $0["seq"]?.unsigned }
        #expect(numbers.count == (try lines().count), "no gap")
        #expect(numbers == Array((numbers.first ?? 0)...(numbers.last ?? 0)))
        #expect(try lab.ask(.state(vbd))["attached"] == .bool(false))
        follower.process.send(SIGTERM)
    }

    @Test("those who wait leave room for others, and one too many is told so") func manyFollowers() throws {
        let lab = try DaemonLab()
        let daemon = try lab.startDaemon()
        let next = try lab.ask(.events(nil, waits: false))["next"]?.unsigned ?? 0
        // Those who gave up take no place.
        let before = DirectoryListing.names(in: "/proc/\(daemon.process.process)/fd").count
        for _ in 0..<40 {
            let client = try Descriptor(clinux_unix_connect(lab.socket, Int32(SOCK_STREAM.rawValue)), "connect")
            _ = client.sendAvailable(Array("events \(next) wait\n".utf8)[...])
        }
        try eventually("xbbd has seen that they are gone") {
            DirectoryListing.names(in: "/proc/\(daemon.process.process)/fd").count <= before
        }
        let waiting = try (0..<40).map { _ in
            let client = try Descriptor(clinux_unix_connect(lab.socket, Int32(SOCK_STREAM.rawValue)), "connect")
            _ = client.sendAvailable(Array("events \(next) wait\n".utf8)[...])
            return client
        }
        #expect(try lab.control(["list"]).exit == .clean)
        let (text, exit) = try lab.control(["events", "--since", "\(next)", "--follow"])
        #expect(exit == WorkerExit(code: 75, signal: 0) && text == "", "\(text)")
        // All of those that wait are told.
        _ = try lab.makeNode(1, 51712)
        try eventually("it is taken") { try lab.row("vbd/1/51712")?["state"]?.string == "initWait" }
        try lab.store.write("/local/domain/0/backend/vbd/1/51712/state", "4", in: .none)
        var told = 0
        for client in waiting {
            if case .bytes(let bytes) = client.readAvailable(),
                String(decoding: bytes, as: UTF8.self).contains("attached")
            {
                told += 1
            }
        }
        #expect(told == 16)
    }

    @Test("a guest that connects all the time makes a bounded number of events, and the last state is told")
    func storm() throws {
        let lab = try DaemonLab()
        try lab.startDaemon()
        let disk = try connected(lab)
        for _ in 0..<300 {
            try setState("5", disk, lab)
            try setState("4", disk, lab)
            _ = try lab.ask(.ping)
        }
        try setState("6", disk, lab)
        try eventually("the last state is told") {
            try lab.ask(.state(try #require(VBDReference(parsing: "\(disk)"))))["connected"] == .bool(false)
        }
        let count = names(try events(lab)).count
        #expect(count < 200, "\(count) events")
    }

    @Test("waiting for what is, what comes, and what does not come") func waiting() throws {
        let lab = try DaemonLab()
        try lab.startDaemon()
        #expect(try lab.control(["wait", "1", "xvda", "detached"]).exit == .clean)
        let (text, exit) = try lab.control(["wait", "1", "xvda", "connected", "--timeout", "0.2", "--json"])
        #expect(
            exit == WorkerExit(code: 75, signal: 0) && text.contains("not connected after 0.2 s: it is detached"),
            "\(text)")
        #expect(try lab.control(["wait", "1", "xvda", "mounted"]).exit == .failed(64))
        let waiter = try Program([
            DaemonLab.products + "/xbbctl", "wait", "1", "xvda", "connected", "--timeout", "60", "--socket", lab.socket,
            "--loopback", lab.root + "/xen",
        ])
        let disk = try connected(lab)
        #expect(waiter.wait() == .clean)
        for state in ["attached", "connected", "running"] {
            #expect(try lab.control(["wait", "1", "xvda", state]).exit == .clean, "\(state)")
        }
        let gone = try Program([
            DaemonLab.products + "/xbbctl", "wait", "1", "xvda", "detached", "--timeout", "60", "--socket", lab.socket,
            "--loopback", lab.root + "/xen",
        ])
        try lab.store.remove(disk.backendPath(own: 0), in: .none)
        #expect(gone.wait() == .clean)
    }
}
