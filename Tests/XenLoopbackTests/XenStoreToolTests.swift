// SPDX-License-Identifier: BSD-2-Clause
// The daemon as Xen's command line tools see it.
import Testing
import Xen

@testable import XenLoopback

extension XenStoreTests {
    @Suite struct XenStoreToolTests {
        @Test func readWriteRemoveList() throws {
            let daemon = try TestDaemon()
            #expect(try daemon.run("xenstore-write /a/b hello /a/c 'two words'").status == 0)
            #expect(try daemon.run("xenstore-read /a/b /a/c").output == "hello\ntwo words\n")
            #expect(try daemon.run("xenstore-list /a").output == "b\nc\n")
            #expect(try daemon.run("xenstore-exists /a/b").status == 0)
            #expect(try daemon.run("xenstore-rm /a/b").status == 0)
            #expect(try daemon.run("xenstore-exists /a/b").status != 0)
            let missing = try daemon.run("xenstore-read /a/b")
            #expect(missing.status != 0)
            #expect(missing.output.contains("couldn't read path /a/b"))
        }

        @Test func lsShowsTheWholeTree() throws {
            let daemon = try TestDaemon()
            try daemon.server.addDomain(1)
            let listed = try daemon.run("xenstore-ls -f")
            #expect(listed.status == 0)
            #expect(
                listed.output == """
                    /tool = ""
                    /tool/xenstored = ""
                    /local = ""
                    /local/domain = ""
                    /local/domain/0 = ""
                    /local/domain/0/domid = "0"
                    /local/domain/0/name = "Domain-0"
                    /local/domain/1 = ""
                    /local/domain/1/domid = "1"
                    /local/domain/1/name = "Domain-1"
                    /local/domain/1/device = ""
                    /local/domain/1/data = ""
                    /local/domain/1/drivers = ""
                    /local/domain/1/error = ""

                    """)
            let permissions = try daemon.run("xenstore-ls -fp /local/domain/1").output.split(separator: "\n").map {
                $0.split(separator: " ").last.map(String.init) ?? ""
            }
            #expect(permissions == ["(n0,r1)", "(n0,r1)", "(n1)", "(n1)", "(n1)", "(n1)"])
            #expect(try daemon.run("xenstore-ls -f /local/domain/1", as: 1).output.contains("/name = \"Domain-1\""))
            #expect(try daemon.run("xenstore-ls -f /", as: 1).output.contains("Permission denied"))
        }

        @Test func chmodAndItsReaders() throws {
            let daemon = try TestDaemon()
            try daemon.server.addDomain(1)
            #expect(try daemon.run("xenstore-write /x/y 1").status == 0)
            #expect(try daemon.run("xenstore-read /x/y", as: 1).status != 0)
            #expect(try daemon.run("xenstore-chmod -r /x n0 r1").status == 0)
            #expect(try daemon.run("xenstore-read /x/y", as: 1).output == "1\n")
            #expect(try daemon.run("xenstore-ls -fp /x").output.contains("(n0,r1)"))
            #expect(try daemon.run("xenstore-chmod /x/y r1", as: 1).status != 0)
        }

        @Test func watchPrintsEvents() throws {
            let daemon = try TestDaemon()
            let store = try daemon.open()
            let watch = try daemon.start("stdbuf -oL xenstore-watch -n 3 /w")
            #expect(watch.line() == "/w\n")
            try store.write("/w/a", "1")
            #expect(watch.line() == "/w/a\n")
            try store.remove("/w", in: .none)
            #expect(watch.line() == "/w\n")
            #expect(watch.end() == 0)
        }
    }
}
