// SPDX-License-Identifier: BSD-2-Clause
// A qcow2 image that is written: one state for all queues of a disk.
//
// The rules that keep the image whole at every moment, whatever is cut off (docs/qcow.md):
//   R1  a cluster's refcount is durable before anything refers to it    Allocator.own, then a sync
//   R2  a table is durable before anything refers to it                 ensureTable, Allocator.settle, growTable
//   R3  an entry is in the file before its operation finishes; what was copied is durable before the entry   commit
//   R4  a reserved cluster reads as zeroes                              Allocator.own
//   R5  a reference is durably gone before its cluster is free          commit, Grace
//   R6  nothing is zeroed that holds data                               Grace, ClusterPlan
//
// Order of locks: a range of the disk, a piece of a table, the metadata, one of the small ones (pool, lists).
import Glibc
import ImageCore
import ImageWriting
import QCOW2
import Synchronization

/// The engine of one image.
///
/// `@unchecked Sendable`: what changes is atomic or under the lock that is named with it.
public final class ImageEngine: @unchecked Sendable {
    let storage: any ImageStorage
    /// Where the guest's data are: the same, or the external data file.
    let data: any ImageStorage
    let below: (any LowerLayer)?
    let options: EngineOptions
    /// The image as it was opened.
    public let image: QCOWImage
    /// The way to the data; also for reading what the engine does not read itself.
    public let map: ClusterMap
    let geometry: QCOWGeometry
    /// What was done.
    public let counters = EngineCounters()
    let grace = Grace()
    /// Reads what only the plugin can: deflated clusters. Fills all of a buffer from an offset within the cluster.
    let expand: ClusterReader?

    /// Fills a buffer from `start` of the cluster that is deflated in `length` bytes at `place` of the file: 0 or -errno.
    public typealias ClusterReader =
        @Sendable (_ buffer: inout MutableRawSpan, _ start: Int, _ place: UInt64, _ length: Int) -> Int32

    /// Around `allocator` and `scan`.
    let metadataLock = Lock()
    var allocator: Allocator
    var scan: ImageScan?

    /// Around `pool`.
    let poolLock = Lock()
    var pool = ClusterRuns()
    /// Clusters to reserve next time.
    let reserveSize: Atomic<Int>
    /// The pool's count, for a look without the lock.
    let poolCount = Atomic<Int>(0)
    /// The last attempt to reserve failed; only a request that needs a cluster tries again.
    let reserveFailed = Atomic<Bool>(false)

    /// Around `ranges`.
    let rangeLock = Lock()
    var ranges = RangeLocks<any EngineOperation>()

    /// Around `commits`, `unmapped` and `scanWaiters`.
    let listLock = Lock()
    var commits: [CommitRecord] = []
    /// Clusters whose references were removed from the file, a time for each reference.
    var unmapped: [FreedCluster] = []

    /// Changes wait for the scan: whoever made the image may have let tables, data and refcounts stand in each other, and a change of one
    /// would be a change of the other. Where a predecessor has looked, they wait only on a device, whose size tells nothing of what
    /// is free, and where very many tables of snapshots leave open where data may not go.
    let waitsForScan: Bool
    /// Those that wait.
    var scanWaiters: [any EngineOperation] = []
    /// ``scan`` is over.
    let isScanned = Atomic<Bool>(false)
    /// ``scan`` reads before a change waits for it.
    let readsAhead = Atomic<Bool>(false)

    // The committer's own:
    /// What the scan ended with the last time, where changes wait for it.
    var scanError: Int32 = 0
    var waiting: [FreedCluster] = []
    var waitingIsDurable = false
    var released: [UInt64] = []

    /// The refcounts are not up to date yet: ImageRebuild.
    let isDirty: Atomic<Bool>
    /// Indexes of L1 entries that claimed a table which others have too, under `metadataLock`.
    var disowned = ClusterSet()
    let isPrepared: Atomic<Bool>
    /// What every change and flush ends with; 0: none.
    let failureCode: Atomic<Int32>
    let byteCount: Atomic<UInt64>
    private let observer = Mutex<Observer?>(nil)
    private let waker = Mutex<Waker?>(nil)

    /// Closures behind references: each look at one that a generic holds directly would wrap it once more.
    private final class Observer: Sendable {
        let body: @Sendable (EngineEvent) -> Void
        init(_ body: @escaping @Sendable (EngineEvent) -> Void) { self.body = body }
    }
    private final class Waker: Sendable {
        let body: @Sendable () -> Void
        init(_ body: @escaping @Sendable () -> Void) { self.body = body }
    }

