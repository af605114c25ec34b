// SPDX-License-Identifier: BSD-2-Clause
// A file in memory that logs each effect, and fails where a test wants it to.
import Foundation
import ImageCore
import ImageWriting
import QCOWEngine

/// What goes wrong at one effect.
enum StorageFault: CaseIterable, Sendable {
    /// Nothing lands, and it is said.
    case inputOutputError
    /// No room.
    case noSpace
    /// A part of the sectors lands, then an error.
    case short
}

/// What a simulated file does that a file must not do: an engine that forgot a rule looks like this from below.
struct StorageVice: Sendable {
    /// Holes do not become zeroes.
    var zeroDoesNothing = false
    /// A hole is punched so many effects later.
    var zeroDelay: Int?
    /// A hole takes so many bytes more behind its end.
    var zeroTooWide = 0
    /// Data that the engine itself writes make so many bytes behind them zeroes.
    var zeroesBehindData = 0
    /// Says that everything worked which did not.
    var hidesErrors = false
}

/// A file in memory. Any thread.
final class SimulatedStorage: ImageStorage, @unchecked Sendable {
    private let lock = NSLock()
    private let image: ByteImage
    private var recorded: EffectLog
    private let isRecording: Bool
    private var vice: StorageVice
    private var late: [(due: Int, offset: Int, length: Int)] = []
    private var attempts = 0
    private var fault: (number: Int, kind: StorageFault, lasts: Bool)?
    private var limit: Int?
    private var reads = 0
    private var failedRead: Int?
    private var failures = 0
    private var hasStruck = false
    private var guestSync = false
    private var wrongs: [String] = []
    let isGrowable: Bool

    /// A file that has these bytes, all of them durable.
    init(_ image: ByteImage, isGrowable: Bool = true, vice: StorageVice = StorageVice(), isRecording: Bool = true) {
        self.image = image.copy()
        recorded = EffectLog(base: image.copy())
        (self.isGrowable, self.vice, self.isRecording) = (isGrowable, vice, isRecording)
    }

    private func locked<T>(_ body: () throws -> T) rethrows -> T {
        lock.lock()
        defer { lock.unlock() }
        return try body()
    }

    /// What was done until now.
    var log: EffectLog { locked { recorded } }
    /// Effects until now: a position in the log.
    var position: Int { locked { recorded.effects.count } }
    /// Effects that were asked for, failed ones too: numbers for ``fail(at:_:lasts:)``.
    var tried: Int { locked { attempts } }
    /// The file as a process sees it now.
    var snapshot: ByteImage { locked { image.copy() } }

    /// The effect with this number, counted from 0, fails; with `lasts` all later ones too.
    func fail(at number: Int, _ kind: StorageFault, lasts: Bool = false) {
        locked { fault = (number, kind, lasts) }
    }

    /// The read with this number, counted from 0, fails.
    func failRead(at number: Int) { locked { failedRead = number } }

    /// An effect failed as ``fail(at:_:lasts:)`` said.
    var faultStruck: Bool { locked { hasStruck } }

    /// Reads until now.
    var readCount: Int { locked { reads } }

    /// Somebody else cuts the file off.
    func cutOff(_ size: Int) { locked { image.resize(size) } }

    /// No more faults.
    func heal() { locked { (fault, limit, failedRead) = (nil, nil, nil) } }

    /// The file cannot have more bytes.
    func setLimit(_ bytes: Int?) { locked { limit = bytes } }

    /// Calls that break the contract of ``ImageStorage``.
    var complaints: [String] { locked { wrongs } }

    /// A flush of the guest: the sync is told apart in the log.
    func guestFlush() -> Int32 {
        locked { guestSync = true }
        defer { locked { guestSync = false } }
        return sync()
    }

    // MARK: ImageStorage

    var size: UInt64 { locked { UInt64(image.count) } }

    func read(into buffer: inout MutableRawSpan, at offset: UInt64) -> Int32 {
        let count = buffer.byteCount
        return locked {
            reads += 1
            if reads - 1 == failedRead { return -EIO }
            guard offset <= UInt64(image.count), count <= image.count - Int(offset) else { return -EIO }
            buffer.withUnsafeMutableBytes { $0.copyMemory(from: image.part(Int(offset), count)) }
            return 0
        }
    }

