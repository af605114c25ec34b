// SPDX-License-Identifier: BSD-2-Clause
// At the end of a test: what a worker has open and mapped does not grow with the connections of its guest.
import Blkfront
import Foundation
import Testing

/// What a process holds.
private struct Holdings: CustomStringConvertible {
    /// Where each descriptor leads, without the numbers that the kernel gives to pipes and sockets.
    var descriptors: [String: Int] = [:]
    /// Mappings of files and devices by name: the libraries, the journal, rings and pages of the guest.
    var mappings: [String: Int] = [:]
    var threads = 0
    /// Private memory in KiB.
    var memory = 0

    init(of worker: Worker) throws {
        let folder = "/proc/\(worker.process)"
        for name in try FileManager.default.contentsOfDirectory(atPath: "\(folder)/fd") {
            // One may be closed meanwhile.
            guard let target = try? FileManager.default.destinationOfSymbolicLink(atPath: "\(folder)/fd/\(name)") else {
                continue
            }
            descriptors[String(target.prefix { $0 != "[" }), default: 0] += 1
        }
        for line in try worker.processFile("maps").split(separator: "\n") {
            let fields = line.split(separator: " ", maxSplits: 5)
            if fields.count == 6 { mappings[fields[5].trimmingCharacters(in: .whitespaces), default: 0] += 1 }
        }
        threads = try FileManager.default.contentsOfDirectory(atPath: "\(folder)/task").count
        let data = try worker.processFile("status").split(separator: "\n").first { $0.hasPrefix("RssAnon:") }
        memory = data.flatMap { $0.split(separator: " ").dropFirst().first.flatMap { Int($0) } } ?? 0
    }

    /// What there is more of than before.
    func growth(since before: Holdings) -> [String] {
        var found: [String] = []
        for (name, count) in descriptors where count > before.descriptors[name] ?? 0 {
            found.append("\(count) descriptors of \(name), not \(before.descriptors[name] ?? 0)")
        }
        // The kernel joins and splits anonymous ones, and those of the heap, as it likes.
        for (name, count) in mappings where !name.hasPrefix("[") && count > before.mappings[name] ?? 0 {
            found.append("\(count) mappings of \(name), not \(before.mappings[name] ?? 0)")
        }
        if threads > before.threads { found.append("\(threads) threads, not \(before.threads)") }
        if memory > before.memory + 8192 { found.append("\(memory) KiB of memory, not \(before.memory)") }
        return found
    }

    var description: String { "\(descriptors) \(mappings) \(threads) threads \(memory) KiB" }
}

extension Disk {
    /// Connects and closes again and again: the first time something may be opened for good, and after that nothing.
    ///
    /// Of a disk on good storage that waits for its guest; others are left alone. XBB_LEAK_CHECK=on asks for it.
    func checkForLeaks() throws {
        guard getenv("XBB_LEAK_CHECK").map({ String(cString: $0) }) == "on", isOrdinary, worker.isRunning,
            let state = try key("state"),
            state == "2" || state == "6",
            try key("online") == "1", try lab.toolstack.text("\(front)/state") != nil, try error() == nil
        else { return }
        func connectAndClose() throws {
            let device = try connect { $0.timeout = 20_000 }
            try device.close()
            try awaitState(6)
        }
        try connectAndClose()
        let before = try Holdings(of: worker)
        for _ in 0..<2 { try connectAndClose() }
        var grown: [String] = []
        // A thread that was told to end may take a moment.
        try? eventually("nothing more than before", seconds: 5) {
            grown = try Holdings(of: worker).growth(since: before)
            return grown.isEmpty
        }
        #expect(grown.isEmpty, "disk \(number) holds more after each connection: \(grown)")
    }
}
