// SPDX-License-Identifier: BSD-2-Clause
// Where the histories of these tests begin: at the same place in each short run, so that one that passes goes on passing, and at a
// new one in each long run.
import Foundation
import TestSupport

/// The seed of a test: of the environment (`XBB_TEST_SEED`), new in a long run (`XBB_LONG`), else one that its name gives.
func testSeed(_ test: String) -> UInt64 {
    let environment = ProcessInfo.processInfo.environment
    if environment["XBB_TEST_SEED"] != nil || environment["XBB_LONG"] != nil { return TestSupport.testSeed(test) }
    return test.utf8.reduce(0xcbf2_9ce4_8422_2325) { ($0 ^ UInt64($1)) &* 0x100_0000_01b3 }
}
