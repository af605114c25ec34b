// SPDX-License-Identifier: BSD-2-Clause
// What is expected of a rig at the end of a test.
import Testing

@testable import BlockQueue
@testable import PluginPort

extension EngineRig {
    /// Everything is free and all was answered.
    func expectIdle(sourceLocation: SourceLocation = #_sourceLocation) {
        audit()
        #expect(problems == [], sourceLocation: sourceLocation)
        #expect(unanswered == 0, "requests without an answer", sourceLocation: sourceLocation)
        #expect(isIdle, sourceLocation: sourceLocation)
        #expect(use == Use(), sourceLocation: sourceLocation)
        #expect(counter(.reqs_received) == counter(.reqs_completed), sourceLocation: sourceLocation)
        #expect(counter(.reqs_queued_for_completion) == counter(.reqs_completed), sourceLocation: sourceLocation)
        #expect(
            counter(.total_dispatch) == counter(.forced_dispatch) + counter(.normal_dispatch),
            sourceLocation: sourceLocation)
        #expect(port.violations == 0, sourceLocation: sourceLocation)
    }
}
