// SPDX-License-Identifier: BSD-2-Clause
// A VHD that is read and written: one state for all queues of a disk.
//
// The rules that keep the image whole at every moment, whatever is cut off (docs/vhd.md):
//   V1  a block is in the file, with its bitmap and a footer behind it, and durable, before the block table refers to it   reserve
//   V2  a reserved block reads as zeroes, or as the parent: publishing it changes nothing that can be read                 reserve
//   V3  data are durable before the bits that say that they are there                                                      commit
//   V4  what an operation changed is in the file before it finishes: it survives the end of the process
//   V5  nothing outside of the blocks of the table is written but entries, bitmaps, and what stands behind the last block
//   V6  no block is ever given back, and no bit taken back: a place that was looked up stays right
//   V7  the file ends with a footer, durable, before anything of the guest is changed: its last sector is never the guest's         endFile
//
// Order of locks: a range of the disk, the end of the file, the metadata, a place of the bitmaps.
import Glibc
import ImageCore
import ImageWriting
import Synchronization
import VHD

/// The engine of one image.
///
/// `@unchecked Sendable`: what changes is atomic or under the lock that is named with it.
public final class VHDEngine: CommittingEngine, LowerLayer, @unchecked Sendable {
    let storage: any ImageStorage
    let below: (any LowerLayer)?
    /// Bytes of what lies below; 0: nothing does.
    let lowerSize: UInt64
    let options: VHDOptions
    /// The image as it was opened.
    public let image: VHDImage
    /// What was done.
    public let counters = VHDCounters()
    /// Bytes of the disk.
    public let size: UInt64

    let map: BlockMap
    /// nil: a fixed disk.
    let bitmaps: BitmapCache?
    let blockBits: UInt64
    let blockSize: UInt64
    let bitmapSize: UInt64

    /// Around the end of the file.
    let growth: Mutex<Growth>
    /// Around the reserve, and the block table in the file.
    let metadata: Mutex<Reserve>
    /// With fewer reserved blocks the committer reserves more.
    let lowMark: Atomic<Int>
    /// Around the ranges that are being changed.
    let ranges = Mutex(RangeLocks<any EngineOperation>())
    let commits = Mutex<[CommitRecord]>([])
    /// V7: the file ends with a footer; else all changes take the long way.
    let isEnded: Atomic<Bool>
    /// The last attempt to reserve failed; only an operation that needs a block tries again.
    let reserveFailed = Atomic<Bool>(false)
    /// That no block can be added was told.
    let isFullTold = Atomic<Bool>(false)

    /// What every change and flush ends with; 0: the disk is well.
    private let failureCode: Atomic<Int32>
    private let observer = Mutex<Observer?>(nil)
    private let waker = Mutex<Waker?>(nil)

    /// Closures behind references: each look at one that a generic holds directly would wrap it once more.
    private final class Observer: Sendable {
        let body: @Sendable (VHDEvent) -> Void
        init(_ body: @escaping @Sendable (VHDEvent) -> Void) { self.body = body }
    }
    private final class Waker: Sendable {
        let body: @Sendable () -> Void
        init(_ body: @escaping @Sendable () -> Void) { self.body = body }
    }

    /// Opens an image. Nothing is changed before the first change of the guest.
    ///
    /// `below`: the parent of a differencing disk.
    public init(
        _ storage: any ImageStorage, opened: VHDImage? = nil, below: (any LowerLayer)?, options: VHDOptions
    ) throws(ImageError) {
        let image = if let opened { opened } else { try VHDImage(storage) }
        guard (image.footer.kind == .differencing) == (below != nil) else {
            throw ImageError(.invalid, "the parent of the image was not opened")
        }
        let synced = SyncedStorage(storage)
        self.storage = synced
        self.below = below
        lowerSize = below?.size ?? 0
        self.options = options
        failureCode = Atomic(options.hasFailed ? -EIO : 0)
        self.image = image
        size = image.size
        map = BlockMap(image.table)
        bitmaps = image.header.map { BitmapCache($0, memory: options.cacheBytes) }
        blockSize = image.header?.blockSize ?? 0
        bitmapSize = image.header?.bitmapSize ?? 0
        blockBits = UInt64(blockSize.trailingZeroBitCount)
        metadata = Mutex(try Reserve(synced, image, options))
        growth = Mutex(Growth(nextCount: options.reserve.lowerBound))
        isEnded = Atomic(image.hasWholeFooter || image.header == nil)
        lowMark = Atomic(max(1, options.reserve.lowerBound / 2))
        unsafe synced.whenFailed = { [unowned self] in fail($0) }
    }

