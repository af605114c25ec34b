// SPDX-License-Identifier: BSD-2-Clause
// What a guest asks for, as the engine takes it where an image does not have the data ready at one place.

/// A request that goes through the engine. Its offset and length lie within the disk and are whole sectors of 512 bytes.
public protocol EngineOperation: AnyObject, Sendable {
    /// What to do.
    var kind: EngineOperationKind { get }
    /// Bytes of the disk.
    var offset: UInt64 { get }
    /// Bytes.
    var length: UInt64 { get }
    /// Copies data of a write, from `position` of the operation's data on, to all of `target`.
    func copyData(to target: inout MutableRawSpan, from position: UInt64)
    /// Takes data of a read: all of `source` stands at `position` of the operation's data.
    func takeData(_ source: RawSpan, at position: UInt64)
    /// It is done: 0 or a negative errno. Once, on any thread; the engine holds no lock then.
    func finish(_ status: Int32)
    /// It waited for another operation that is done now: `perform` wants to be called again. Any thread, no lock is held; it
    /// may be called before the `perform` that says `waiting` has returned.
    func resume()
}

/// What an operation does.
public enum EngineOperationKind: Sendable, Equatable {
    /// Fills the data of the operation.
    case read
    /// Stores them.
    case write
    /// Makes the range read as zeroes; with `mayFree` its clusters may be given back.
    case zeroes(mayFree: Bool)
    /// The guest needs the range no more. Whole clusters read as zeroes then.
    case discard
}
