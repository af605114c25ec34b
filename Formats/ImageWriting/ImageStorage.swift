// SPDX-License-Identifier: BSD-2-Clause
// What an engine changes: the file of an image, and what lies below the image. Real files and simulated disks stand behind it.
import ImageCore

/// The file or device of an image that is written. Any thread, several at once.
///
/// All calls return 0 or a negative errno.
public protocol ImageStorage: ImageReader {
    /// A file that grows; false: a device, whose size stays.
    var isGrowable: Bool { get }
    /// Bytes that the file has, where those are fewer than ``size``: somebody has cut it off. nil: it has them all, or its size is
    /// being changed by this process at the moment, or it is a device.
    var cutOffSize: UInt64? { get }
    /// Puts all of `bytes` at `offset`: metadata, or a part of a sector. They survive the end of the process, and a loss of power only after ``sync()``.
    func write(_ bytes: RawSpan, at offset: UInt64) -> Int32
    /// The same for data of the guest: whole sectors of 512 bytes, from memory that is aligned to 512 bytes.
    func writeData(_ bytes: RawSpan, at offset: UInt64) -> Int32
    /// Reads data of the guest, as `read` does, under the same conditions.
    func readData(into buffer: inout MutableRawSpan, at offset: UInt64) -> Int32
    /// Makes everything durable that was written, zeroed and grown before the call.
    func sync() -> Int32
    /// Makes a range read as zeroes, and gives its space back where the file system can.
    func zero(_ offset: UInt64, _ length: UInt64) -> Int32
    /// Makes the file so many bytes long; what is new reads as zeroes. One thread at a time, as `extend`.
    func setSize(_ size: UInt64) -> Int32
    /// Puts `bytes` at `offset`, at or behind the end, where the file ends with them then; what lies between reads as zeroes.
    func extend(_ bytes: RawSpan, at offset: UInt64) -> Int32
}

extension ImageStorage {
    /// Not known.
    public var cutOffSize: UInt64? { nil }
    /// As metadata.
    public func writeData(_ bytes: RawSpan, at offset: UInt64) -> Int32 { write(bytes, at: offset) }
    /// As metadata.
    public func readData(into buffer: inout MutableRawSpan, at offset: UInt64) -> Int32 {
        read(into: &buffer, at: offset)
    }
    /// In two steps.
    public func extend(_ bytes: RawSpan, at offset: UInt64) -> Int32 {
        let code = setSize(offset + UInt64(bytes.byteCount))
        return code == 0 ? write(bytes, at: offset) : code
    }
}

/// What an image shows where it has nothing of its own. Any thread, several at once.
public protocol LowerLayer: AnyObject, Sendable {
    /// Bytes; behind them are zeroes.
    var size: UInt64 { get }
    /// Fills all of `buffer` from `offset`, with zeroes behind the end.
    ///
    /// - Returns: 0 or a negative errno.
    func read(into buffer: inout MutableRawSpan, at offset: UInt64) -> Int32
}
