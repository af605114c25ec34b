// SPDX-License-Identifier: BSD-2-Clause
// Lines of the log in the journal: their fields, and who gets them.
import BlockQueue
import PluginHost
import Base
import CLinux
import Glibc
import Testing

@testable import Support
@testable import XBBControl

@Suite struct JournalTests {
    /// A journal, and a file that stands for the standard error that it reads.
    private final class Lab {
        let folder: String
        let socket: Descriptor
        let file: Descriptor
        let stream: String

        init() throws {
            var template = Array("/tmp/xbb-journal.XXXXXX".utf8CString)
            folder = String(cString: try #require(mkdtemp(&template)))
            socket = try Descriptor(bindDatagram(folder + "/socket"), "bind")
            file = try Descriptor(clinux_open(folder + "/stderr", O_RDWR | O_CREAT, 0o600), "open")
            var status = stat()
            #expect(fstat(file.raw, &status) == 0)
            stream = "\(status.st_dev):\(status.st_ino)"
        }

        deinit {
            for name in ["/socket", "/stderr", ""] { remove(folder + name) }
        }

        func log(_ stream: String?) -> Log {
            let journal = Journal(path: folder + "/socket", descriptor: file.raw, stream: stream)
            return Log(
                name: "xbb-vbd 1/51712", level: .info, sink: LogSink(descriptor: file.raw, journal: journal))
        }

        /// What the journal got last.
        func received() -> String {
            var entry = pollfd(fd: socket.raw, events: Int16(POLLIN), revents: 0)
            guard poll(&entry, 1, 0) == 1, case .bytes(let bytes) = socket.readAvailable() else { return "" }
            return String(decoding: bytes, as: UTF8.self)
        }

        /// What stands in the file.
        func written() -> String {
            lseek(file.raw, 0, SEEK_SET)
            guard case .bytes(let bytes) = file.readAvailable() else { return "" }
            return String(decoding: bytes, as: UTF8.self)
        }
    }

    @Test("a line has its priority, its program and its disk") func fields() throws {
        let lab = try Lab()
        let log = lab.log(lab.stream).about(domain: 1, device: 51712, limit: nil)
        log.warning("a\nXBB_DOMID=7")
        #expect(
            lab.received()
                == "PRIORITY=4\nSYSLOG_IDENTIFIER=xbb-vbd\nMESSAGE=1/51712: a?XBB_DOMID=7\n"
                + "XBB_DOMID=1\nXBB_VDEV=51712\n"
        )
        log.debug("not wanted")
        #expect(lab.received() == "" && lab.written() == "")
    }

    @Test("who sends standard error elsewhere finds the lines there", arguments: [nil, "", "1:1", "x"])
    func elsewhere(_ stream: String?) throws {
        let lab = try Lab()
        lab.log(stream).error("text")
        #expect(lab.received() == "")
        #expect(lab.written().hasSuffix("xbb-vbd 1/51712: text\n"))
    }

    @Test("a journal that takes nothing loses nothing") func deaf() throws {
        let lab = try Lab()
        let log = lab.log(lab.stream)
        remove(lab.folder + "/socket")
        shutdown(lab.socket.raw, Int32(SHUT_RD))
        log.error("text")
        #expect(lab.written().hasSuffix("xbb-vbd 1/51712: text\n"))
    }
}
