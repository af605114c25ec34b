// SPDX-License-Identifier: BSD-2-Clause
// Which disks xbbd takes, and which it leaves to other backends.
import PluginHost
import CLinux
import Glibc
import Testing
import Xen

@testable import XBBControl
import Support

@Suite struct DiskClaimTests {
    @Test("the script says whose disk it is, in backend/vbd only") func rule() throws {
        var claim = DiskClaim(loopback: "/nonexistent")
        for script in ["/etc/xen/scripts/block-xbb", "block-xbb", "/usr/local/etc/xen/scripts/block-xbb"] {
            #expect(claim.objection(kind: "vbd", script: script) == nil)
        }
        for script in [
            nil, "", "/", "/etc/xen/scripts/block", "/etc/xen/scripts/block-xbb-not", "/etc/xen/scripts/block-xbb/x",
        ] {
            let objection = try #require(claim.objection(kind: "vbd", script: script))
            #expect(objection.contains("not block-xbb; --any-script takes it"))
            #expect(objection.contains(script.map { "'\($0)'" } ?? "no script"))
        }
        for kind in ["vbd3", "qdisk", "mine"] { #expect(claim.objection(kind: kind, script: nil) == nil) }
        claim.takesAnyScript = true
        #expect(claim.objection(kind: "vbd", script: nil) == nil)
    }

    /// Makes the kernel's driver appear on a lab's loopback Xen.
    private func loadKernelDriver(_ lab: DaemonLab) {
        let folder = lab.root + "/xen/sys/bus/xen-backend/drivers/vbd"
        var made = ""
        for name in folder.split(separator: "/") {
            made += "/" + name
            mkdir(made, 0o755)
        }
    }

    @Test("disks of another backend are left alone, whatever becomes of the node") func others() throws {
        let lab = try DaemonLab()
        let old = try lab.makeNode(1, 51712, script: "/etc/xen/scripts/block")
        try lab.startDaemon()
        let bare = try lab.makeNode(1, 51728, script: nil)
        let own = try lab.makeNode(1, 51744)
        try eventually("our own is served") { try lab.row("vbd/1/51744")?["state"]?.string == "initWait" }
        // All that another backend does with them.
        for state in ["2", "4", "5", "6", "1"] {
            for other in [old, bare] { try lab.store.write("\(other.backendPath(own: 0))/state", state) }
        }
        // Our own goes, and before xbbd looks again another backend's disk has its place.
        #expect(try Toolstack(store: lab.store).detach(own, force: false, seconds: 30) == .closed)
        _ = try lab.makeNode(1, 51744, script: "/etc/xen/scripts/block")
        _ = try lab.makeNode(2, 51712)
        try eventually("the next is served") { try lab.row("vbd/2/51712")?["state"]?.string == "initWait" }
        #expect(try lab.ask(.list)["vbds"]?.elements.count == 1)
        #expect(lab.starts.count == 2)
        for other in [old, bare, own] {
            #expect(try lab.store.text("\(other.backendPath(own: 0))/state") == "1")
            #expect(try lab.store.text("\(other.errorPath(own: 0))/error") == nil)
        }
    }

    @Test("with --any-script all of backend/vbd is served") func anyScript() throws {
        let lab = try DaemonLab()
        _ = try lab.makeNode(1, 51712, script: "/etc/xen/scripts/block")
        _ = try lab.makeNode(1, 51728, script: nil)
        try lab.startDaemon(["--any-script"])
        try eventually("both are served") {
            try lab.row("vbd/1/51712")?["state"]?.string == "initWait"
                && lab.row("vbd/1/51728")?["state"]?.string == "initWait"
        }
    }

    @Test("while xen-blkback is loaded, backend/vbd is the kernel's", arguments: [[], ["--any-script"]])
    func kernel(_ options: [String]) throws {
        let lab = try DaemonLab()
        let running = try lab.makeNode(1, 51760)
        let first = try lab.startDaemon()
        try eventually("it is served") { try lab.row("vbd/1/51760")?["state"]?.string == "initWait" }
        loadKernelDriver(lab)
        first.process.send(SIGTERM)
        first.wait()
        let own = try lab.makeNode(1, 51712)
        try lab.startDaemon(["--backend", "vbd", "--backend", "vbd3"] + options)
        _ = try lab.makeNode(1, 51728, kind: "vbd3")
        try eventually("vbd3 is served") { try lab.row("vbd3/1/51728")?["state"]?.string == "initWait" }
        #expect(try lab.store.text("\(own.backendPath(own: 0))/state") == "1")
        #expect(try lab.row("vbd/1/51712") == nil)
        // A worker that is there goes on; it has no successor.
        #expect(try lab.row("vbd/1/51760")?["worker"]?.string == "adopted")
        kill(try #require(lab.worker("vbd-1-51760")), SIGKILL)
        try eventually("it is not served any more") { try lab.row("vbd/1/51760") == nil }
        #expect(lab.starts.count == 2)
        #expect(try lab.store.text("\(running.backendPath(own: 0))/state") == "2")
        let (_, exit) = try lab.control(["attach", "2", "xvda", "raw:/disk.img"])
        #expect(exit == .failed(1))
        #expect(try lab.store.text("/local/domain/0/backend/vbd/2/51712/state") == nil)
        #expect(try lab.control(["attach", "2", "xvda", "raw:/disk.img", "--kind", "vbd3"]).exit == .clean)
    }
}
