// SPDX-License-Identifier: BSD-2-Clause
// Random lives of a VBD: hostile guest, toolstack, slow storage. The promises hold in all of them.

import TestSupport
import Testing

@testable import XenBus

@Suite struct VBDMachinePropertyTests {
    /// 100 seeds of so many lives of 0 to 60 events; a failure names its seed.
    static let seeds: [UInt64] = Array(1...100)

    private static func live(_ lives: UInt64, _ seed: UInt64, _ end: (inout VBDWorld) -> Void) -> [String] {
        for life in 0..<lives {
            var world = VBDWorld(seed: seed &* 1_000_003 &+ life)
            let length = world.random.next() % 60
            for _ in 0..<length where world.exits.isEmpty { world.happen() }
            end(&world)
            if !world.broken.isEmpty { return world.broken.map { "seed \(seed) life \(life): \($0)" } }
        }
        return []
    }

    @Test(arguments: seeds) func promisesHoldAndEveryDetachEnds(_ seed: UInt64) {
        let broken = Self.live(1000, seed) { $0.end() }
        #expect(broken.isEmpty, "\(broken)")
    }

    @Test(arguments: seeds) func aGuestThatBehavesAgainGetsItsDisk(_ seed: UInt64) {
        let broken = Self.live(200, seed) { world in
            guard world.exits.isEmpty, world.isOnline, world.machine.purpose == .serve, world.state != nil else {
                return
            }
            world.storageWorks = 100
            world.ringsWork = 100
            world.hand(.storageConfigured(goodRequest))
            for state in [XenbusState.closed, .initialising, .initialised] {
                world.setFrontend(state)
                world.settle()
                world.readBackend()
            }
            // The toolstack may have been faster than one of the updates.
            guard world.isOnline else { return }
            if world.state != .connected || !world.hasRings { world.complain("no disk in \(world.state as Any)") }
        }
        #expect(broken.isEmpty, "\(broken)")
    }

    @Test func aHundredThousandTogglesLeaveNothingBehind() {
        var world = VBDWorld(calm: 42)
        for _ in 0..<100_000 where world.broken.isEmpty && world.exits.isEmpty {
            world.setFrontend(world.random.pick([.initialising, .initialised, .connected, .closing, .closed, nil]))
            if world.random.chance(60) { world.finishWork() }
            if world.random.chance(20) { world.fireTimer() }
        }
        #expect(world.broken.isEmpty && world.exits.isEmpty)
        #expect(world.machine.pendingEntries.isEmpty && world.machine.pendingError == nil)
        world.setFrontend(.initialising)
        world.settle()
        world.setFrontend(.initialised)
        world.settle()
        #expect(world.state == .connected)
        #expect(world.hasRings)
    }
}
