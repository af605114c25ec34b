// SPDX-License-Identifier: BSD-2-Clause
// What a block device can do: ioctls for the sizes, sysfs (Documentation/ABI/stable/sysfs-block) for the rest.
import CLinux
import Glibc
import PluginKit

/// The limits of one block device, read once while it is opened.
struct BlockLimits {
    let logicalBlock: UInt32
    let physicalBlock: UInt32
    let optimalIO: UInt32
    let canDiscard: Bool
    let canEraseSecurely: Bool
    let discardGranularity: UInt32
    let discardOffset: UInt32
    /// The device has a command that zeroes blocks, so zeroing is not writing.
    let zeroesWithoutWriting: Bool
    /// Completed writes may be in a cache that loses power: flushes are needed.
    let hasVolatileCache: Bool
    let isRotational: Bool

    init(fd: Int32, device: UInt64) throws(PluginError) {
        var logical: Int32 = 0
        guard unsafe clinux_ioctl_pointer(fd, clinux_BLKSSZGET, &logical) == 0 else {
            throw PluginError(system: "the device does not tell its sector size")
        }
        guard logical == 512 || logical == 4096 else {
            throw PluginError(EINVAL, "sectors of \(logical) bytes are not supported, only 512 and 4096")
        }
        logicalBlock = UInt32(logical)
        var (physical, optimal): (UInt32, UInt32) = (0, 0)
        let hasPhysical = unsafe clinux_ioctl_pointer(fd, clinux_BLKPBSZGET, &physical) == 0
        physicalBlock = hasPhysical ? max(physical, UInt32(logical)) : UInt32(logical)
        optimalIO = unsafe clinux_ioctl_pointer(fd, clinux_BLKIOOPT, &optimal) == 0 ? optimal : 0

        let files = BlockDeviceFiles(device: device)
        canDiscard = (files.queueNumber("discard_max_bytes") ?? 0) > 0
        let granularity = UInt32(clamping: files.queueNumber("discard_granularity") ?? 0)
        discardGranularity = granularity
        let alignment = UInt32(clamping: files.deviceNumber("discard_alignment") ?? 0)
        discardOffset = granularity > 0 ? alignment % granularity : 0
        zeroesWithoutWriting = (files.queueNumber("write_zeroes_max_bytes") ?? 0) > 0
        // Unknown is taken for volatile: a flush too many costs time, one too few costs data.
        hasVolatileCache = files.queueText("write_cache") != "write through"
        isRotational = (files.queueNumber("rotational") ?? 0) == 1
        canEraseSecurely = BlockLimits.canEraseSecurely(fd)
    }

    /// Nothing in sysfs says so.  The kernel looks whether the device can before it looks at the range, so a range off
    /// every sector gives EINVAL where it can and erases nothing.
    private static func canEraseSecurely(_ fd: Int32) -> Bool {
        var range: (UInt64, UInt64) = (1, 1)
        return unsafe clinux_ioctl_pointer(fd, clinux_BLKSECDISCARD, &range) != 0 && errno == EINVAL
    }
}

/// The sysfs files of a disk or partition.
private struct BlockDeviceFiles {
    private let folder: String
    /// A partition has no queue of its own.
    private let queue: String

    init(device: UInt64) {
        folder = "/sys/dev/block/\(clinux_major(device)):\(clinux_minor(device))"
        let isPartition = unsafe access("\(folder)/partition", F_OK) == 0
        queue = isPartition ? "\(folder)/../queue" : "\(folder)/queue"
    }

    func queueText(_ name: String) -> String? { BlockDeviceFiles.read("\(queue)/\(name)") }
    func queueNumber(_ name: String) -> UInt64? { queueText(name).flatMap { UInt64($0) } }
    func deviceNumber(_ name: String) -> UInt64? { BlockDeviceFiles.read("\(folder)/\(name)").flatMap { UInt64($0) } }

    /// The first line of a small file, or nil.
    private static func read(_ path: String) -> String? {
        let fd = unsafe clinux_open(path, O_RDONLY | O_CLOEXEC, 0)
        guard fd >= 0 else { return nil }
        defer { close(fd) }
        var bytes = [UInt8](repeating: 0, count: 128)
        let count = unsafe Glibc.read(fd, &bytes, bytes.count)
        guard count > 0 else { return nil }
        return String(decoding: bytes[..<count].prefix { $0 != UInt8(ascii: "\n") }, as: UTF8.self)
    }
}
