// SPDX-License-Identifier: BSD-2-Clause
// What a plugin says of the allocation of its image.
import Base
import PluginAPI

/// A part of the allocation of a disk's topmost image.
package struct ExtentList: Sendable {
    /// Bytes with the same `XBB_EXTENT_` flags.
    package struct Range: Sendable, Equatable {
        package let offset: UInt64
        package let length: UInt64
        package let flags: UInt32
    }

    /// In ascending order, without gaps.
    package fileprivate(set) var ranges: [Range] = []
    /// Where to go on; nil at the end of the disk.
    package fileprivate(set) var next: UInt64?
}

/// Ranges as they come. The plugin may say anything.
private final class ExtentCollector {
    /// As many as an answer of the control socket has room for.
    static let most = 8192

    var ranges: [ExtentList.Range] = []
    var position: UInt64
    let end: UInt64
    var isWrong = false

    init(from position: UInt64, to end: UInt64) {
        self.position = position
        self.end = end
    }

    /// Non-zero: no more.
    func take(_ offset: UInt64, _ length: UInt64, _ flags: UInt32) -> Int32 {
        let (last, overflows) = offset.addingReportingOverflow(length)
        guard !overflows, length > 0, offset <= position, last > position, position < end else {
            isWrong = position < end
            return 1
        }
        let stop = min(last, end)
        ranges.append(ExtentList.Range(offset: position, length: stop - position, flags: flags))
        position = stop
        return ranges.count < Self.most && position < end ? 0 : 1
    }
}

extension PluginDevice {
    /// What is allocated in the topmost image from a byte on. Blocks; a control call like the others.
    package func extents(from offset: UInt64) throws(OperationError) -> ExtentList {
        guard let extents = unsafe library.table.extents else {
            throw OperationError(.invalid, "plugin '\(library.name)' does not say what is allocated")
        }
        let (size, overflows) = info.sectorCount.multipliedReportingOverflow(by: 512)
        guard !overflows, offset < size else { throw OperationError(.invalid, "the disk has \(size) bytes") }
        let collector = ExtentCollector(from: offset, to: size)
        var failure = xbb_error()
        exclusion?.lock()
        // The collector outlives the call, and the plugin calls back within it.
        let result = unsafe extents(
            handle, offset, size - offset,
            { argument, offset, length, flags in
                guard let argument = unsafe argument else { return 1 }
                return unsafe Unmanaged<ExtentCollector>.fromOpaque(argument)._withUnsafeGuaranteedRef {
                    $0.take(offset, length, flags)
                }
            }, Unmanaged.passUnretained(collector).toOpaque(), &failure)
        exclusion?.unlock()
        if result != 0 {
            throw OperationError(failure, result, "plugin '\(library.name)' does not say what is allocated")
        }
        if collector.isWrong || collector.ranges.isEmpty {
            throw OperationError(.invalid, "plugin '\(library.name)' says of its allocation what cannot be")
        }
        return ExtentList(ranges: collector.ranges, next: collector.position < size ? collector.position : nil)
    }
}
