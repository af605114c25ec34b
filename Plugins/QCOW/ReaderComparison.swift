// SPDX-License-Identifier: BSD-2-Clause
// An image through both readers: the plugin's own, which finds and inflates clusters itself, and libqcow.
import Glibc
import ImageCore
import ImageKit
import PluginKit
import QCOW2
import QCOWEngine

/// Compares what two readers say of the layer that is in one image; nothing below it is opened.
@safe
final class ReaderComparison {
    private let file: ImageFile
    private let image: QCOWImage
    private let map: ClusterMap
    private let clusters: InflatedClusters
    private let second: SecondReader
    private let memory: UnsafeMutableRawPointer
    /// Bytes that are compared at once, at least a cluster.
    private let part: UInt64

    /// Names of what libqcow 20201213 gets wrong, decision 9.
    private enum Fault {
        static let zeroCluster = "zero-cluster"
        static let shortStream = "short-stream"
        static let cutOff = "cut-off"
        static let reservedBits = "reserved-bits"
        static let tablePlace = "table-place"
    }

    /// Opens the image in both readers.
    init(_ file: ImageFile) throws(PluginError) {
        let image = try examining { () throws(ImageError) in try QCOWImage(file) }
        self.file = file
        self.image = image
        map = try examining { () throws(ImageError) in try ClusterMap(image, reading: file, cacheBytes: 1 << 20) }
        clusters = InflatedClusters(file, image.header, counters: QCOWCounters())
        part = max(256 << 10, image.header.clusterSize)
        unsafe memory = .allocate(byteCount: Int(2 * part), alignment: 4096)
        second = try SecondReader(fd: file.fd, fileSize: file.size, image.header)
    }

    deinit { unsafe memory.deallocate() }

    /// Reads all of the disk, and says what there is to say, until `report` gives false.
    func run(_ report: (ImageComparison) -> Bool) throws(PluginError) {
        let (size, other) = (image.size, second.size)
        if other != image.header.size {
            let range = min(size, other)..<max(image.header.size, other)
            guard
                report(
                    .difference(
                        range, first: "a disk of \(image.header.size) bytes", second: "a disk of \(other) bytes"))
            else { return }
        }
        var position: UInt64 = 0
        while position < size {
            guard report(.progress(position, of: size)) else { return }
            let length = min(part - position & (image.header.clusterSize - 1), size - position)
            guard let count = try step(position, length, report) else { return }
            position += count
        }
        _ = report(.progress(size, of: size))
    }

    /// Compares what begins at `position`: how many bytes that were; nil: no more is wanted.
    private func step(
        _ position: UInt64, _ length: UInt64, _ report: (ImageComparison) -> Bool
    ) throws(PluginError) -> UInt64? {
        let cluster = position >> UInt64(image.header.clusterBits)
        let within = position & (image.header.clusterSize - 1)
        let extent: Extent
        let found: UInt64
        do throws(ReadFault) {
            (extent, found) = try map.find(position, .max - position)
        } catch {
            let count = min(image.header.clusterSize - within, image.size - position)
            // libqcow reads from behind a buffer there.
            let words = "this reader: \(error.cause) (offset \(error.place) of the file); \(Self.notAsked)"
            return passOver(position..<position + count, Fault.cutOff, words, report) ? count : nil
        }
        let available = min(found, image.size - position)
        let count = min(available, length)
        let range = position..<position + count
        switch extent {
        case .hole:
            if image.header.backingName != nil {
                let all = position..<position + available
                return report(.skipped(all, reason: "nothing in this image: the backing file shows")) ? available : nil
            }
            return try probe(position..<position + available, report) ? available : nil
        case .zeroes: return try compare(range, Fault.zeroCluster, report) { _ in 0 } ? count : nil
        case .data(let place):
            if map.hasReservedBits(cluster) {
                let one = position..<position + min(count, image.header.clusterSize - within)
                return passOver(one, Fault.reservedBits, "the L2 entry has reserved bits; \(Self.notAsked)", report)
                    ? one.upperBound - one.lowerBound : nil
            }
            return try compare(range, tableFault(cluster), report) { buffer in
                file.readData(into: &buffer, at: place)
            } ? count : nil
        case .compressed(let place, let bytes):
            let one = position..<position + min(count, image.header.clusterSize - within)
            return try compare(
                one, tableFault(cluster) ?? Fault.shortStream, report, onlyErrors: tableFault(cluster) == nil
            ) {
                buffer in clusters.read(&buffer, from: Int(within), at: place, length: bytes)
            } ? one.upperBound - one.lowerBound : nil
        case .encrypted: return report(.skipped(range, reason: "encrypted")) ? count : nil
        }
    }

    private static let notAsked = "libqcow is not asked"

