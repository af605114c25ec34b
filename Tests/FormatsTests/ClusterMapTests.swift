// SPDX-License-Identifier: BSD-2-Clause
// The way from the disk to the file: against what qemu-img reads, and in images that are cut off or changed anywhere.
import Glibc
import ImageCore
import QCOW2
import QCOWEngine
import TestSupport
import Testing

@Suite struct ClusterMapTests {
    let folder: Folder

    init() throws { folder = try Folder() }

    /// All extents of the disk, `step` bytes at a time at most.
    private func extents(
        _ image: QCOWImage, _ file: ArrayReader, step: UInt64, cacheBytes: UInt64 = 1 << 20
    ) throws -> [(offset: UInt64, extent: Extent, count: UInt64)] {
        let map = try ClusterMap(image, reading: file, cacheBytes: cacheBytes)
        var found: [(UInt64, Extent, UInt64)] = []
        var position: UInt64 = 0
        while position < image.size {
            let (extent, count) = try map.find(position, min(step, image.size - position))
            found.append((position, extent, count))
            position += count
        }
        return found
    }

    static let kinds = [
        "qcow2", "qcow2 -o compat=0.10", "qcow2 -o cluster_size=512", "qcow2 -o cluster_size=2M", "qcow",
        "qcow2 -o extended_l2=on", "qcow2 -o extended_l2=on,cluster_size=16k",
    ]

    @Test(arguments: kinds)
    func dataAreWhereTheMapSays(kind: String) throws {
        // Data, holes, and an end within a cluster.
        let length = 3 << 20 | 512
        try run(
            """
            cd \(folder.path) && truncate -s \(length) source && for at in 0 3 4 90 91 700 767; do
            head -c 4096 /dev/urandom | dd of=source bs=4096 seek=$at conv=notrunc status=none; done &&
            truncate -s \(length) source && qemu-img convert -f raw -O \(kind) source image
            """)
        let (source, file) = (try folder.bytes("source"), ArrayReader(try folder.bytes("image")))
        let image = try QCOWImage(file)
        #expect(image.size == UInt64(length))
        for (step, cacheBytes) in [(UInt64(512), UInt64(1)), (5000 & ~511, 4096), (.max, 1 << 20)] {
            var read: [UInt8] = []
            for (offset, extent, count) in try extents(image, file, step: step, cacheBytes: cacheBytes) {
                #expect(offset == UInt64(read.count) && count > 0 && count <= step)
                switch extent {
                case .data(let place): read += try file.bytes(at: place, count: Int(count))
                case .hole, .zeroes: read += [UInt8](repeating: 0, count: Int(count))
                default: Issue.record("\(extent) at \(offset)")
                }
            }
            #expect(read == source)
        }
    }

    @Test func kindsAreToldApart() throws {
        try run(
            """
            cd \(folder.path) && yes | head -c 1M >source && qemu-img convert -f raw -O qcow2 -c source image &&
            qemu-io -f qcow2 -c 'write -z 128k 64k' -c 'write -P 7 256k 64k' image >/dev/null
            """)
        let file = ArrayReader(try folder.bytes("image"))
        let found = try extents(try QCOWImage(file), file, step: 512)
        let kinds = Set(found.map { "\($0.offset >> 16): \("\($0.extent)".prefix { $0 != "(" })" })
        #expect(kinds.contains("2: zeroes") && kinds.contains("4: data") && kinds.contains("0: compressed"))
        #expect(kinds.count == 16)
        for case (_, .compressed(let place, let length), _) in found {
            #expect(place + UInt64(length) <= file.size && length > 0)
        }
    }

    @Test func aClusterThatIsNotThereIsAFault() throws {
        try run("cd \(folder.path) && yes | head -c 1M >source && qemu-img convert -f raw -O qcow2 source image")
        let bytes = try folder.bytes("image")
        let file = ArrayReader(Array(bytes.dropLast(65536)))
        let map = try ClusterMap(try QCOWImage(file), reading: file, cacheBytes: 1 << 20)
        #expect(try map.find(0, 512).1 == 512)
        let fault = #expect(throws: ReadFault.self) { try map.find((1 << 20) - 4096, 4096) }
        #expect(fault?.code == EIO && "\(fault?.cause ?? "")" == "its cluster is not in the file")
        #expect(fault?.place == UInt64(bytes.count - 65536))
        let broken = try ClusterMap(try QCOWImage(file), reading: ArrayReader([], failure: -ENXIO), cacheBytes: 1 << 20)
        #expect(#expect(throws: ReadFault.self) { try broken.find(0, 512) }?.code == ENXIO)
    }

    @Test(arguments: ["qcow2", "qcow"])
    func cutOffAnywhereItIsRefusedOrAFault(format: String) throws {
        try run("cd \(folder.path) && yes | head -c 256K >source && qemu-img convert -f raw -O \(format) source image")
        let bytes = try folder.bytes("image")
        let lengths = Array(0...600) + Array(stride(from: 601, to: bytes.count, by: 3989))
        for length in lengths {
            let file = ArrayReader(Array(bytes.prefix(length)))
            guard let image = try? QCOWImage(file) else { continue }
            let found = try? extents(image, file, step: .max)
            #expect(found == nil, "\(length) of \(bytes.count) bytes have all of the disk")
        }
    }

    /// Header and tables with changed bytes: an answer, and every extent in the file.
    @Test(arguments: [
        "qcow2 -o cluster_size=512", "qcow2 -c", "qcow2 -o compat=0.10", "qcow", "qcow -c", "qcow2 -o extended_l2=on",
    ])
    func whateverStandsInItNothingTraps(kind: String) throws {
        // qemu-img 7.2 makes a good compressed image of version 1 and ends with 1.
        try run(
            "cd \(folder.path) && yes | head -c 256K >source && { qemu-img convert -f raw -O \(kind) source image || true; }"
        )
        let good = try folder.bytes("image")
        let original = try QCOWImage(ArrayReader(good))
        var random = SplitMix64(seed: testSeed("whateverStandsInItNothingTraps"))
        let tables =
            [0, Int(original.header.l1Offset)] + original.l1.filter { $0 > 0 }.map { Int($0 & ~L2Entry.copied) }
        var (refused, faulty, read) = (0, 0, 0)
        for _ in 0..<3000 {
            var bytes = good
            for _ in 0...random.below(3) {
                let place = min(random.pick(tables) + random.below(112), bytes.count - 1)
                bytes[place] = random.chance(30) ? UInt8(1 << random.below(8)) : UInt8(random.below(256))
            }
            let file = ArrayReader(bytes)
            guard let image = try? QCOWImage(file) else {
                refused += 1
                continue
            }
            let map = try ClusterMap(image, reading: file, cacheBytes: 4096)
            var position: UInt64 = 0
            var isFaulty = false
            // A disk may have become very large.
            for _ in 0..<600 where position < image.size {
                guard let (extent, count) = try? map.find(position, image.size - position) else {
                    isFaulty = true
                    position += image.header.clusterSize
                    continue
                }
                try #require(count > 0 && count <= image.size - position)
                switch extent {
                case .data(let place): try #require(place < file.size && count <= file.size - place)
                case .compressed(let place, let length):
                    try #require(length > 0 && place < file.size && UInt64(length) <= file.size - place)
                case .encrypted(let place):
                    try #require(place < file.size && image.header.clusterSize <= file.size - place)
                case .hole, .zeroes: break
                }
                position += count
            }
            if isFaulty { faulty += 1 } else { read += 1 }
        }
        #expect(refused > 0 && faulty > 0 && read > 0, "\(refused) refused, \(faulty) faulty, \(read) read")
    }
}
