// SPDX-License-Identifier: BSD-2-Clause
// A worker that is killed while a guest uses its disk: what docs/plugin-abi.md requires in "The worker dies".
import PluginHost
import Glibc
import PluginAPI
import Support

extension Check {
    static let replay = Check(
        .crash, "replay", "after SIGKILL all completed requests are there, and those in flight can be done again"
    ) { bench throws(Failure) in
        try bench.killedInFlight()
    }
}

private let mostInFlight = 24

/// One line that the process writes before it is killed: the worker's journal, sent through a pipe.
private struct Entry {
    enum Kind: UInt32 {
        /// The request is about to be submitted.
        case taken
        /// It was completed.
        case done
    }

    var kind: Kind
    var op: Int
    var block: Int
    var version: UInt32

    func write(to pipe: Int32) {
        let words = [kind.rawValue, UInt32(op), UInt32(block), version]
        if unsafe Glibc.write(pipe, words, 16) != 16 { _exit(0) }
    }

    init(_ kind: Kind, _ op: Int, _ block: Int, _ version: UInt32) {
        (self.kind, self.op, self.block, self.version) = (kind, op, block, version)
    }

    /// The next line; nil at the end of the pipe.
    init?(from pipe: Int32) {
        var words: [UInt32] = [0, 0, 0, 0]
        guard unsafe read(pipe, &words, 16) == 16, let kind = Kind(rawValue: words[0]), words[2] < crashBlockCount
        else {
            return nil
        }
        self.init(kind, Int(words[1]), Int(words[2]), words[3])
    }

    /// The same request again.
    func request() -> Request {
        op == XBB_OP_WRITE
            ? crashWrite(block, version) : Request(op, UInt64(block * crashBlockBytes), crashBlockBytes)
    }

    /// The content of the block after the request.
    var content: [UInt8] {
        op == XBB_OP_WRITE ? crashContent(block, version) : [UInt8](repeating: 0, count: crashBlockBytes)
    }
}

/// The point at which the process is killed.
private enum Death: Int {
    /// At any time, by the parent.
    case anywhere
    /// When the plugin has accepted requests and has not run since.
    case accepted
    /// When everything that the plugin accepted is completed, before anybody was told.
    case completed

    init(round: Int) { self = Death(rawValue: round % 3) ?? .anywhere }
}

extension Bench {
    fileprivate func killedInFlight() throws(Failure) {
        let rounds = subject.isQuick ? 3 : 30
        var again = 0
        for round in 0..<rounds { again += try killedInFlight(round) }
        note("\(again) requests were in flight at \(rounds) times SIGKILL")
    }

    /// Returns how many requests were in flight.
    private func killedInFlight(_ round: Int) throws(Failure) -> Int {
        at("a process that is killed with requests in flight, round \(round)")
        var last = [Entry?](repeating: nil, count: crashBlockCount)
        let status = try inCopy { journal throws(Failure) in
            try serve(round, journal)
        } watch: { copy, journal in
            var count = 0
            while let entry = Entry(from: journal) {
                last[entry.block] = entry
                count += 1
                if count == 100 + round * 37, Death(round: round) == .anywhere { kill(copy, SIGKILL) }
            }
        }
        // If it ended in another way, there is nothing to check or something failed, and it has reported that.
        if status & 0x7f != SIGKILL { _exit(0) }
        let entries = last.compactMap { $0 }
        try goOn(after: entries, round)
        return entries.count { $0.kind == .taken }
    }

    /// Performs requests, at most one per block at a time, until it is killed.
    private func serve(_ round: Int, _ journal: Int32) throws(Failure) -> Never {
        let (disk, info) = try diskThatOutlives(crashBlockBytes * crashBlockCount)
        let queue = try queue(disk)
        var operations = [XBB_OP_WRITE, XBB_OP_WRITE, XBB_OP_WRITE]
        if info.capabilities.contains(.writeZeroes) { operations.append(XBB_OP_WRITE_ZEROES) }
        if info.capabilities.contains(.discard), info.capabilities.contains(.discardZeroes) {
            operations.append(XBB_OP_DISCARD)
        }
        var random = SplitMix64(seed: UInt64(round))
        var flying: [(Entry, Request)] = []
        var version: UInt32 = 0
        while true {
            var batch: [Request] = []
            for _ in 0...random.less(8) where flying.count < mostInFlight {
                let block = random.less(crashBlockCount)
                if flying.contains(where: { $0.0.block == block }) { continue }
                version += 1
                let entry = Entry(.taken, operations[random.less(operations.count)], block, version)
                entry.write(to: journal)
                let request = entry.request()
                flying.append((entry, request))
                batch.append(request)
            }
            try submit(batch, on: queue)
            let isTime = version > 60 + round * 20
            if isTime, Death(round: round) == .accepted { kill(getpid(), SIGKILL) }
            queue.run(until: isTime ? 0 : UInt32(random.less(flying.count + 1)))
            if isTime, Death(round: round) == .completed { kill(getpid(), SIGKILL) }
            for (var entry, request) in flying where request.isDone {
                try require(request.status == 0, "a \(request.name) gave \(errorName(request.status))")
                entry.kind = .done
                entry.write(to: journal)
            }
            flying.removeAll { $0.1.isDone }
        }
    }

    private func submit(_ requests: [Request], on queue: Queue) throws(Failure) {
        at("submit() of \(requests.count) requests")
        var rest = requests[...]
        var refusals = 0
        while !rest.isEmpty {
            let accepted = queue.submit(Array(rest))
            rest = rest.dropFirst(accepted)
            if accepted > 0 { continue }
            refusals += 1
            try require(refusals < 100, "submit() accepts nothing with nothing in flight, 100 times")
            queue.run()
        }
    }

    /// What the next worker does: repeats the requests that were in flight. Afterwards every block must have its
    /// reported content.
    private func goOn(after entries: [Entry], _ round: Int) throws(Failure) {
        try inNextProcess { queue throws(Failure) in
            for entry in entries where entry.kind == .taken {
                let request = entry.request()
                let status = queue.perform(request)
                try require(
                    status == 0,
                    "a \(request.name) was in flight at SIGKILL; when the next process did it again it gave "
                        + "\(errorName(status)) (round \(round))")
            }
            for entry in entries {
                let request = crashRead(entry.block)
                try perform(request, on: queue)
                if request.bytes == entry.content { continue }
                let fate = entry.kind == .done ? "was completed and is gone" : "was done again and reads wrong"
                throw Failure("a \(entry.request().name) \(fate) after SIGKILL (round \(round))")
            }
        }
    }
}
