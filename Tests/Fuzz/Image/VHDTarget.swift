// SPDX-License-Identifier: BSD-2-Clause
// A VHD that the tests made, whole or changed as the input says, or any bytes; and a guest that uses it, beside a model.
import Driver
import Foundation
import ImageCore
import TestSupport
import VHD
import VHDEngine

/// All kinds, byte by byte as the specification has them; made before the first input.
private let images: [MadeVHD] = (0..<60 as Range<UInt64>).compactMap { seed in
    var random = SplitMix64(seed: seed)
    let made = VHDRecipe.random(&random).make(seed: seed)
    // Large ones take most of a run to be copied.
    return made.image.count <= 1 << 20 ? made : nil
}
private let changeable = images.filter { $0.recipe.kind != 2 }

/// To be called before the first run: what makes images draws from seeds.
func makeVHDs() {
    guard images.count < 20 || changeable.count < 12 else { return }
    say("\(images.count) VHDs were made, \(changeable.count) of them with blocks")
    exit(1)
}

/// One image and its guest.
func useVHD() throws -> [String] {
    var random = SplitMix64(seed: 0)
    switch random.below(4) {
    case 0: return useAnything()
    case 1: return useChanged(random.pick(changeable), &random)
    default: return useSound(random.pick(images), &random)
    }
}

private func product(_ storage: SimulatedStorage, _ lower: ByteImage?, _ random: inout SplitMix64) -> VHDProduct? {
    try? VHDProduct(
        storage, lower: lower, reserve: random.pick([1...1, 1...4, 2...16]), discards: !random.onceIn(5))
}

/// All that was written is there, and no part of the file lies over another one.
private func useSound(_ made: MadeVHD, _ random: inout SplitMix64) -> [String] {
    let storage = SimulatedStorage(made.image, isGrowable: !made.recipe.isDevice, isRecording: false)
    if random.onceIn(4) { storage.fail(at: random.below(60), random.pick(StorageFault.allCases)) }
    guard let product = product(storage, made.lower, &random) else { return ["a sound image is refused"] }
    let driver = HistoryDriver(
        product, storage, content: made.content, clusterBits: made.recipe.kind == 2 ? 9 : made.recipe.blockBits,
        // Only a discard that the model may not take for zeroes is one that may do nothing.
        discardsZero: false, shape: random.pick(HistoryShape.habits), seed: 0)
    while !FuzzInput.isOver, driver.faults.isEmpty { driver.run(1) }
    driver.drain()
    let isWhole = driver.errors == 0 && !product.hasFailed && !storage.faultStruck
    var found = judge(made, driver, storage)
    product.close()
    if found.isEmpty { found = judge(made, driver, storage).map { "closed: \($0)" } }
    // One that was lost before is written with the first block.
    if isWhole, !made.recipe.losesFooter, VHDLayout(storage.snapshot)?.hasFooter != true {
        found.append("closed without a footer at its end")
    }
    return found.isEmpty ? [] : ["\(made.recipe)"] + driver.faults + storage.complaints + found
}

private func judge(_ made: MadeVHD, _ driver: HistoryDriver, _ storage: SimulatedStorage) -> [String] {
    let end = storage.snapshot
    guard let layout = VHDLayout(end) else { return ["there is no footer"] }
    return driver.faults + storage.complaints + layout.faults
        + driver.model.faults(of: layout.content(above: made.lower), .kill, position: .max)
        + VHDLayout.foreignChanges(made.image, end, isDevice: made.recipe.isDevice)
}

/// It is refused and not touched, or nothing is written but what the tests' reader takes for the disk's own.
private func useChanged(_ made: MadeVHD, _ random: inout SplitMix64) -> [String] {
    let image = made.image.copy()
    for _ in 0..<1 + random.below(2) { random.pick(VHDMutation.allCases).apply(made, image, &random) }
    let storage = SimulatedStorage(image)
    guard let product = product(storage, made.lower, &random) else {
        return storage.position == 0 ? [] : ["an image that is refused was written to"]
    }
    guard product.size <= 16 << 20, product.size >= 512 else { return [] }
    var shape = HistoryShape()
    (shape.reads, shape.discards, shape.zeroes) = (0, 20, 10)
    let driver = HistoryDriver(
        product, storage, content: [UInt32](repeating: 0, count: Int(product.size) / sectorSize), clusterBits: 9,
        discardsZero: false, shape: shape, seed: 0)
    driver.run(80)
    driver.drain()
    product.close()
    return storage.complaints + VHDLayout.foreignChanges(image, storage.snapshot, isDevice: made.recipe.isDevice)
}

/// The input's bytes as a file: its footer is found, or all of it is refused; what is read comes to an end.
private func useAnything() -> [String] {
    let flags = FuzzInput.take(1) ?? 0
    let image = ByteImage()
    image.write(FuzzInput.takeRest(), at: 0)
    if flags & 1 != 0, image.count >= 2048 {
        VHDRecipe.checksum(image, 0, 512, at: 64)
        VHDRecipe.checksum(image, 512, 1024, at: 36)
    }
    if flags & 2 != 0, image.count >= 1024 { VHDRecipe.checksum(image, image.count - 512, 512, at: 64) }
    _ = ImageSignature(head: image.part(0, 512), tail: image.part(max(image.count - 512, 0), 512))
    let storage = SimulatedStorage(image)
    guard let product = try? VHDProduct(storage, lower: nil, reserve: 1...4, discards: true) else {
        return storage.position == 0 ? [] : ["an image that is refused was written to"]
    }
    let sectors = Int(min(product.size / 512, 4096))
    guard sectors > 0 else { return [] }
    var shape = HistoryShape()
    shape.reads = 0
    let driver = HistoryDriver(
        product, storage, content: [UInt32](repeating: 0, count: sectors), clusterBits: 9, discardsZero: false,
        shape: shape, seed: 1)
    driver.run(40)
    driver.drain()
    product.close()
    let most = image.count + 64 << 20
    return storage.complaints + (storage.snapshot.count > most ? ["the file has \(storage.snapshot.count) bytes"] : [])
}