    /// A range that would show a known fault and is not compared.
    private func passOver(
        _ range: Range<UInt64>, _ fault: String, _ words: String, _ report: (ImageComparison) -> Bool
    ) -> Bool {
        report(.knownFault(range, name: fault, words: words)) && report(.skipped(range, reason: Self.notAsked))
    }

    /// libqcow finds tables of version 1 only at a multiple of their length.
    private func tableFault(_ cluster: UInt64) -> String? {
        guard image.header.version == 1 else { return nil }
        let index = Int(cluster >> UInt64(image.header.l2Bits))
        let table = index < image.l1.count ? image.l1[index] : 0
        return table % (8 << UInt64(image.header.l2Bits)) == 0 ? nil : Fault.tablePlace
    }

    /// Holes of an image with nothing below are zeroes: the first and the last sector of each cluster are looked at, and of
    /// what has no table at all those of the whole.
    private func probe(_ range: Range<UInt64>, _ report: (ImageComparison) -> Bool) throws(PluginError) -> Bool {
        let clusterSize = image.header.clusterSize
        let l1Index = Int(range.lowerBound >> UInt64(image.header.clusterBits + image.header.l2Bits))
        let hasTable = l1Index < image.l1.count && image.l1[l1Index] != 0
        var position = range.lowerBound
        while position < range.upperBound {
            let next = hasTable ? min((position | (clusterSize - 1)) + 1, range.upperBound) : range.upperBound
            for sector in [position, next - 512] {
                guard
                    try compare(
                        sector..<sector + 512, tableFault(position >> UInt64(image.header.clusterBits)), report,
                        { _ in 0 })
                else { return false }
            }
            position = next
        }
        return true
    }

    /// Compares one range, whose bytes `first` fills over zeroes. `known`: the fault that a difference would be; with
    /// `onlyErrors` only where `first` finds an error.
    private func compare(
        _ range: Range<UInt64>, _ known: String?, _ report: (ImageComparison) -> Bool, onlyErrors: Bool = false,
        _ first: (inout MutableRawSpan) -> Int32
    ) throws(PluginError) -> Bool {
        let count = Int(range.upperBound - range.lowerBound)
        let own = unsafe UnsafeMutableRawBufferPointer(start: memory, count: count)
        let other = unsafe UnsafeMutableRawBufferPointer(start: memory + Int(part), count: count)
        unsafe _ = memset(memory, 0, count)
        var span = unsafe own.mutableBytes
        let code = first(&span)
        let isRead = unsafe try second.read(other, at: range.lowerBound)
        switch (code == 0, isRead) {
        case (true, true):
            if unsafe memcmp(memory, memory + Int(part), count) == 0 { return true }
            return unsafe sectors(own, other, range.lowerBound, onlyErrors ? nil : known, report)
        case (false, false): return report(.skipped(range, reason: "neither reader can read it"))
        case (true, false): return tell(range, known, "\(range.count) bytes", "an error", report, isError: true)
        case (false, true):
            return tell(range, known, PluginError(system: "an error", -code).message, "\(count) bytes", report)
        }
    }

    private func tell(
        _ range: Range<UInt64>, _ known: String?, _ first: String, _ second: String,
        _ report: (ImageComparison) -> Bool, isError: Bool = false
    ) -> Bool {
        // A stream that ends early is one that libqcow does not refuse.
        guard let known, !(isError && known == Fault.shortStream) else {
            return report(.difference(range, first: first, second: second))
        }
        return report(.knownFault(range, name: known, words: "this reader: \(first); libqcow: \(second)"))
    }

    /// Says which sectors differ.
    private func sectors(
        _ own: UnsafeMutableRawBufferPointer, _ other: UnsafeMutableRawBufferPointer, _ offset: UInt64,
        _ known: String?,
        _ report: (ImageComparison) -> Bool
    ) -> Bool {
        var start: Int?
        for sector in stride(from: 0, through: own.count, by: 512) {
            let length = min(512, own.count - sector)
            let differs =
                unsafe length > 0
                && !own[sector..<sector + length].elementsEqual(other[sector..<sector + length])
            if differs, start == nil { start = sector }
            guard !differs, let begin = start else { continue }
            start = nil
            let range = offset + UInt64(begin)..<offset + UInt64(sector)
            let (one, two) = unsafe (Self.words(own[begin...]), Self.words(other[begin...]))
            guard tell(range, known, one, two, report) else { return false }
        }
        guard let start else { return true }
        let range = offset + UInt64(start)..<offset + UInt64(own.count)
        return unsafe tell(range, known, Self.words(own[start...]), Self.words(other[start...]), report)
    }

    /// The first bytes, as digits.
    private static func words(_ bytes: Slice<UnsafeMutableRawBufferPointer>) -> String {
        let digits = Array("0123456789abcdef")
        return unsafe bytes.prefix(16).map { "\(digits[Int($0 >> 4)])\(digits[Int($0 & 15)])" }.joined()
    }
}