    /// Where the L1 table stands, under `metadataLock`: it moves when the disk grows.
    var l1Offset: UInt64
    var l1Capacity: UInt64

    /// Opens an image for writing. Nothing is changed before the first change of the guest.
    ///
    /// `opened`: the image, where header and L1 table were read already. `data`: its external data file, if it has one.
    public init(
        _ storage: any ImageStorage, opened: QCOWImage? = nil, data: (any ImageStorage)? = nil,
        below: (any LowerLayer)?, options: EngineOptions,
        expand: ClusterReader? = nil
    ) throws(ImageError) {
        let image = if let opened { opened } else { try QCOWImage(storage) }
        try image.judgeForWriting()
        if image.header.hasDataFile { try image.judge(data) }
        let synced = SyncedStorage(storage)
        let dataSynced = data.map { SyncedStorage($0) } ?? synced
        (self.storage, self.data) = (synced, dataSynced)
        self.below = below
        self.options = options
        self.image = image
        self.expand = expand
        geometry = QCOWGeometry(image.header)
        map = try ClusterMap(
            image, reading: synced, cacheBytes: options.cacheBytes, canGrow: true,
            dataBytes: data?.size ?? 0)
        // What the L1 table claims is believed when it was compared with the refcounts: ensureTable.
        // Of indices here and wherever millions of entries are looked at: enumerated() takes seconds where nothing is optimised.
        for index in image.l1.indices where image.l1[index] & L2Entry.copied != 0 {
            map.setL1(index, image.l1[index] & ~L2Entry.copied)
        }
        let (metadata, snapshots, isKnown) = try image.metadataClusters(storage)
        waitsForScan = !options.isVouched || image.isDirty || !storage.isGrowable || !isKnown
        allocator = try Allocator(synced, image.header, metadata: metadata)
        let blocks = allocator.refcounts.table
        for index in blocks.indices where blocks[index] != 0 {
            guard allocator.metadata.insert(blocks[index] >> geometry.clusterBits) else {
                throw .damaged("refcount block \(index) overlaps another table")
            }
        }
        scan = ImageScan(image, snapshots: snapshots.entries)
        // Without such features there is nothing to prepare; the writer before has switched them off.
        isPrepared = Atomic(
            image.header.autoclear & ~image.keptFeatures == 0 && !Self.endsWithinCluster(storage, geometry))
        isDirty = Atomic(image.isDirty)
        reserveSize = Atomic(options.reserve.lowerBound)
        failureCode = Atomic(options.hasFailed ? -EIO : 0)
        byteCount = Atomic(image.size)
        (l1Offset, l1Capacity) = (image.header.l1Offset, image.header.l1Count)
        unsafe map.judge = { [unowned self] in judge($0) }
        unsafe synced.whenFailed = { [unowned self] in fail($0) }
        unsafe dataSynced.whenFailed = { [unowned self] in fail($0) }
    }

    /// Bytes of the disk.
    public var size: UInt64 { byteCount.load(ordering: .acquiring) }
    /// What every change ends with, a negative errno; 0: the disk is well.
    public var failure: Int32 { failureCode.load(ordering: .acquiring) }

    /// Who is told what the operator should know. Any thread; the engine may hold locks then.
    public func observe(_ body: @escaping @Sendable (EngineEvent) -> Void) { observer.withLock { $0 = Observer(body) } }
    /// Who is told that ``commit()`` has something to do. Any thread; the engine may hold locks then.
    public func wakeCommitter(by body: @escaping @Sendable () -> Void) { waker.withLock { $0 = Waker(body) } }

    func tell(_ event: EngineEvent) { observer.withLock { $0 }?.body(event) }
    /// Some thread commits when it is told to.
    var hasCommitter: Bool { waker.withLock { $0 } != nil }
    func wake() { waker.withLock { $0 }?.body() }

    /// Before a place is asked for that is then used, and around ``perform(_:)``. `place`: 0 for helper threads; queues have
    /// others, so that they do not write the same cache lines.
    @inline(__always)
    public func begin(at place: UInt8 = 0) -> EngineToken { grace.begin(place) }
    /// When the I/O that used the place has ended.
    @inline(__always)
    public func end(_ token: EngineToken) { grace.end(token) }

    /// Bounds, and what lies below a cluster.
    func rules(at cluster: UInt64) -> PlanRules {
        let start = cluster << geometry.clusterBits
        return PlanRules(
            version: geometry.version, hasLower: start < below?.size ?? 0, home: geometry.hasDataFile ? start : nil)
    }

