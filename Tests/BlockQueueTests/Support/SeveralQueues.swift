// SPDX-License-Identifier: BSD-2-Clause
// Several queues of one fake disk, each with a fake guest's ring.
import Glibc

@testable import BlockQueue
@testable import PluginPort

/// Queues with a ring and a plugin queue each, on one disk.
func makeQueues(
    _ count: Int, blockBytes: UInt32 = 512, _ change: (inout EngineRig.Setup) -> Void = { _ in }
) throws -> [EngineRig] {
    let order = DiskOrder(queueCount: count, listsPerQueue: 32)
    let disk = FakeDisk(sectorCount: 4096)
    return try (0..<count).map { queue in
        try EngineRig(disk: disk) {
            $0.info.logical_block = blockBytes
            $0.order = order
            $0.queue = queue
            change(&$0)
        }
    }
}

/// Turns of all queues until nothing happens in any; the plugins keep what they have. As their threads do, a queue that has
/// nothing to do turns again when it was woken, and not before.
func settle(_ rigs: [EngineRig]) {
    var awake = rigs
    for _ in 0..<1000 where !awake.isEmpty {
        for rig in awake { rig.settle() }
        awake = rigs.filter { rig in
            var count: UInt64 = 0
            return read(rig.port.wakeDescriptor, &count, 8) == 8
        }
    }
    if !awake.isEmpty { rigs.first?.problem("the queues do not settle") }
}

/// Turns of all queues until all is answered, with plugins that complete what they have.
func run(_ rigs: [EngineRig]) {
    for _ in 0..<1000 {
        settle(rigs)
        if rigs.allSatisfy(\.plugin.held.isEmpty) { return }
        for rig in rigs { rig.plugin.completeAll() }
    }
    rigs.first?.problem("the queues do not come to an end")
}