    func write(_ bytes: RawSpan, at offset: UInt64) -> Int32 {
        let copy = bytes.withUnsafeBytes { [UInt8]($0) }
        return locked {
            let end = Int(offset) + copy.count
            // As of the product's file: the engine makes it longer first.
            if end > image.count { return hide(isGrowable ? -EIO : -ENOSPC) }
            return attempt(.write(offset: Int(offset), bytes: copy))
        }
    }

    func writeData(_ bytes: RawSpan, at offset: UInt64) -> Int32 {
        bytes.withUnsafeBytes { demandAligned($0.baseAddress, $0.count, offset) }
        let code = write(bytes, at: offset)
        let (end, length) = (Int(offset) + bytes.byteCount, vice.zeroesBehindData)
        return code == 0 && length > 0 ? locked { attempt(.zero(offset: end, length: length)) } : code
    }

    func readData(into buffer: inout MutableRawSpan, at offset: UInt64) -> Int32 {
        buffer.withUnsafeMutableBytes { demandAligned(UnsafeRawPointer($0.baseAddress), $0.count, offset) }
        return read(into: &buffer, at: offset)
    }

    private func demandAligned(_ base: UnsafeRawPointer?, _ count: Int, _ offset: UInt64) {
        guard UInt(bitPattern: base) % 512 != 0 || count % 512 != 0 || offset % 512 != 0 else { return }
        locked { if wrongs.count < 4 { wrongs.append("data of \(count) bytes at \(offset) are not aligned") } }
    }

    func sync() -> Int32 {
        locked {
            let code = attempt(.sync(isGuest: guestSync))
            if code != 0 { failures += 1 }
            return code
        }
    }

    /// Syncs that ended with an error.
    var failedSyncs: Int { locked { failures } }

    func zero(_ offset: UInt64, _ length: UInt64) -> Int32 {
        locked {
            if vice.zeroDoesNothing { return 0 }
            if let delay = vice.zeroDelay {
                late.append((attempts + delay, Int(offset), Int(length)))
                return 0
            }
            // A hole is in the file: what lies behind its end is not made.
            return attempt(.zero(offset: Int(offset), length: Int(length) + vice.zeroTooWide))
        }
    }

    func setSize(_ size: UInt64) -> Int32 {
        locked {
            if !isGrowable { return size == UInt64(image.count) ? 0 : hide(-EINVAL) }
            if Int(size) > image.count, Int(size) > limit ?? .max { return hide(-ENOSPC) }
            return attempt(.setSize(Int(size)))
        }
    }

    private func hide(_ code: Int32) -> Int32 { vice.hidesErrors ? 0 : code }

    private func attempt(_ effect: Effect) -> Int32 {
        defer { punchLate() }
        let number = attempts
        attempts += 1
        guard let fault, fault.lasts ? number >= fault.number : number == fault.number else {
            record(effect)
            return 0
        }
        hasStruck = true
        switch fault.kind {
        case .inputOutputError: return hide(-EIO)
        case .noSpace: return hide(effect.isSync ? -EIO : -ENOSPC)
        case .short:
            shorten(effect)
            return hide(number % 2 == 0 ? -EIO : -ENOSPC)
        }
    }

    /// The first half of it lands.
    private func shorten(_ effect: Effect) {
        switch effect {
        case .write(let offset, let bytes):
            let count = bytes.count / 2 / sectorSize * sectorSize
            if count > 0 { record(.write(offset: offset, bytes: Array(bytes.prefix(count)))) }
        case .zero(let offset, let length):
            let count = length / 2 / sectorSize * sectorSize
            if count > 0 { record(.zero(offset: offset, length: count)) }
        case .setSize, .sync: break
        }
    }

    private func record(_ effect: Effect) {
        effect.apply(to: image)
        if isRecording { recorded.effects.append(effect) }
    }

    private func punchLate() {
        while let next = late.first, next.due <= attempts {
            late.removeFirst()
            record(.zero(offset: next.offset, length: next.length))
        }
    }
}

/// What lies below an image: bytes that never change.
final class SimulatedLayer: LowerLayer, @unchecked Sendable {
    private let image: ByteImage
    init(_ image: ByteImage) { self.image = image }
    var size: UInt64 { UInt64(image.count) }

    func read(into buffer: inout MutableRawSpan, at offset: UInt64) -> Int32 {
        buffer.withUnsafeMutableBytes { target in
            let source = image.part(Int(offset), target.count)
            target.copyMemory(from: source)
            for index in source.count..<target.count { target[index] = 0 }
        }
        return 0
    }
}
