// SPDX-License-Identifier: BSD-2-Clause
// An open image: its layer, what lies below it, its engine if it is written, its threads and its queues.
import FileKit
import Glibc
import ImageCore
import ImageKit
import ImageWriting
import PluginAPI
import PluginKit
import QCOW2
import QCOWEngine
import Synchronization

/// An image that is served.
///
/// `@unchecked Sendable`: what changes is atomic, or belongs to control calls.
final class QCOWDevice: CountingDisk, ResizableDisk, MappedDisk, JobPerformer, LowerLayer, @unchecked Sendable {
    private let host: HostDisk
    let file: ImageFile
    /// Where the guest's data are: the same file, or the external data file.
    let data: ImageFile
    let image: QCOWImage
    /// The way to the data; the engine's, if there is one.
    let map: ClusterMap
    /// nil: the disk is read-only.
    let engine: ImageEngine?
    let backing: BackingFile<QCOWDevice>?
    let decryption: LibqcowFile?
    private let clusters: InflatedClusters
    private let label: String
    private let threadCount: Int
    private let discards: Bool
    /// The plugin reads it for the disk above, on that one's threads.
    private let isLower: Bool
    let pool = HelperPool()
    private var committer: Committer?
    let counters = QCOWCounters()
    private let isThreaded = Atomic<Bool>(false)

    /// The most queues.
    private static let mostQueues = 16
    /// Memory that all handles of libqcow together may take for clusters.
    private static let handleMemory: UInt64 = 128 << 20

    init(_ opening: Opening) throws(PluginError) {
        let cacheBytes = try opening[QCOWOption.cache]
        let isLocked = try opening[QCOWOption.lock]
        threadCount = Int(clamping: try opening[QCOWOption.threads])
        discards = try opening[QCOWOption.discard] == .unmap
        isLower = opening.isBacking
        let wanted = try opening[QCOWOption.direct]
        var file = try ImageFile(fd: opening.fd)
        var data: ImageFile?
        do throws(PluginError) {
            let (isReadOnly, isSuccessor) = (opening.isReadOnly, opening.isSuccessor)
            if isLocked { try ImageLock.take(fd: file.fd, isReadOnly: isReadOnly, isSuccessor: isSuccessor) }
            let found = file
            // Without the lock anybody may write.
            if opening.hasLostWrites, isLocked, !isReadOnly { ImageMark.failed.leave(fd: file.fd) }
            let mark = isSuccessor && isLocked && !isReadOnly ? ImageMark(fd: file.fd) : nil
            let image = try examining { () throws(ImageError) in
                try QCOWImage(found, isServed: mark == .failed)
            }
            // The configured format is believed, so the image must be of it.
            guard opening.format == image.header.format else {
                throw PluginError.invalid(
                    "the image is \(image.header.format) (version \(image.header.version)), and \(opening.format) was "
                        + "configured")
            }
            if let name = try Self.backingName(image.header, opening) {
                guard let below = try BackingFile<QCOWDevice>(name, opening: opening, lock: isLocked) else {
                    throw PluginError(
                        EOPNOTSUPP, "the backing file is neither raw nor an image of QEMU's formats qcow2 and qcow")
                }
                backing = below
            } else {
                backing = nil
            }
            decryption = try Self.decryption(file, image, opening)
            data = try Self.dataFile(image.header, opening, wanted, lock: isLocked)
            // With the data elsewhere there are only tables, which go through the page cache.
            if !opening.isReadOnly, data == nil {
                file.finish()
                file = try Self.fileForWriting(opening, wanted, image.header)
            }
            let (used, below, elsewhere) = (file, backing, data)
            let inflated = InflatedClusters(used, image.header, counters: counters)
            clusters = inflated
            if opening.isReadOnly {
                engine = nil
                self.image = image
                map = try examining { () throws(ImageError) in
                    try ClusterMap(
                        image, reading: used, cacheBytes: cacheBytes, dataBytes: elsewhere?.size ?? 0)
                }
            } else {
                var options = EngineOptions()
                options.cacheBytes = cacheBytes
                options.discards = discards
                options.followsUncleanEnd = opening.isSuccessor
                options.isVouched = mark == .vouched
                options.hasFailed = mark == .failed || opening.hasLostWrites
                if isLocked {
                    let fd = opening.fd
                    options.whenVouched = { ImageMark.vouched.leave(fd: fd) }
                    options.whenFailed = { ImageMark.failed.leave(fd: fd) }
                }
                let settled = options
                let engine = try examining { () throws(ImageError) in
                    try ImageEngine(used, opened: image, data: elsewhere, below: below, options: settled) {
                        buffer, start, place, length in
                        inflated.read(&buffer, from: start, at: place, length: length)
                    }
                }
                self.engine = engine
                (self.image, map) = (engine.image, engine.map)
            }
        } catch {
            data?.finish()
            file.finish()
            throw error
        }
        self.file = file
        self.data = data ?? file
        host = opening.hostDisk
        label = opening.label
        report(opening)
    }

