// SPDX-License-Identifier: BSD-2-Clause
// Random requests, completions, failures and limits, compared with the model.
import TestSupport
import Testing

@testable import BlockQueue

@Suite("Random requests against a model")
struct EngineModelTests {
    @Test(
        "every request is answered once, with the right status and data, and everything is free at the end",
        arguments: testSeeds("engine model", count: 200))
    func model(_ seed: UInt64) throws {
        let run = try EngineModelRun(SplitMix64(seed: seed), requestCount: 2000)
        try run.go()
        #expect(run.model.problems == [], "XBB_TEST_SEED=\(seed)")
        #expect(run.rig.problems == [], "XBB_TEST_SEED=\(seed)")
        #expect(run.model.answered == run.sentCount, "XBB_TEST_SEED=\(seed)")
        #expect(run.rig.counter(.reqs_received) == UInt64(run.sentCount), "XBB_TEST_SEED=\(seed)")
        #expect(run.rig.counter(.reqs_completed_with_error) == UInt64(run.model.failed), "XBB_TEST_SEED=\(seed)")
        run.rig.expectIdle()
    }

    @Test(
        "the same of a backend that is killed again and again",
        arguments: testSeeds("engine model with kills", count: 50))
    func modelWithKills(_ seed: UInt64) throws {
        let run = try EngineModelRun(SplitMix64(seed: seed), requestCount: 1500, dies: true)
        try run.go()
        #expect(run.model.problems == [], "XBB_TEST_SEED=\(seed)")
        #expect(run.rig.problems == [], "XBB_TEST_SEED=\(seed)")
        #expect(run.model.answered == run.sentCount && run.deaths > 0, "XBB_TEST_SEED=\(seed)")
        #expect(run.rig.isIdle && run.rig.use == EngineRig.Use(), "XBB_TEST_SEED=\(seed)")
    }

    @Test("an error of recovery is found", arguments: EngineModelRun.PlantedFault.allCases)
    func plantedFaults(_ fault: EngineModelRun.PlantedFault) throws {
        for seed in 0..<60 as Range<UInt64> {
            let run = try EngineModelRun(SplitMix64(seed: seed), requestCount: 1500, dies: true, fault: fault)
            try run.go()
            if !run.model.problems.isEmpty || !run.rig.problems.isEmpty || run.model.answered < run.sentCount { return }
        }
        Issue.record("\(fault) is not found")
    }
}
