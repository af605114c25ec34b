// SPDX-License-Identifier: BSD-2-Clause
// An image of any bytes.
import Foundation
import ImageCore
import QCOW2
import QCOWEngine
import TestSupport

/// The input's bytes, and zeroes behind them: what a sparse file has.
private final class InputImage: ImageReader, @unchecked Sendable {
    let bytes: [UInt8]
    let size: UInt64

    init(_ bytes: [UInt8], size: UInt64) { (self.bytes, self.size) = (bytes, size) }

    func read(into buffer: inout MutableRawSpan, at offset: UInt64) -> Int32 {
        guard offset <= size, UInt64(buffer.byteCount) <= size - offset else { return -EIO }
        buffer.withUnsafeMutableBytes { target in
            for index in target.indices {
                let place = offset + UInt64(index)
                target[index] = place < UInt64(bytes.count) ? bytes[Int(place)] : 0
            }
        }
        return 0
    }
}

/// Opens the input, surveys it, looks at each cluster of its disk, and writes to it.
func readImage() throws -> [String] {
    guard let flags = FuzzInput.take(1) else { return [] }
    let bytes = FuzzInput.takeRest()
    let size = flags & 15 == 0 ? UInt64(bytes.count) : max(UInt64(bytes.count), 1 << (9 + flags & 15))
    let image = InputImage(bytes, size: size)
    _ = ImageSignature(head: bytes.prefix(512), tail: bytes.suffix(512))
    for format in ["qcow", "qcow2", ""] { _ = QCOWProbe.score(bytes.prefix(8), format: format) }
    guard let check = try? QCOWCheck(examining: image) else { return [] }
    _ = (QCOWProbe.memory(check, cache: 1 << 20), check.header.references, check.header.bitmaps)
    guard let opened = try? QCOWImage(image) else { return [] }
    var problems: [String] = []
    let survey = try? ImageSurvey(image, opened)
    if let survey, survey.data + survey.zeroes > opened.l1.count * Int(check.header.l2Bytes) {
        problems.append("the survey counts \(survey.data) clusters with data and \(survey.zeroes) zero ones")
    }
    let map = try ClusterMap(opened, reading: image, cacheBytes: 4096, dataBytes: size)
    problems += compare(map, opened, image)
    if flags & 16 != 0, size <= 1 << 20 { problems += write(image) }
    return problems
}

/// The product's map beside the tests' own reader of tables.
private func compare(_ map: ClusterMap, _ opened: QCOWImage, _ image: InputImage) -> [String] {
    let isPlain = opened.header.version >= 2 && !opened.isEncrypted && !opened.header.hasDataFile
    let file = ByteImage(count: isPlain ? Int(min(image.size, 1 << 24)) : 0)
    if isPlain { file.write(Array(image.bytes.prefix(file.count)), at: 0) }
    let layout = isPlain ? ImageLayout(file) : nil
    var position: UInt64 = 0
    // A disk may have a billion clusters.
    for _ in 0..<200 where position < opened.size {
        guard let (extent, count) = try? map.find(position, opened.size - position) else {
            position += UInt64(1) << UInt64(opened.header.clusterBits)
            continue
        }
        guard count > 0, count <= opened.size - position else { return ["\(count) bytes at \(position) of the disk"] }
        if case .data(let place) = extent, place >= image.size || count > image.size - place {
            return ["data of \(position) at \(place), \(count) bytes, of a file of \(image.size)"]
        }
        if case .compressed(let place, let length) = extent, place >= image.size || length <= 0 {
            return ["deflated data of \(position) at \(place), of a file of \(image.size)"]
        }
        if let layout, let own = own(layout, position), own != extent {
            return ["\(position): the product finds \(extent), and the tests' reader \(own)"]
        }
        position += count
    }
    return []
}

/// What the tests' reader finds at a byte of the disk; nil where it does not say.
private func own(_ layout: ImageLayout, _ position: UInt64) -> Extent? {
    let (cluster, within) = (Int(position) >> layout.clusterBits, Int(position) & (layout.clusterSize - 1))
    guard let part = layout.parts(cluster).first(where: { $0.start <= within && within < $0.start + $0.length }) else {
        return nil
    }
    switch part.what {
    case .hole: return .hole
    case .zeroes: return .zeroes
    case .data(let offset): return .data(UInt64(offset + within - part.start))
    case .compressed: return nil
    }
}

/// A guest writes to the image; its tables say where. Nothing but a fault or a file without bounds is wrong.
private func write(_ image: InputImage) -> [String] {
    let file = ByteImage(count: Int(image.size))
    file.write(Array(image.bytes.prefix(file.count)), at: 0)
    let storage = SimulatedStorage(file, isRecording: false)
    let content = ImageContent(of: ByteImage(), content: DiskContent(sectors: 0), lower: nil)
    guard let engine = try? ProductEngine.open(storage, content, EngineSetup()) else { return [] }
    let sectors = Int(min(engine.size / 512, 4096))
    guard sectors > 0 else { return [] }
    var shape = HistoryShape()
    (shape.reads, shape.discards, shape.zeroes) = (0, 20, 10)
    let driver = HistoryDriver(
        engine, storage, content: [UInt32](repeating: 0, count: sectors), clusterBits: 9, discardsZero: false,
        shape: shape, seed: 1)
    driver.run(40)
    driver.drain()
    engine.close()
    let most = Int(image.size) + 64 << 20
    return driver.faults + storage.complaints
        + (storage.snapshot.count > most ? ["the file has \(storage.snapshot.count) bytes"] : [])
}