    // MARK: Failures

    /// A sync failed: nobody knows what of the data is durable, so nothing is written any more (R9).
    public func fail(_ code: Int32) {
        let (isFirst, _) = failureCode.compareExchange(expected: 0, desired: -EIO, ordering: .sequentiallyConsistent)
        guard isFirst else { return }
        options.whenFailed?()
        tell(.failed(code < 0 ? -code : code))
    }

    /// Damage, where somebody has cut the file off: what was behind would come back as zeroes when it is written to. Any thread; one
    /// system call.
    public func examineEnd() {
        examineEnd(storage)
        if geometry.hasDataFile { examineEnd(data) }
    }

    private func examineEnd(_ file: any ImageStorage) {
        guard let now = file.cutOffSize else { return }
        damaged("the file has \(now) bytes and had \(file.size): somebody has cut it off")
    }

    /// Damage was seen: the image is marked, where its version can be, and nothing else is written any more.
    func damaged(_ what: String) {
        let (isFirst, _) = failureCode.compareExchange(expected: 0, desired: -EIO, ordering: .sequentiallyConsistent)
        guard isFirst else { return }
        options.whenFailed?()
        if geometry.version >= 3 {
            let known = image.header.incompatible & ~QCOWHeader.Incompatible.dirty
            let dirty = isDirty.load(ordering: .acquiring) ? QCOWHeader.Incompatible.dirty : 0
            let bits = known | dirty | QCOWHeader.Incompatible.corrupt
            _ = storage.write(number: bits, at: 72)
            _ = storage.sync()
        }
        tell(.damaged(what))
    }

    /// R9: everything that was answered is in the file or files, so a sync of them is all; after a failure nothing can be promised.
    ///
    /// - Returns: 0 or a negative errno.
    public func flush() -> Int32 {
        if failure == 0, sync() == 0 { examineEnd() }
        return failure
    }

    /// A sync of the engine itself: data before what refers to them.
    func sync() -> Int32 {
        var code = geometry.hasDataFile ? data.sync() : 0
        if code == 0 { code = storage.sync() }
        return code
    }

    // MARK: Before the first change

    /// A file may end in the middle of its last cluster, behind the last subcluster that was written. The others are written in
    /// place later, so the cluster must be there.
    private static func endsWithinCluster(_ storage: any ImageStorage, _ geometry: QCOWGeometry) -> Bool {
        geometry.isExtended && storage.isGrowable && storage.size & (geometry.clusterSize - 1) != 0
    }

    /// Switches features off that the engine does not keep up, and makes that durable.
    func prepare() throws(ImageError) {
        if isPrepared.load(ordering: .acquiring) { return }
        try metadataLock.locked { () throws(ImageError) in
            if isPrepared.load(ordering: .acquiring) { return }
            if image.header.autoclear & ~image.keptFeatures != 0 {
                try check(
                    storage.write(number: image.header.autoclear & image.keptFeatures, at: 88),
                    "cannot write the header")
                try check(sync(), "cannot make the header durable")
                if image.header.autoclear & 1 != 0, let bitmaps = image.header.bitmaps { tell(.bitmapsEnded(bitmaps)) }
            }
            if Self.endsWithinCluster(storage, geometry) {
                let whole = geometry.clusters(of: storage.size) << geometry.clusterBits
                try check(storage.setSize(whole), "cannot make the file longer")
                map.fileEnd = max(map.fileEnd, storage.size)
            }
            isPrepared.store(true, ordering: .releasing)
        }
        if options.followsUncleanEnd { wake() }
    }

    /// Takes ``L2Entry/copied`` from entries of a piece that do not own what they point to, which is damage. So is an entry
    /// that points into a table.
    private func judge(_ piece: ClusterMap.Piece) {
        // Nothing is believed of refcounts that are not up to date, and all pieces are read again when they are.
        if isDirty.load(ordering: .acquiring) {
            for index in 0..<piece.count { piece.disown(index) }
            return
        }
        var damage: String?
        metadataLock.locked {
            for index in 0..<piece.count {
                let entry = piece[index]
                if piece.isExtended, let fault = entry.bitmapFault {
                    damage = "\(fault) (the entry at offset \(piece.offset(of: index)) of the file)"
                    piece.disown(index)
                    continue
                }
                if let clusters = entry.clusters(clusterBits: geometry.clusterBits),
                    clusters.contains(where: { allocator.metadata.contains($0) })
                {
                    damage =
                        "an L2 entry points to offset \(clusters.lowerBound << geometry.clusterBits), where a table stands"
                    piece.disown(index)
                    continue
                }
                guard entry.raw & L2Entry.copied != 0 else { continue }
                let cluster = entry.place >> geometry.clusterBits
                let count = try? allocator.refcounts.count(of: cluster)
                let isPlain = !entry.isCompressed && entry.place & (geometry.clusterSize - 1) == 0 && entry.place != 0
                if isPlain, count == 1 { continue }
                piece.disown(index)
                if count != nil {
                    damage = "an L2 entry claims offset \(entry.place) of the file for itself, which is not its own"
                }
            }
        }
        if let damage { damaged(damage) }
    }
}

