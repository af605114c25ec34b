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

/// Where data stand.
public enum Place: Sendable, Equatable {
    /// All of them, from this offset of the file on.
    case file(UInt64)
    /// They read as zeroes.
    case zeroes
    /// The engine has to do it.
    case engine
}

/// How far an operation is.
public enum Progress: Sendable, Equatable {
    /// `finish` was called.
    case finished
    /// It meets another one, and `resume` is called when that is done.
    case waiting
    /// `finish` is called when the engine has committed it.
    case committing
}

/// What there is to do for the committer of an engine.
public enum CommitNeed: Sendable, Comparable {
    /// Nothing.
    case nothing
    /// What has time: more of its kind may come.
    case later
    /// Somebody waits, or will soon.
    case now
}

/// An engine with work that many operations wait for together, for one thread at a time.
public protocol CommittingEngine: AnyObject, Sendable {
    /// What there is to do. Any thread.
    var pending: CommitNeed { get }
    /// One cycle.
    ///
    /// - Returns: true if there is more to do at once.
    @discardableResult
    func commit() -> Bool
    /// Who is told that ``commit()`` has something to do. Any thread; the engine may hold locks then.
    func wakeCommitter(by body: @escaping @Sendable () -> Void)
}