    /// The file again, with data past the page cache if that is wanted and no page has data of two clusters.
    private static func fileForWriting(
        _ opening: Opening, _ wanted: DirectChoice, _ header: QCOWHeader
    ) throws(PluginError) -> ImageFile {
        let isDirect = header.clusterSize >= 4096 && (wanted == .on || wanted == .auto && opening.isDirect)
        let file = try ImageFile(fd: opening.fd, access: isDirect ? .direct : .cached)
        guard wanted == .on, !file.isDirect else { return file }
        file.finish()
        throw PluginError(
            EINVAL, "direct I/O is not possible here, or the clusters are smaller than 4096 bytes; use direct=auto")
    }

    /// The file with the data of an image that has them elsewhere, opened by the host and locked as the image is; nil: it has not.
    private static func dataFile(
        _ header: QCOWHeader, _ opening: Opening, _ wanted: DirectChoice, lock: Bool
    ) throws(PluginError) -> ImageFile? {
        guard let reference = header.references.first(where: { $0.kind == .data }) else { return nil }
        guard let fd = try opening.child(ImageFileName(reference)).descriptor else {
            throw PluginError(EOPNOTSUPP, "the host did not open the data file of the image")
        }
        if lock {
            do throws(PluginError) {
                try ImageLock.take(fd: fd, isReadOnly: opening.isReadOnly, isSuccessor: opening.isSuccessor)
            } catch {
                throw PluginError(error.code, "the data file of the image: \(error.message)")
            }
        }
        let isDirect = !opening.isReadOnly && (wanted == .on || wanted == .auto && opening.isDirect)
        let file = try ImageFile(fd: fd, access: isDirect ? .direct : .cached)
        guard wanted == .on, !opening.isReadOnly, !file.isDirect else { return file }
        file.finish()
        throw PluginError(EINVAL, "direct I/O is not possible for the data file; use direct=auto")
    }

    /// The backing file, with the format that the image or else the administrator gives; nil without one.
    private static func backingName(_ header: QCOWHeader, _ opening: Opening) throws(PluginError) -> ImageFileName? {
        guard let reference = header.references.first(where: { $0.kind == .backing }) else { return nil }
        let chosen = try opening[QCOWOption.backingFormat]
        return ImageFileName(reference, format: chosen == .none ? [] : Array(chosen.rawValue.utf8))
    }

    private static func decryption(
        _ file: ImageFile, _ image: QCOWImage, _ opening: Opening
    ) throws(PluginError) -> LibqcowFile? {
        guard image.isEncrypted else { return nil }
        let password = try opening[QCOWOption.password].text
        guard !password.isEmpty else {
            throw PluginError(EACCES, "the image is encrypted with AES: give its password in the option 'password'")
        }
        let each = LibqcowFile.cachedClusters * image.header.clusterSize
        let count = max(1, min(UInt64(mostQueues), handleMemory / each))
        return try LibqcowFile(
            fd: file.fd, password: password, hasBackingFile: image.header.backingName != nil, count: Int(count))
    }