extension QCOWImage {
    /// Refuses to write what can only be read.
    func judgeForWriting() throws(ImageError) {
        if let l1Fault { throw .damaged(l1Fault) }
        guard header.version >= 2 else {
            throw ImageError(
                .unsupported,
                "images of version 1 (qcow) can only be read: attach the disk read-only, or convert the image (qemu-img "
                    + "convert -O qcow2)")
        }
        guard !isEncrypted else {
            throw ImageError(
                .unsupported,
                "images that are encrypted with AES can only be read: attach the disk read-only, or convert the image")
        }
        guard !isDirty || !header.hasDataFile && !header.hasUnknownExtensions else {
            throw ImageError(
                .unsupported,
                "the image was not closed by its last writer, its refcounts are not up to date, and it has "
                    + (header.hasDataFile ? "an external data file" : "unknown extensions")
                    + ": repair it with qemu-img check -r all")
        }
    }

    /// Autoclear features that the engine keeps up.
    var keptFeatures: UInt64 { header.hasDataFile ? QCOWHeader.rawDataFile : 0 }

    /// Refuses an image whose data file cannot be written.
    func judge(_ data: (any ImageStorage)?) throws(ImageError) {
        guard let data else { throw ImageError(.invalid, "the data file of the image was not opened") }
        guard header.snapshotCount == 0 else {
            throw ImageError(
                .unsupported, "the image has internal snapshots and an external data file, which has no room for them")
        }
        guard data.size >= size else {
            throw ImageError(
                .invalid,
                "the data file has \(data.size) bytes and the disk \(size): if it is the right one, truncate -s \(size) "
                    + "makes it as long")
        }
    }

    /// All clusters of the header and of tables that are known without reading L2 tables; no two overlap.
    ///
    /// - Returns: them; the snapshots; and whether the L2 tables of all snapshots are among them.
    func metadataClusters(_ storage: any ImageStorage) throws(ImageError) -> (ClusterSet, SnapshotTable, Bool) {
        let geometry = QCOWGeometry(header)
        var found = ClusterSet()
        func add(_ what: String, _ offset: UInt64, _ bytes: UInt64) throws(ImageError) {
            let first = offset >> geometry.clusterBits
            guard found.insert(first..<first + geometry.clusters(of: bytes)) else {
                throw .damaged("its \(what) overlaps another table")
            }
        }
        try add("header", 0, geometry.clusterSize)
        try add("L1 table", header.l1Offset, header.l1Count * 8)
        try add("refcount table", header.refcountOffset, UInt64(header.refcountClusters) << geometry.clusterBits)
        let snapshots = try SnapshotTable(storage, header)
        if header.snapshotCount > 0 { try add("table of snapshots", header.snapshotOffset, snapshots.byteCount) }
        for (index, entry) in snapshots.entries.enumerated() where entry.l1Count > 0 {
            try add("L1 table of snapshot \(index)", entry.l1Offset, entry.l1Count * 8)
        }
        for index in l1.indices where l1[index] != 0 {
            guard found.insert((l1[index] & L2Entry.offsetMask) >> geometry.clusterBits) else {
                throw .damaged("the L2 table of entry \(index) of its L1 table overlaps another table")
            }
        }
        // Bytes of L1 tables: a thousand snapshots of a disk of 1 TiB.
        var budget: UInt64 = 16 << 20
        for snapshot in snapshots.entries {
            guard snapshot.l1Count * 8 <= budget else { return (found, snapshots, false) }
            budget -= snapshot.l1Count * 8
            try storage.forEachNonZeroWord(at: snapshot.l1Offset, count: Int(snapshot.l1Count)) { _, word in
                let place = word & L2Entry.offsetMask
                if place < storage.size { found.insert(place >> geometry.clusterBits) }
            }
        }
        return (found, snapshots, true)
    }
}
