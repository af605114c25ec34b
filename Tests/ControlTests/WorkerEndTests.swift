// SPDX-License-Identifier: BSD-2-Clause
// Workers that end as they should not, or do not end.
import Base
import CLinux
import Glibc
import Support
import Testing
import Xen

@testable import XBBControl

@Suite struct WorkerEndTests {
    @Test("a worker that does not end when its node is gone is killed") func immortal() throws {
        let lab = try DaemonLab()
        lab.behave("vbd-1-51712", "immortal")
        let address = try lab.makeNode(1, 51712)
        try lab.startDaemon(["--stall-time", "1"])
        try eventually("it is taken") { try lab.row("vbd/1/51712")?["state"]?.string == "initWait" }
        let worker = try #require(lab.worker("vbd-1-51712"))
        try lab.store.remove(address.backendPath(own: 0), in: .none)
        try eventually("it is forgotten") { try lab.row("vbd/1/51712") == nil }
        #expect(kill(worker, 0) != 0)
        let events = try lab.control(["log"]).text
        #expect(events.contains("did not end within 7 s after its node was removed, and is killed"), "\(events)")
    }

    @Test("a worker that exits with status 0 while a guest is connected is told as what it is") func deserted() throws {
        let lab = try DaemonLab()
        lab.behave("vbd-1-51712", "exit 0")
        let address = try lab.makeNode(1, 51712)
        try lab.store.write("\(address.backendPath(own: 0))/state", "4")
        try lab.startDaemon()
        try eventually("it is told") {
            try lab.row("vbd/1/51712")?["last_failure"]?.string?.contains("called exit()") == true
        }
        #expect(WorkerExit.deserted.asPredecessor.hasPrefix("crashed:"))
    }

    @Test("what does not end is in the list") func stalled() throws {
        let lab = try DaemonLab()
        let address = try lab.makeNode(1, 51712)
        try lab.startDaemon()
        try eventually("it is taken") { try lab.row("vbd/1/51712")?["state"]?.string == "initWait" }
        try lab.store.write("\(address.backendPath(own: 0))/xbb-stall", "plugin 'x' does not return from open()")
        #expect(try lab.row("vbd/1/51712")?["stalled"]?.string == "plugin 'x' does not return from open()")
        #expect(try lab.control(["list"]).text.contains(" stalled "))
    }
}
