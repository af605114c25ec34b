// SPDX-License-Identifier: BSD-2-Clause
// An administrator is told why a disk is not served, wherever he looks, with xbbd and without a journal.
import Blkfront
import Foundation
import Testing

extension EndToEnd {
    @Suite struct ReasonTests {
        private func control(_ lab: LibxlLab, _ words: String) throws -> String {
            try LibxlLab.shell(
                "'\(buildDirectory)/xbbctl' \(words) --loopback '\(lab.xen.directory)' "
                    + "--socket '\(lab.directory)/run/xbbd.sock' 2>&1 || true")
        }

        @Test func theReasonIsWhereverOneLooks() throws {
            let lab = try LibxlLab()
            let guest = try lab.guest()
            let reason = "cannot open /nowhere/missing.img: No such file or directory"
            _ = try control(lab, "attach \(guest.id) xvda raw:/nowhere/missing.img --no-wait")
            try eventually("a line of list: \(try control(lab, "list"))") { try control(lab, "list").has(reason) }
            let row = try #require(try lab.rows().first)
            #expect(row.trouble?.has(reason) == true, "\(row)")
            #expect(row.last_failure?.has(reason) == true, "\(row)")
            #expect(try control(lab, "show \(guest.id) xvda").has(reason))
            // The worker's own line, not xbbd's.
            let line = "error: vbd/\(guest.id)/51712: \(reason)"
            let log = try control(lab, "log \(guest.id) xvda")
            #expect(log.has(line), "\(log)")
            #expect(try control(lab, "log").has(line))
            // Also when there is nobody any more who could be asked.
            _ = try control(lab, "detach \(guest.id) xvda --force --timeout 5")
            try eventually("the disk is forgotten") { try !control(lab, "list").has("xvda") }
            #expect(try control(lab, "log").has(line))
            lab.stop()
        }

        @Test(arguments: [
            (SIGSEGV, "signal 11 (SIGSEGV)"), (SIGBUS, "signal 7 (SIGBUS)"), (SIGTRAP, "signal 5 (SIGTRAP)"),
        ])
        func aSignalIsToldByItsName(_ end: (signal: Int32, text: String)) throws {
            let lab = try LibxlLab()
            let guest = try lab.guest()
            let image = try lab.image()
            #expect(try control(lab, "attach \(guest.id) xvda raw:\(image)").isEmpty)
            kill(try #require(try lab.worker()), end.signal)
            try eventually("a successor") { try lab.rows().first?.last_failure == end.text }
            let log = try control(lab, "log \(guest.id) xvda")
            #expect(log.has("ended with \(end.text)") && !log.has("confinement forbids"), "\(log)")
            // Its lines are there though it is not.
            #expect(log.has("opened \(image) as raw"))
            lab.stop()
        }
    }
}