    private func report(_ opening: Opening) {
        let header = image.header
        if image.size != header.size {
            host.log(
                .warning,
                "the last \(header.size - image.size) bytes of the disk are not a whole sector and are left out")
        }
        if header.incompatible & QCOWHeader.Incompatible.dirty != 0 {
            let what =
                opening.isReadOnly
                ? "qemu-img check -r all tidies it" : "its refcounts are written anew before the first change"
            host.log(.warning, "the image was not closed by its last writer; \(what)")
        }
        if header.snapshotCount > 0 {
            host.log(.info, "the image has \(header.snapshotCount) internal snapshots; its present state is served")
        }
        engine?.observe { [unowned self] event in
            switch event {
            case .damaged(let what):
                host.log(
                    .error,
                    "\(label): the image is damaged: \(what). Nothing is written to it any more, reading goes on; repair a "
                        + "copy of it with qemu-img check -r all")
                host.notify(.corrupt)
            case .failed(let code):
                host.log(
                    .error,
                    PluginError(
                        system:
                            "\(label): what was written could not be made durable; nothing is written any more until "
                            + "the disk is attached again", code
                    ).message)
            case .notLookedThrough(let words):
                host.log(
                    .error,
                    "\(label): \(words). Nothing is written to the image before all of its tables were read; the next write "
                        + "tries again")
            case .unreadable(let fault, let offset): report(fault, at: offset)
            case .rebuilt(let changes):
                host.log(
                    .warning,
                    "\(label): wrote the refcounts of the image anew, which its last writer had not closed: \(changes) counts and "
                        + "flags were not up to date")
            case .reclaimed(let count, let bytes):
                host.log(
                    .info,
                    "\(label): gave back \(count) clusters (\(bytes) bytes) of the image that nothing referred to, as a writer "
                        + "leaves them that does not close it")
            case .bitmapsEnded(let count):
                host.log(
                    .warning,
                    "\(label): \(count) dirty bitmaps of the image are not kept up and count no more: the next backup by them has "
                        + "to be a full one")
            }
        }
    }

    // MARK: Control calls

    var size: UInt64 { engine?.size ?? image.size }

    /// Starts the threads.
    func start() throws(PluginError) {
        // A chain of images needs no more threads than its top: a process may have few.
        if isLower { return }
        try pool.start(threadCount, for: self)
        guard let engine else { return }
        if engine.failure != 0 {
            host.log(
                .error,
                "\(label): the process before this one found the image damaged, or could not make writes durable: nothing is "
                    + "written to it until the disk is attached again, reading goes on")
            if image.header.isCorrupt { host.notify(.corrupt) }
        }
        engine.readTablesAhead()
        committer = try Committer(engine)
    }

    func close() {
        pool.stop()
        committer?.stop()
        engine?.close()
        backing?.finish()
        if data !== file { data.finish() }
        file.finish()
    }

    var info: DiskInfo {
        var info = DiskInfo(size: size)
        if engine != nil {
            info.capabilities = [.write, .flush, .writeZeroes]
            if discards { info.capabilities.insert(.discard) }
        }
        info.physicalBlock = 4096
        info.optimalTransfer = UInt32(truncatingIfNeeded: image.header.clusterSize)
        // The threads share a sequential read of clusters that are apart: one would inflate a long one alone.
        info.maxTransfer = engine == nil ? max(image.header.clusterSize, 64 << 10) : 4 << 20
        info.maxBuffers = 1024
        info.maxQueues = UInt32(Self.mostQueues)
        info.memoryAlignment = data.isDirect ? 512 : 1
        if data.isDirect { info.queueDepth = UInt32(AsynchronousRoom.depth) }
        info.discardGranularity = UInt32(truncatingIfNeeded: image.header.clusterSize)
        info.maxDiscard = 1 << 30
        info.maxWriteZeroes = 64 << 20
        return info
    }

    func openQueue(_ parameters: QueueParameters) throws(PluginError) -> ImageQueue<QCOWRouter> {
        try ImageQueue(
            QCOWRouter(self, queue: parameters.index), parameters, fd: data.fd, isDirect: data.isDirect, pool: pool
        ) { servesByThreads(after: $0) }
    }

    /// A queue gets no room in the kernel: threads serve it, and more of them.
    func servesByThreads(after code: Int32) {
        if isThreaded.exchange(true, ordering: .relaxed) { return }
        host.log(.warning, AsynchronousRoom.refusal(code))
        pool.grow(to: max(threadCount, AsynchronousRoom.threadCount))
    }

    /// Makes the disk larger.
    func resize(to size: UInt64) throws(PluginError) {
        guard let engine else { throw PluginError(EROFS, "the disk is read-only") }
        try examining { () throws(ImageError) in try engine.grow(to: size) }
        host.notify(.info)
    }

