// SPDX-License-Identifier: BSD-2-Clause
// Kinds of images, made by QEMU.
import Foundation
import TestSupport

/// One kind of image.
struct ImageRecipe: CustomStringConvertible, Sendable {
    var version = 3
    var clusterBits = 16
    var refcountBits = 16
    /// L2 entries have subclusters; clusters of at least 16 KiB.
    var isExtended = false
    /// Bytes of the disk.
    var size = 1 << 20
    /// An image below it, of so many sectors.
    var lowerSectors: Int?
    /// The image below it is qcow2 itself.
    var isLowerQcow2 = false
    var hasSnapshot = false
    var hasDeflated = false
    /// With zstd instead of deflate.
    var isZstd = false
    var hasZeroes = false
    /// All tables are there from the beginning.
    var isPreallocated = false
    /// Nothing is in it.
    var isEmpty = false
    /// It stands on a device, which has somebody's old data behind it.
    var isDevice = false

    var clusterSize: Int { 1 << clusterBits }

    var description: String {
        var words = ["v\(version) cluster \(clusterSize) refcount \(refcountBits) size \(size)"]
        if isExtended { words.append("extended L2") }
        if let lowerSectors { words.append("over \(lowerSectors) sectors of \(isLowerQcow2 ? "qcow2" : "raw")") }
        if hasSnapshot { words.append("snapshot") }
        if hasDeflated { words.append(isZstd ? "zstd" : "deflated") }
        if hasZeroes { words.append("zeroes") }
        if isPreallocated { words.append("preallocated") }
        if isEmpty { words.append("empty") }
        if isDevice { words.append("on a device") }
        return words.joined(separator: ", ")
    }

    /// A kind of image by chance.
    static func random(_ random: inout SplitMix64) -> ImageRecipe {
        var recipe = ImageRecipe()
        recipe.version = random.onceIn(4) ? 2 : 3
        recipe.clusterBits = random.onceIn(40) ? 21 : random.pick([9, 12, 12, 16, 16])
        if recipe.version == 3 { recipe.refcountBits = random.pick([1, 2, 4, 8, 16, 16, 32, 64]) }
        if recipe.version == 3, recipe.clusterBits != 21, random.onceIn(4) {
            (recipe.isExtended, recipe.clusterBits) = (true, random.pick([14, 14, 16]))
        }
        let clusters = [9: 1 << 10, 12: 1 << 8, 14: 1 << 6, 16: 1 << 5, 21: 1 << 2][recipe.clusterBits] ?? 32
        recipe.size = random.from(UInt64(clusters / 2), to: UInt64(clusters)).int << recipe.clusterBits
        // A disk need not end with a cluster.
        if random.onceIn(4) { recipe.size -= 512 * random.below(recipe.clusterSize / 512) }
        if random.chance(40) {
            let sectors = recipe.size / 512
            recipe.lowerSectors = random.onceIn(2) ? sectors : 1 + random.below(sectors)
            recipe.isLowerQcow2 = random.onceIn(2)
        }
        recipe.hasSnapshot = recipe.refcountBits > 1 && random.chance(35)
        recipe.hasDeflated = recipe.refcountBits >= 8 && random.chance(25)
        recipe.isZstd = recipe.version == 3 && random.onceIn(4)
        recipe.hasZeroes = random.chance(40)
        recipe.isPreallocated = recipe.lowerSectors == nil && random.onceIn(6)
        recipe.isEmpty = !recipe.hasSnapshot && !recipe.hasDeflated && random.onceIn(5)
        recipe.isDevice = random.onceIn(6)
        return recipe
    }
}

extension UInt64 {
    /// As a number of the tests, which are all small.
    var int: Int { Int(truncatingIfNeeded: self) }
}

/// An image as QEMU made it.
struct MadeImage {
    let recipe: ImageRecipe
    let image: ByteImage
    /// What QEMU reads.
    let content: DiskContent
    let reader: ImageContent
    /// What lies below; nil: nothing.
    var lower: ByteImage? { reader.lower }
    /// Has the files below it.
    let folder: TestFolder
}

/// Makes images in a folder.
struct ImageMaker {
    let folder: TestFolder
    let recipe: ImageRecipe
    private var random: SplitMix64
    private var generation: UInt32 = 1
    private var commands: [String] = []

    init(_ recipe: ImageRecipe, seed: UInt64) throws {
        folder = try TestFolder()
        self.recipe = recipe
        random = SplitMix64(seed: seed)
    }

    /// Makes it.
    mutating func make() throws -> MadeImage {
        let lower = try makeLower()
        try Shell.run("cd \(folder.path) && qemu-img create -q \(options) image \(recipe.size)")
        if !recipe.isEmpty {
            for _ in 0..<2 + random.below(5) { try write() }
            if recipe.hasDeflated { for _ in 0..<2 + random.below(4) { try deflate() } }
            try run()
            if recipe.hasSnapshot {
                try Shell.run("cd \(folder.path) && qemu-img snapshot -c first image")
                // All of it stays shared, or parts are written anew.
                if random.onceIn(2) { for _ in 0..<1 + random.below(3) { try write() } }
                try run()
                if random.onceIn(4) { try Shell.run("cd \(folder.path) && qemu-img snapshot -c second image") }
            }
        }
        return try load(lower)
    }

