// SPDX-License-Identifier: BSD-2-Clause
// xbbd's side of an upgrade: a new worker prepares itself, is called or refused, and fails early, late or never.
import PluginHost
import CLinux
import Glibc
import Testing
import Xen

@testable import XBBControl
import Support

@Suite(.serialized) struct UpgradeTests {
    private let vbd: VBDReference

    init() throws { vbd = try #require(VBDReference(parsing: "vbd/1/51712")) }

    /// A VBD with a worker that answers.
    private func serving() throws -> DaemonLab {
        let lab = try DaemonLab()
        _ = try lab.makeNode(1, 51712)
        try lab.startDaemon()
        try eventually("it serves") { (try? lab.ask(.show(vbd))["arguments"]) != nil }
        return lab
    }

    private func process(_ lab: DaemonLab) throws -> Int32? {
        try lab.row("vbd/1/51712")?["pid"]?.unsigned.map { Int32(clamping: $0) }
    }

    /// The worker's own arguments, from its answer.
    private func arguments(_ lab: DaemonLab) -> [String] {
        ((try? lab.ask(.show(vbd))["arguments"]?.elements) ?? []).compactMap(\.string)
    }

    @Test("the new worker is prepared before the old one is told") func goesOver() throws {
        let lab = try serving()
        let old = try #require(try process(lab))
        let (text, exit) = try lab.control(["upgrade", "1", "xvda"])
        #expect(exit == .clean && text.contains("worker \(old) handed over to "), "\(text)")
        #expect(ProcessIdentity(running: old) == nil)
        #expect(arguments(lab).contains("--standby"))
        // The next one after a kill is an ordinary one again.
        let new = try #require(try process(lab))
        kill(new, SIGKILL)
        try eventually("another worker") { try process(lab).map { $0 != new } ?? false && !arguments(lab).isEmpty }
        #expect(!arguments(lab).contains("--standby"))
    }

    @Test("a new worker that does not get ready leaves the old one as it is", arguments: ["exit 1", "crash", "exit 2"])
    func refused(_ word: String) throws {
        let lab = try serving()
        let old = try #require(try process(lab))
        lab.behave("vbd-1-51712", word)
        let (text, exit) = try lab.control(["upgrade", "1", "xvda"])
        #expect(exit == .failed(1))
        #expect(text.contains("worker \(old) serves on, the new one cannot take over: "), "\(text)")
        #expect(try process(lab) == old && !arguments(lab).isEmpty)
        let row = try #require(try lab.row("vbd/1/51712"))
        #expect(row["worker"]?.string == "running" && row["went_back"] == .bool(true))
        #expect(row["last_failure"]?.string == nil, "nobody failed who served")
        // The program that serves is also the one that comes after it, until an upgrade works.
        lab.behave("vbd-1-51712", "serve")
        kill(old, SIGKILL)
        try eventually("its program goes on") { arguments(lab).first?.hasPrefix("/proc/") == true }
        #expect(try lab.control(["upgrade", "1", "xvda"]).exit == .clean)
        #expect(arguments(lab).first?.hasSuffix("/fake-worker") == true)
        #expect(try lab.row("vbd/1/51712")?["refused"]?.string == nil)
    }

    @Test("a new worker that hangs is given up, and the old one serves on") func hangs() throws {
        let lab = try serving()
        let old = try #require(try process(lab))
        lab.behave("vbd-1-51712", "hang")
        let (text, exit) = try lab.control(["upgrade", "1", "xvda", "--timeout", "60"])
        #expect(exit == .failed(1) && text.contains("serves on") && text.contains("was not ready within"), "\(text)")
        #expect(try process(lab) == old && !arguments(lab).isEmpty)
        try eventually("the other one is gone") {
            try ProcessIdentity(running: #require(lab.worker("vbd-1-51712"))) == nil
        }
    }

    @Test("where the new worker fails after it took over, the program of the old one comes back") func goesBack() throws
    {
        let lab = try serving()
        lab.behave("vbd-1-51712", "late 1")
        _ = try lab.ask(.upgrade(vbd))
        try eventually("the new one fails") { try lab.row("vbd/1/51712")?["went_back"] == .bool(true) }
        lab.behave("vbd-1-51712", "serve")
        try eventually("the old one serves") { arguments(lab).first?.hasPrefix("/proc/") == true }
        _ = try lab.ask(.upgrade(vbd))
        try eventually("the installed one again") { arguments(lab).first?.hasSuffix("/fake-worker") == true }
    }

    @Test("a worker that is killed while its successor prepares is followed as always") func killedMeanwhile() throws {
        let lab = try serving()
        let old = try #require(try process(lab))
        lab.behave("vbd-1-51712", "hang")
        _ = try lab.ask(.upgrade(vbd))
        try eventually("the new one is there") { lab.starts.count == 2 }
        let hanging = try #require(lab.worker("vbd-1-51712"))
        lab.behave("vbd-1-51712", "serve")
        kill(old, SIGKILL)
        try eventually("another one serves") {
            try process(lab).map { $0 != old && $0 != hanging } ?? false && !arguments(lab).isEmpty
        }
        try eventually("who hung is gone") { ProcessIdentity(running: hanging) == nil }
        #expect(lab.starts.count == 3)
    }

    @Test("xbbd may die while a new worker prepares: the next one finds the old worker") func xbbdDies() throws {
        let lab = try serving()
        let old = try #require(try process(lab))
        lab.behave("vbd-1-51712", "hang")
        _ = try lab.ask(.upgrade(vbd))
        try eventually("the new one is there") { lab.starts.count == 2 }
        lab.behave("vbd-1-51712", "serve")
        lab.killDaemons()
        try lab.startDaemon()
        #expect(try process(lab) == old)
        #expect(try lab.row("vbd/1/51712")?["worker"]?.string == "adopted")
        // An adopted worker hands over like one of its own.
        #expect(try lab.control(["upgrade", "1", "xvda"]).exit == .clean)
        #expect(try process(lab) != old)
    }

    @Test("a VBD that goes while its new worker prepares leaves nothing") func nodeGoes() throws {
        let lab = try serving()
        lab.behave("vbd-1-51712", "hang")
        _ = try lab.ask(.upgrade(vbd))
        try eventually("the new one is there") { lab.starts.count == 2 }
        let hanging = try #require(lab.worker("vbd-1-51712"))
        try lab.store.remove("/local/domain/0/backend/vbd/1/51712", in: .none)
        try eventually("it is forgotten") { try lab.row("vbd/1/51712") == nil }
        try eventually("who hung is gone") { ProcessIdentity(running: hanging) == nil }
        #expect(access("\(lab.run)/vbd-vbd-1-51712.lock", F_OK) != 0)
    }

    @Test("one that stands by and was stopped is passed over") func stoppedStandby() throws {
        let lab = try serving()
        try lab.store.write("/local/domain/0/backend/vbd/1/51712/state", "4")
        try eventually("one stands by") { lab.starts.count == 2 }
        let (old, next) = (try #require(try process(lab)), try #require(lab.worker("vbd-1-51712")))
        usleep(300_000)
        kill(next, SIGSTOP)
        kill(old, SIGKILL)
        try eventually("another one serves") {
            try process(lab).map { $0 != old && $0 != next } ?? false && !arguments(lab).isEmpty
        }
        try eventually("it is not left there") { ProcessIdentity(running: next) == nil }
    }

    @Test("beside a worker whose guest is connected another one stands by") func standsBy() throws {
        let lab = try serving()
        let old = try #require(try process(lab))
        try lab.store.write("/local/domain/0/backend/vbd/1/51712/state", "4")
        try eventually("one stands by") { lab.starts.count == 2 }
        let next = try #require(lab.worker("vbd-1-51712"))
        #expect(try process(lab) == old)
        // It is followed by another one that stands by; in the meantime by one that is started then.
        usleep(300_000)
        kill(old, SIGKILL)
        try eventually("it takes over") { try process(lab) == next && !arguments(lab).isEmpty }
        #expect(arguments(lab).contains("--standby"))
        try eventually("another one stands by") { lab.starts.count == 3 }
        #expect(try process(lab) == next)
        // One that dies itself harms nobody.
        let third = try #require(lab.worker("vbd-1-51712"))
        kill(third, SIGKILL)
        try eventually("its end is known") { ProcessIdentity(running: third) == nil }
        kill(next, SIGKILL)
        try eventually("a new one") { try process(lab).map { $0 != next } ?? false && !arguments(lab).isEmpty }
        #expect(!arguments(lab).contains("--standby"))
    }
}
