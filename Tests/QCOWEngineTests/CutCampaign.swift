// SPDX-License-Identifier: BSD-2-Clause
// Many histories, each cut at many places, each state judged.
import Foundation
import TestSupport

/// Histories from successive seeds, cut until so many states were judged.
struct CutCampaign {
    let maker: HistoryMaker
    let ending: Ending
    var order = OrderVice.none
    /// States to judge.
    let states: Int
    var statesOfHistory = 40
    /// Each such state is opened again and written on; 0: none.
    var reopenEvery = 16
    /// Each such state is also judged by QEMU; 0: none.
    var juryEvery = 12
    /// Ends with the first finding.
    var stopsAtFirst = true

    /// What a campaign found.
    struct Result: CustomStringConvertible {
        var histories = 0
        var effects = 0
        var states = 0
        var reopened = 0
        var judgedByQemu = 0
        var findings: [String] = []

        var description: String {
            "\(histories) histories, \(effects) effects, \(states) states, \(reopened) opened again, "
                + "\(judgedByQemu) judged by QEMU, \(findings.count) bad"
        }
    }

    /// Plays it.
    func run(firstSeed: UInt64) throws -> Result {
        var result = Result()
        var seed = firstSeed
        while result.states < states, !(stopsAtFirst && !result.findings.isEmpty), result.findings.count < 30 {
            let history = try maker.play(seed)
            result.histories += 1
            result.effects += history.log.effects.count
            if !history.liveFaults.isEmpty {
                result.states += 1
                result.findings.append(history.words("while it ran", .max, history.liveFaults))
            } else {
                try cut(history, &result)
            }
            seed += 1
        }
        return result
    }

    private func cut(_ history: History, _ result: inout Result) throws {
        var random = SplitMix64(seed: history.seed ^ 0xc075)
        let judge = Judge(history)
        let jury = QemuJury(history.made.folder)
        let count = history.log.effects.count
        let positions = (0..<min(statesOfHistory, states - result.states)).map { _ in random.below(count + 1) }.sorted()
        var (power, kill) = (PowerCut(history.log, vice: order), KillCut(history.log, vice: order))
        for position in positions {
            let image = ending == .kill ? kill.state(at: position, &random) : power.state(at: position, &random)
            result.states += 1
            let found = judge.faults(image, ending, position: position)
            if !found.isEmpty {
                result.findings.append(history.words("\(ending)", position, found))
                if stopsAtFirst { break }
                continue
            }
            if juryEvery > 0, random.onceIn(juryEvery) {
                let (structure, ending) = (StructureCheck.report(image), ending)
                try jury.ask(image) { verdict in
                    let late = judge.faults(verdict, structure: structure, ending, position: position)
                    if !late.isEmpty { JuryFindings.shared.add(history.words("\(ending), QEMU", position, late)) }
                }
            }
            if reopenEvery > 0, random.onceIn(reopenEvery) {
                try reopen(history, image, position, jury, &random, &result)
                if stopsAtFirst && !result.findings.isEmpty { break }
            }
        }
        try jury.decide()
        result.judgedByQemu += jury.judged
        result.findings += JuryFindings.shared.take()
    }

    private func reopen(
        _ history: History, _ image: ByteImage, _ position: Int, _ jury: QemuJury, _ random: inout SplitMix64,
        _ result: inout Result
    ) throws {
        let reopening = Reopening(
            opener: maker.opener, recipe: history.made.recipe, reader: history.made.reader, setup: history.setup,
            seed: random.next() >> 1, cuts: random.onceIn(2) ? 3 : 0)
        let found = try reopening.faults(
            image, jury: juryEvery > 0 ? jury : nil, states: &result.states)
        result.reopened += 1
        if !found.isEmpty { result.findings.append(history.words("\(ending), opened again", position, found)) }
    }
}

/// How long tests run.
enum TestLength {
    /// Minutes: make test-long.
    static let isLong = ProcessInfo.processInfo.environment["XBB_LONG"] == "1"

    /// A number for `make test`, and one for `make test-long`. XBB_STATES overrides both.
    static func states(_ short: Int, long: Int) -> Int {
        if let number = ProcessInfo.processInfo.environment["XBB_STATES"].flatMap({ Int($0) }) { return number }
        return isLong ? long : short
    }
}