    // MARK: Places

    /// Where all bytes of a read stand, if that is known without sleeping.
    @inline(__always)
    public func placeOfRead(_ offset: UInt64, _ length: UInt64) -> Place {
        guard let bitmaps else { return .file(offset) }
        let block = offset >> blockBits
        guard (offset &+ length &- 1) >> blockBits == block else { return .engine }
        let entry = map[Int(block)]
        let showsZeroes = offset >= lowerSize
        guard entry.isThere else { return showsZeroes ? .zeroes : .engine }
        let within = offset & (blockSize - 1)
        let place = Place.file(entry.place &+ bitmapSize &+ within)
        if entry.isFull { return place }
        guard entry.isPartial else { return .engine }
        switch bitmaps.look(Int(block), Self.sectors(within, length)) {
        case .allSet: return place
        case .noneSet: return showsZeroes ? .zeroes : .engine
        case .mixed, .unknown: return .engine
        }
    }

    /// Where all bytes of a write go, if they have a place that is known without sleeping.
    @inline(__always)
    public func placeOfWrite(_ offset: UInt64, _ length: UInt64) -> Place {
        guard failure == 0, !options.isReadOnly else { return .engine }
        guard let bitmaps else { return .file(offset) }
        guard isEnded.load(ordering: .relaxed) else { return .engine }
        let block = offset >> blockBits
        guard (offset &+ length &- 1) >> blockBits == block else { return .engine }
        let entry = map[Int(block)]
        guard entry.isThere else { return .engine }
        let within = offset & (blockSize - 1)
        if !entry.isFull {
            guard entry.isPartial, bitmaps.look(Int(block), Self.sectors(within, length)) == .allSet else {
                return .engine
            }
        }
        return .file(entry.place &+ bitmapSize &+ within)
    }

    /// The sectors of a block that have these bytes of it.
    @inline(__always)
    static func sectors(_ within: UInt64, _ length: UInt64) -> Range<Int> {
        Int(within >> 9)..<Int((within &+ length &+ 511) >> 9)
    }

    // MARK: Failures

    /// What every change ends with, a negative errno; 0: the disk is well.
    public var failure: Int32 { failureCode.load(ordering: .acquiring) }

    /// A sync failed: nobody knows what of the data is durable, so nothing is written any more.
    public func fail(_ code: Int32) { end(.failed(code < 0 ? -code : code)) }

    /// The end of all writing where somebody has cut the file off: what was behind would come back as zeroes around what is written.
    /// Any thread; one system call.
    public func examineEnd() { if let now = storage.cutOffSize { end(.cutOff(now)) } }

    private func end(_ event: VHDEvent) {
        let (isFirst, _) = failureCode.compareExchange(expected: 0, desired: -EIO, ordering: .sequentiallyConsistent)
        guard isFirst else { return }
        options.whenFailed?()
        tell(event)
    }

    /// Everything that was answered is in the file, so a sync of it is all: 0 or a negative errno. May sleep.
    public func flush() -> Int32 { sync() }

    func sync() -> Int32 {
        if failure == 0, storage.sync() == 0 { examineEnd() }
        return failure
    }

    /// Who is told what the operator should know. Any thread; the engine may hold locks then.
    public func observe(_ body: @escaping @Sendable (VHDEvent) -> Void) { observer.withLock { $0 = Observer(body) } }
    /// Who is told that ``commit()`` has something to do. Any thread; the engine may hold locks then.
    public func wakeCommitter(by body: @escaping @Sendable () -> Void) { waker.withLock { $0 = Waker(body) } }

    func tell(_ event: VHDEvent) { observer.withLock { $0 }?.body(event) }
    func wake() { waker.withLock { $0 }?.body() }
}