    private var options: String {
        var words = ["compat=\(recipe.version == 2 ? "0.10" : "1.1")", "cluster_size=\(recipe.clusterSize)"]
        if recipe.isExtended { words.append("extended_l2=on") }
        if recipe.version == 3 { words.append("refcount_bits=\(recipe.refcountBits)") }
        if recipe.hasDeflated, recipe.isZstd { words.append("compression_type=zstd") }
        if recipe.isPreallocated { words.append("preallocation=metadata") }
        let below =
            recipe.lowerSectors == nil ? "" : "-b \(folder.file("below")) -F \(recipe.isLowerQcow2 ? "qcow2" : "raw")"
        return "-f qcow2 -o \(words.joined(separator: ",")) \(below)"
    }

    private mutating func makeLower() throws -> ByteImage? {
        guard let sectors = recipe.lowerSectors else { return nil }
        let lower = ByteImage(count: sectors * sectorSize)
        lower.write(SectorPattern.bytes(first: 0, count: sectors, generation: 1), at: 0)
        // Some of it has nothing.
        for _ in 0..<3 { lower.zero(random.below(sectors) * 512, 512 * (1 + random.below(max(1, sectors / 6)))) }
        let raw = folder.file(recipe.isLowerQcow2 ? "below.raw" : "below")
        try lower.save(raw)
        if recipe.isLowerQcow2 { try Shell.run("qemu-img convert -f raw -O qcow2 \(raw) \(folder.file("below"))") }
        return lower
    }

    /// A range of sectors.
    private mutating func range() -> Range<Int> {
        let sectors = recipe.size / 512
        let first = random.below(sectors)
        return first..<min(sectors, first + 1 + random.below(max(2, sectors / 5)))
    }

    private mutating func write() throws {
        let range = range()
        if recipe.hasZeroes && random.onceIn(3) {
            commands.append("write -z \(random.onceIn(2) ? "-u " : "")\(range.lowerBound * 512) \(range.count * 512)")
        } else if random.onceIn(8) {
            commands.append("discard \(range.lowerBound * 512) \(range.count * 512)")
        } else {
            try write(range, "")
        }
    }

    private mutating func write(_ range: Range<Int>, _ flags: String) throws {
        generation += 1
        let path = folder.file("pattern\(generation)")
        let bytes = SectorPattern.bytes(first: range.lowerBound, count: range.count, generation: generation)
        try Data(bytes).write(to: URL(fileURLWithPath: path))
        commands.append("write \(flags)-s \(path) \(range.lowerBound * 512) \(range.count * 512)")
    }

    /// One cluster; QEMU deflates only what has no data yet, and says an error otherwise.
    private mutating func deflate() throws {
        let sectors = recipe.clusterSize / 512
        let first = random.below((recipe.size + recipe.clusterSize - 1) / recipe.clusterSize) * sectors
        try write(first..<min(first + sectors, recipe.size / 512), "-c ")
    }

    private mutating func run() throws {
        guard !commands.isEmpty else { return }
        let list = commands.map { "-c '\($0)'" }.joined(separator: " ")
        commands = []
        try Shell.run(
            "cd \(folder.path) && { qemu-io -f qcow2 -d unmap \(list) image >/dev/null 2>&1 || test $? = 1; }")
    }

    private func load(_ lower: ByteImage?) throws -> MadeImage {
        try Shell.run("cd \(folder.path) && qemu-img convert -f qcow2 -O raw image raw && rm -f pattern*")
        let image = try ByteImage(contentsOf: folder.file("image"))
        let content = DiskContent(raw: try ByteImage(contentsOf: folder.file("raw")))
        unlink(folder.file("raw"))
        guard content.foreign.isEmpty else { throw SimulationError("\(recipe): QEMU reads \(content.foreign[0])") }
        let reader = ImageContent(of: image, content: content, lower: lower)
        guard let own = reader.read(image), own.generations == content.generations, own.foreign.isEmpty else {
            throw SimulationError("\(recipe): the tests' reader and QEMU differ")
        }
        if recipe.isDevice { growToDevice(image) }
        return MadeImage(recipe: recipe, image: image, content: content, reader: reader, folder: folder)
    }

    /// Room for all that the tests write, with old data in it.
    private func growToDevice(_ image: ByteImage) {
        let start = (image.count + 511) & ~511
        let room = recipe.size * 3 / 2 + 512 * recipe.clusterSize.trailingZeroBitCount + 16 * recipe.clusterSize
        let old = SectorPattern.bytes(first: 1 << 30, count: room / 512, generation: 77)
        image.write(old, at: start)
    }
}
