// SPDX-License-Identifier: BSD-2-Clause
// Everything that an engine did to a file, in order: what a crash leaves is derived from it.

/// One change of a file, or a sync.
enum Effect: Sendable {
    case write(offset: Int, bytes: [UInt8])
    case zero(offset: Int, length: Int)
    case setSize(Int)
    /// Whoever called for it: a guest's flush, or the engine.
    case sync(isGuest: Bool)

    var isSync: Bool {
        if case .sync = self { return true }
        return false
    }

    /// The bytes that it changes; nil: none, or the size.
    var range: Range<Int>? {
        switch self {
        case .write(let offset, let bytes): offset..<offset + bytes.count
        case .zero(let offset, let length): offset..<offset + length
        case .setSize, .sync: nil
        }
    }

    /// Does all of it.
    func apply(to image: ByteImage) {
        switch self {
        case .write(let offset, let bytes): image.write(bytes, at: offset)
        case .zero(let offset, let length): image.zero(offset, length)
        case .setSize(let size): image.resize(size)
        case .sync: break
        }
    }

    /// Does those sectors of it that `isKept` says.
    func applySectors(to image: ByteImage, where isKept: () -> Bool) {
        guard let range else { return apply(to: image) }
        var start = range.lowerBound
        while start < range.upperBound {
            // Sectors of the disk, which a write need not begin at.
            let end = min((start / sectorSize + 1) * sectorSize, range.upperBound)
            if isKept() {
                switch self {
                case .write(let offset, let bytes):
                    bytes.withUnsafeBytes {
                        image.write(.init(rebasing: $0[(start - offset)..<(end - offset)]), at: start)
                    }
                case .zero: image.zero(start, end - start)
                case .setSize, .sync: break
                }
            }
            start = end
        }
    }

    /// One line.
    var description: String {
        switch self {
        case .write(let offset, let bytes): "write \(bytes.count) at \(offset)"
        case .zero(let offset, let length): "zero \(length) at \(offset)"
        case .setSize(let size): "size \(size)"
        case .sync(let isGuest): isGuest ? "sync (guest)" : "sync"
        }
    }
}

/// The file before, and the effects since.
struct EffectLog: Sendable {
    /// Before the first effect; all of it is durable.
    let base: ByteImage
    /// In the order in which they were in the file.
    var effects: [Effect] = []

    /// The last effects before a position, with their numbers.
    func tail(_ position: Int, count: Int = 24) -> String {
        let end = min(max(position, 0), effects.count)
        return (max(0, end - count)..<end).map { "  \($0): \(effects[$0].description)" }.joined(separator: "\n")
    }
}

/// A file that follows a log step by step: what a killed process leaves is all that it did.
struct LogReplay {
    let log: EffectLog
    /// After ``position`` effects.
    let image: ByteImage
    /// Effects that are done.
    private(set) var position = 0

    init(_ log: EffectLog) {
        self.log = log
        image = log.base.copy()
    }

    /// Goes on to a later position.
    mutating func advance(to target: Int) {
        while position < min(target, log.effects.count) {
            log.effects[position].apply(to: image)
            position += 1
        }
    }
}
