// SPDX-License-Identifier: BSD-2-Clause
// Images that QEMU made, to be changed.
import Foundation
import TestSupport

/// Images that several tests change copies of.
final class HostileImages: @unchecked Sendable {
    private var made: [String: MadeImage] = [:]
    private let lock = NSLock()

    func image(
        _ seed: UInt64, hasSnapshot: Bool, needsBitmaps: Bool, needsDeflated: Bool
    ) throws -> MadeImage {
        lock.lock()
        defer { lock.unlock() }
        let key = "\(seed) \(hasSnapshot) \(needsBitmaps) \(needsDeflated)"
        if let found = made[key] { return found }
        var random = SplitMix64(seed: seed)
        let recipe = Self.recipe(
            &random, hasSnapshot: hasSnapshot, needsBitmaps: needsBitmaps, needsDeflated: needsDeflated)
        var maker = try ImageMaker(recipe, seed: seed)
        let new = try maker.make()
        made[key] = new
        return new
    }

    private static func recipe(
        _ random: inout SplitMix64, hasSnapshot: Bool, needsBitmaps: Bool, needsDeflated: Bool
    ) -> ImageRecipe {
        var recipe = ImageRecipe()
        recipe.clusterBits = random.pick([9, 12, 12, 16])
        recipe.size = 96 << min(recipe.clusterBits, 12)
        if recipe.clusterBits == 16 { recipe.size = 24 << 16 }
        recipe.version = random.onceIn(4) ? 2 : 3
        if needsBitmaps || recipe.version == 3 && random.onceIn(4) {
            (recipe.version, recipe.isExtended, recipe.clusterBits, recipe.size) = (3, true, 14, 48 << 14)
        }
        if needsDeflated { recipe.hasDeflated = true }
        recipe.hasSnapshot = hasSnapshot || random.onceIn(2)
        if random.onceIn(3) { recipe.lowerSectors = recipe.size / 512 }
        return recipe
    }
}
