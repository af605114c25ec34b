// SPDX-License-Identifier: BSD-2-Clause
// What an administrator does to a disk, broken off at each of its steps by a kill: of the worker, of xbbd, or of both. The guest
// writes and verifies meanwhile, and has one chain of images after that: the one before or the one that was asked for.
import Blkfront
import CLinux
import Foundation
import Testing

extension EndToEnd {
    @Suite struct KilledOperationTests {
        /// Who is killed.
        enum Victim: CaseIterable, Sendable {
            case worker, xbbd, both
        }

        /// How it shows that a command has come to a step. What lasts a moment only may be over when it is looked for: a kill soon
        /// after a step must leave the same.
        enum Sign: Sendable {
            /// xbbd or the worker has logged this since.
            case log(String)
            /// The backend's node has this key.
            case key(String)
            /// The overlay of a snapshot is there.
            case overlay
            /// qemu-img works on an image.
            case copying
            /// The image is larger than before.
            case growth
            /// The command has ended.
            case end
        }

        /// A command of xbbctl, and its steps in their order.
        struct Operation: Sendable, CustomTestStringConvertible {
            let command: String
            let steps: [Sign]
            var testDescription: String { command }
        }

        static let operations = [
            Operation(command: "pause", steps: [.log("pausing, for"), .key("xbb-paused"), .end]),
            Operation(
                command: "pause --release",
                steps: [.log("is told to release"), .key("xbb-released"), .log("the storage is released"), .end]),
            Operation(command: "resume", steps: [.log("goes on after the pause"), .end]),
            Operation(
                command: "swap",
                steps: [
                    .log("pausing, for"), .log("is told to hand over, for other storage"), .key("xbb-swap"),
                    .key("xbb-swap-served"), .log("is served from the new storage"),
                ]),
            Operation(
                command: "snapshot",
                steps: [.overlay, .log("pausing, for"), .key("xbb-swap"), .end]),
            Operation(
                command: "commit",
                steps: [
                    .log("is told to release"), .log("the storage is released"), .copying, .log(": gets "),
                    .key("xbb-swap-served"), .end,
                ]),
            Operation(
                command: "rebase",
                steps: [.log("the storage is released"), .copying, .log("goes on after the pause"), .end]),
            Operation(command: "resize", steps: [.growth, .log("the disk was resized"), .end]),
        ]

        @Test(arguments: operations)
        func aKillAtAnyStepLeavesOneChain(_ operation: Operation) throws {
            let lab = try KillLab()
            for step in operation.steps {
                // One after the other, as a worker that is killed again and again is started later and later.
                for victim in Victim.allCases { try lab.trial(operation.command, step, victim) }
            }
            try lab.swap.finish()
        }
    }
}

/// A disk whose operations are broken off.
private final class KillLab {
    typealias Sign = EndToEnd.KilledOperationTests.Sign
    typealias Victim = EndToEnd.KilledOperationTests.Victim

    let swap: SwapLab
    private let path: String
    private var count = 0
    private var sectors = 32768
    private var logged = 0

    init() throws {
        swap = try SwapLab()
        path = try swap.program("qemu-img", "touch \(swap.folder)/busy; sleep 0.05; exec /usr/bin/qemu-img \"$@\"")
        try swap.mark()
    }

    /// Runs a command up to a step, kills, and looks at what the guest has.
    func trial(_ command: String, _ step: Sign, _ victim: Victim) throws {
        count += 1
        let what = "\(command), \(step), \(victim)"
        let before = try chain()
        let (words, after) = try prepare(command, try ready(command, before))
        logged = log.count
        var trial: (client: Process, chain: [String])?
        let plan = mixedPlan {
            $0.duration = 200_000_000
            $0.offset = 8 << 20
            $0.size = 4 << 20
        }
        let report = try inBackground({ [swap] in try LoadRun(swap.device, plan).run() }) {
            if trial != nil { return }
            let client = try swap.begin(words[0], words.dropFirst().joined(separator: " "), path: path)
            try eventually(what) { try isReached(step) || !client.isRunning }
            try kill(victim)
            try eventually("\(what): the command ends") { !client.isRunning }
            client.waitUntilExit()
            let isDone = client.terminationStatus == 0
            if isDone, command.hasPrefix("pause") { try expectPaused(what, isReleased: command != "pause") }
            try untilDone("resume")
            try swap.awaitQuiet()
            trial = (client, try chain())
        }
        #expect(report.isGood, "\(what): \(report.text) \(swap.lab.log.suffix(4000))")
        let ended = try #require(trial)
        let old = try #require(expected)
        #expect(
            [old, after].contains(ended.chain),
            "\(what): \(ended.chain), not \(old) or \(after) \(swap.lab.log.suffix(4000))")
        if ended.client.terminationStatus == 0 { #expect(ended.chain == after, "\(what): it said that it was done") }
        let served = try #require(ended.chain.first)
        let target = "\(served.hasSuffix(".raw") ? "raw" : "qcow2"):\(served)"
        #expect(try swap.configured() == [target, served, target], "\(what)")
        if command == "resize" { try expectSize(what, isDone: ended.client.terminationStatus == 0) }
        try swap.goesOn()
    }

    // MARK: Before

    /// The image that a trial makes.
    private var overlay: String { "\(swap.folder)/\(count).qcow2" }

    /// The chain from which the command begins.
    private var expected: [String]?