    /// Reports what of a range is allocated in this image, until `report` gives false.
    func map(from start: UInt64, length: UInt64, _ report: (MappedRange) -> Bool) throws(PluginError) {
        var position = start
        let end = start + min(length, size > start ? size - start : 0)
        while position < end {
            let kind: MappedRange.Kind
            let count: UInt64
            do throws(ReadFault) {
                let (extent, found) = try map.find(position, end - position)
                count = found
                switch extent {
                case .hole: kind = backing == nil || position >= backing?.size ?? 0 ? [.hole, .zeroes] : .hole
                case .zeroes: kind = .zeroes
                case .data, .compressed, .encrypted: kind = []
                }
            } catch {
                throw PluginError(error.code, "\(error.cause)")
            }
            guard report(MappedRange(position, count, kind)) else { return }
            position += count
        }
    }

    // MARK: The long way

    /// Does what a queue's thread could not do at once.
    func perform(_ job: UnsafeMutablePointer<Job>) {
        let accepted = unsafe job.pointee.accepted
        if RequestTag.isSet(on: accepted) {
            // The offset is one of the file already, and the queue's completion ends the token.
            let done = unsafe job.pointee.done
            let status = BlockingIO.transfer(fd: data.fd, accepted, done: done, alignment: 512)
            accepted.complete(Outcome(status: status))
            return
        }
        if accepted.operation == .flush {
            let status = flush()
            accepted.complete(Outcome(status: status))
            return
        }
        let operation = SlowOperation(accepted, pool: pool)
        guard let engine else {
            operation.finish(operation.kind == .read ? operation.read { read(into: &$0, at: $1) } : -EROFS)
            return
        }
        let token = engine.begin()
        _ = engine.perform(operation)
        engine.end(token)
    }

    /// Everything that was answered is durable.
    func flush() -> Int32 { engine?.flush() ?? 0 }

    /// Fills all of `buffer` with what the disk shows from `offset` on: 0 or a negative errno. Any thread.
    func read(into buffer: inout MutableRawSpan, at offset: UInt64) -> Int32 {
        map.read(
            &buffer, at: offset, below: backing,
            expand: { [clusters] buffer, start, place, length in
                clusters.read(&buffer, from: start, at: place, length: length)
            },
            decrypt: decryption.map { decryption in
                { buffer, position in
                    unsafe buffer.withUnsafeMutableBytes { bytes in unsafe decryption.read(bytes, at: position) }
                }
            },
            data: { [data] buffer, place in data.readData(into: &buffer, at: place) },
            fault: { report($0, at: $1) })
    }

    /// Says what cannot be read, and what that shows about the image. The host limits the lines.
    func report(_ fault: ReadFault, at offset: UInt64) {
        let count = counters.faults.wrappingAdd(1, ordering: .relaxed).newValue
        let place = "\(fault.cause) (offset \(fault.place) of the file)"
        host.log(
            .error,
            PluginError(system: "\(label): cannot read at offset \(offset) of the disk: \(place)", fault.code).message)
        if count == 1, fault.isDamage { host.notify(.corrupt) }
        if !fault.isDamage { engine?.examineEnd() }
    }

    var statistics: [(StaticString, UInt64)] {
        var found: [(StaticString, UInt64)] = [
            ("inflated-clusters", counters.inflated.load(ordering: .relaxed)),
            ("read-faults", counters.faults.load(ordering: .relaxed)),
            ("helper-requests", counters.helped.load(ordering: .relaxed)),
        ]
        guard let engine else { return found }
        let done = engine.counters
        found += [
            ("allocated-clusters", done.allocated.load(ordering: .relaxed)),
            ("copied-clusters", done.copied.load(ordering: .relaxed)),
            ("freed-clusters", done.freed.load(ordering: .relaxed)),
            ("reclaimed-clusters", done.reclaimed.load(ordering: .relaxed)),
            ("group-commits", done.commits.load(ordering: .relaxed)),
            ("reserve-waits", done.refills.load(ordering: .relaxed)),
            ("range-waits", done.waits.load(ordering: .relaxed)),
        ]
        return found
    }
}

/// What the queues of a disk did. None of it happens for a request whose cluster is stored as it is and in the map.
final class QCOWCounters: Sendable {
    /// Clusters that were inflated.
    let inflated = Atomic<UInt64>(0)
    /// Requests that failed for what the image is.
    let faults = Atomic<UInt64>(0)
    /// Requests that went to helper threads.
    let helped = Atomic<UInt64>(0)
}
