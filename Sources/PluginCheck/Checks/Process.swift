// SPDX-License-Identifier: BSD-2-Clause
// What a plugin could leave behind or change in the process.
import PluginHost
import Base
import CLinux
import CPluginHarness
import Glibc

/// Things of this process that can be counted.
struct Residue: Equatable {
    var descriptors: Int
    var threads: Int
    var mappings: Int

    /// The current counts.
    static func now() -> Residue {
        // A thread that was joined is still listed for a moment.
        var threads = entries("task").count
        for _ in 0..<50 where threads > 1 {
            usleep(1000)
            let again = entries("task").count
            if again >= threads { break }
            threads = again
        }
        return Residue(descriptors: entries("fd").count, threads: threads, mappings: lines("maps"))
    }

    /// Names in a folder of /proc/self.
    static func entries(_ name: String) -> [String] { DirectoryListing.names(in: "/proc/self/\(name)") }

    private static func lines(_ name: String) -> Int {
        let file = unsafe clinux_open("/proc/self/\(name)", O_RDONLY | O_CLOEXEC, 0)
        guard file >= 0 else { return 0 }
        defer { close(file) }
        var chunk = [UInt8](repeating: 0, count: 65536)
        var count = 0
        while case let length = unsafe read(file, &chunk, chunk.count), length > 0 {
            count += chunk[..<length].count { $0 == 10 }
        }
        return count
    }
}

/// State of the whole process, which belongs to the host (rule 9).
struct ProcessState {
    private let lines: [Substring]

    /// The current state.
    init() {
        var text = [CChar](repeating: 0, count: 16384)
        unsafe harness_process_state(&text, UInt64(text.count))
        lines = String(decoding: text.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
            .split(separator: "\n")
    }

    /// Throws if something has changed.
    func check(after call: String) throws(Failure) {
        for (before, after) in zip(lines, ProcessState().lines) where before != after {
            throw Failure("\(call) changed what belongs to the host: \(before) became \(after)")
        }
    }
}
