// SPDX-License-Identifier: BSD-2-Clause
// A frontend that is told what it asks for, with a model of what it must get, and a backend that is killed again and again.
import TestSupport

@testable import BlockQueue

/// One disk's life; the input says what happens.
func runEngineModel() throws -> [String] {
    let run = try EngineModelRun(SplitMix64(seed: 0), requestCount: 4000, dies: true)
    try run.go { !FuzzInput.isOver }
    var problems = run.model.problems + run.rig.problems
    if run.model.answered != run.sentCount { problems.append("\(run.model.answered) of \(run.sentCount) are answered") }
    if !run.rig.isIdle || run.rig.use != EngineRig.Use() { problems.append("in use at the end: \(run.rig.use)") }
    return problems
}
