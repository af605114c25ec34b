// SPDX-License-Identifier: BSD-2-Clause
// What an image, a guest or a worker names does not forge a line, and moves no cursor of whoever reads it.
import Base
import CLinux
import Glibc
import PluginHost
import Testing

@testable import Support

@Suite struct ShownTextTests {
    /// C0, DEL, both forms of CSI, and what ends a line besides U+000A.
    private static let evil = "a\nb\u{1b}[2J\u{7f}\u{85}\u{9b}2J\u{2028}\u{2029}\u{e9}"
    private static let shown = "a?b?[2J???2J??\u{e9}"

    @Test("a line of the log is one line") func log() throws {
        var ends: [Int32] = [-1, -1]
        #expect(pipe2(&ends, O_CLOEXEC) == 0)
        let (reader, writer) = (Descriptor(owning: ends[0]), Descriptor(owning: ends[1]))
        let log = Log(name: "xbb", level: .info, sink: LogSink(descriptor: writer.raw, journal: nil))
        log.error(Self.evil)
        var bytes: [UInt8] = []
        if case .bytes(let written) = reader.readAvailable() { bytes = written }
        #expect(String(decoding: bytes, as: UTF8.self) == "xbb: \(Self.shown)\n")
    }

    @Test("the name of a backing file is shown without control characters") func backingName() {
        #expect(BackingName.shown(Self.evil) == Self.shown)
    }
}
