// SPDX-License-Identifier: BSD-2-Clause
// Reading through all layers, where the data are not at one place of the file.
import Glibc
import ImageCore
import ImageWriting
import QCOW2

extension ImageEngine {
    /// Memory for a part of a read.
    private static var bounceBytes: UInt64 { 256 << 10 }

    /// Does a read: 0 or a negative errno.
    func read(_ operation: any EngineOperation) -> Int32 {
        guard let bounce = Bounce(Int(min(operation.length, Self.bounceBytes))) else { return -ENOMEM }
        var done: UInt64 = 0
        while done < operation.length {
            let count = Int(min(operation.length - done, Self.bounceBytes))
            let code = bounce.with(0..<count) { memory in readLayers(&memory, at: operation.offset + done) }
            guard code == 0 else { return code }
            bounce.reading(0..<count) { operation.takeData($0, at: done) }
            done += UInt64(count)
        }
        return 0
    }

    /// Fills memory with what the disk shows from `offset` on: 0 or a negative errno. Whole sectors.
    func readLayers(_ memory: inout MutableRawSpan, at offset: UInt64) -> Int32 {
        map.read(
            &memory, at: offset, below: below, expand: expand, decrypt: nil,
            data: { buffer, place in data.readData(into: &buffer, at: place) },
            fault: { tell(.unreadable($0, at: $1)) })
    }
}

extension ClusterMap {
    /// Fills memory with what the disk shows from `offset` on, `data` from the file, the rest from where it is: 0 or a negative
    /// errno; `fault` gets what cannot be read, and where on the disk, in bytes. Behind the end of the disk are zeroes: a last cluster is whole.
    public func read(
        _ memory: inout MutableRawSpan, at offset: UInt64, below: (any LowerLayer)?, expand: ImageEngine.ClusterReader?,
        decrypt: ((_ buffer: inout MutableRawSpan, _ offset: UInt64) -> Int32)?,
        data: (_ buffer: inout MutableRawSpan, _ place: UInt64) -> Int32,
        fault: (_ fault: ReadFault, _ offset: UInt64) -> Void
    ) -> Int32 {
        let size = UInt64(memory.byteCount)
        var done: UInt64 = 0
        while done < size {
            let position = offset + done
            let extent: Extent
            let count: UInt64
            do throws(ReadFault) {
                (extent, count) = try find(position, size - done)
            } catch {
                fault(error, position)
                return -error.code
            }
            let code = unsafe memory.withUnsafeMutableBytes { bytes -> Int32 in
                let part = unsafe UnsafeMutableRawBufferPointer(rebasing: bytes[Int(done)..<Int(done + count)])
                var span = unsafe part.mutableBytes
                switch extent {
                case .data(let place): return data(&span, place)
                case .hole where position < below?.size ?? 0: return below?.read(into: &span, at: position) ?? -EIO
                case .hole, .zeroes:
                    if let base = part.baseAddress { unsafe _ = memset(base, 0, part.count) }
                    return 0
                case .compressed(let place, let length):
                    return expand?(&span, Int(position & (clusterSize - 1)), place, length) ?? -EOPNOTSUPP
                case .encrypted: return decrypt?(&span, position) ?? -EOPNOTSUPP
                }
            }
            if code != 0 {
                fault(extent.fault(code), position)
                return code
            }
            done += count
        }
        return 0
    }
}

extension Extent {
    /// What was to be read there could not be, for this negative errno.
    fileprivate func fault(_ code: Int32) -> ReadFault {
        switch self {
        case .hole, .zeroes:
            ReadFault(code: -code, cause: "what lies below the image cannot be read", place: 0, isDamage: false)
        case .data(let place), .encrypted(let place):
            ReadFault(code: -code, cause: "its data cannot be read", place: place, isDamage: false)
        case .compressed(let place, _): ReadFault(code: -code, cause: "its cluster cannot be inflated", place: place)
        }
    }
}
