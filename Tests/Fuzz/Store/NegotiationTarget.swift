// SPDX-License-Identifier: BSD-2-Clause
// The life of a VBD between a hostile guest, a toolstack and slow storage.
import TestSupport

@testable import XenBus

/// All that happens is the input's; then the VBD ends, and must.
func negotiate() -> [String] {
    var world = VBDWorld(seed: 0)
    while !FuzzInput.isOver, world.exits.isEmpty, world.broken.isEmpty { world.happen() }
    world.end()
    return world.broken
}