    /// Brings the disk to where the command has something to do.
    private func ready(_ command: String, _ chain: [String]) throws -> [String] {
        var chain = chain
        let least = ["commit": 2, "rebase": 3][command] ?? 1
        while chain.count < least { chain = try run("snapshot", "\(swap.folder)/\(count)-\(chain.count).qcow2") }
        while chain.count > 4 { chain = try run("commit", "") }
        if command == "resume" {
            try untilDone("pause", "--timeout 600 --release")
        }
        expected = chain
        return chain
    }

    /// Gives a command again as long as that is what its exit status says: workers, and an xbbd, have just been killed.
    private func untilDone(_ command: String, _ words: String = "") throws {
        try eventually("\(command) is done") {
            let result = try swap.control(command, words)
            guard [0, 69, 75].contains(result.status) else {
                throw LabError("\(command): \(result) \(swap.lab.log.suffix(3000))")
            }
            return result.status == 0
        }
    }

    @discardableResult
    private func run(_ command: String, _ words: String) throws -> [String] {
        try untilDone(command, words)
        return command == "pause" ? [] : try chain()
    }

    /// The words of the command, and the chain that it leads to.
    private func prepare(_ command: String, _ chain: [String]) throws -> (words: [String], after: [String]) {
        try swap.run("rm -f busy")
        switch command {
        case "pause": return (["pause", "--timeout 600"], chain)
        case "pause --release": return (["pause", "--timeout 600 --release"], chain)
        case "swap":
            let format = chain[0].hasSuffix(".raw") ? "raw" : "qcow2"
            try swap.run("qemu-img create -q -u -f qcow2 -b \(chain[0]) -F \(format) \(overlay) \(sectors * 512)")
            return (["swap", "--image qcow2:\(overlay)"], [overlay] + chain)
        case "snapshot": return (["snapshot", overlay], [overlay] + chain)
        case "commit": return (["commit"], Array(chain.dropFirst()))
        case "rebase": return (["rebase", "--below raw:\(swap.image)"], [chain[0], swap.image])
        case "resize": return (["resize", "+64k"], chain)
        default: return ([command], chain)
        }
    }

    // MARK: Meanwhile

    private var log: Substring.UTF8View { swap.lab.log[...].utf8 }

    private func isReached(_ sign: Sign) throws -> Bool {
        switch sign {
        case .log(let text): String(decoding: log.dropFirst(logged), as: UTF8.self).has(text)
        case .key(let name): try swap.lab.key(name, of: swap.disk) != nil
        case .overlay: FileManager.default.fileExists(atPath: overlay)
        case .copying: FileManager.default.fileExists(atPath: "\(swap.folder)/busy")
        case .growth: try bytes() / 512 > sectors
        case .end: false
        }
    }

    private func kill(_ victim: Victim) throws {
        let lock = "\(swap.lab.directory)/run/vbd-\(swap.disk.kind)-\(swap.guest.id)-\(swap.disk.number).lock"
        let note = (try? String(contentsOfFile: lock, encoding: .utf8)) ?? ""
        let serving = note.split { " \n".contains($0) }.first.flatMap { pid_t($0) }
        let workers = try workers()
        switch victim {
        case .worker: if let serving, workers.contains(serving) { Foundation.kill(serving, SIGKILL) }
        case .xbbd: swap.lab.killDaemon()
        case .both:
            swap.lab.killDaemon()
            for worker in workers { Foundation.kill(worker, SIGKILL) }
        }
        if victim != .worker { try swap.lab.start() }
    }

    /// All processes of workers of this lab, also those that an earlier xbbd has started.
    private func workers() throws -> [pid_t] {
        try FileManager.default.contentsOfDirectory(atPath: "/proc").compactMap { pid_t($0) }.filter { process in
            let words = (try? Data(contentsOf: URL(fileURLWithPath: "/proc/\(process)/cmdline"))) ?? Data()
            let text = String(decoding: words, as: UTF8.self)
            return text.has("xbb-vbd\0") && text.has(swap.lab.xen.directory)
        }
    }

    // MARK: After

    /// The images that the guest has, from the topmost down.
    private func chain() throws -> [String] {
        let answer = try swap.control("show", "--json")
        let value = try JSONSerialization.jsonObject(with: Data(answer.text.utf8)) as? [String: Any]
        let images = try #require(value?["images"] as? [[String: Any]], "\(answer)")
        return images.compactMap { $0["path"] as? String }
    }

    private func expectPaused(_ what: String, isReleased: Bool) throws {
        try eventually("\(what): it is paused \(swap.lab.log.suffix(3000))") {
            if isReleased { return try swap.control("wait", "paused --timeout 0").status == 0 }
            return try swap.control("show", "--json").text.has("\"intake\":\"paused\"")
        }
    }

    private func bytes() throws -> Int {
        try FileManager.default.attributesOfItem(atPath: swap.image)[.size] as? Int ?? 0
    }

    private func expectSize(_ what: String, isDone: Bool) throws {
        let size = try bytes() / 512
        #expect(isDone ? size == sectors + 128 : [sectors, sectors + 128].contains(size), "\(what): \(size) sectors")
        sectors = size
        try eventually("\(what): the guest is told of \(size) sectors") {
            try swap.lab.key("sectors", of: swap.disk) == "\(size)"
        }
    }
}
