// SPDX-License-Identifier: BSD-2-Clause
// An open image: its engine, its parent, its threads and its queues.
import FileKit
import Glibc
import ImageCore
import ImageKit
import ImageWriting
import PluginAPI
import PluginKit
import Synchronization
import VHD
import VHDEngine

/// An image that is served, or read for an image above it.
///
/// `@unchecked Sendable`: what changes is atomic, or belongs to control calls.
final class VHDDevice: CountingDisk, MappedDisk, JobPerformer, LowerLayer, @unchecked Sendable {
    private let host: HostDisk
    let file: ImageFile
    let engine: VHDEngine
    private let parent: BackingFile<VHDDevice>?
    private let label: String
    let isReadOnly: Bool
    private let threadCount: Int
    private let discards: Bool
    /// The plugin reads it for the disk above, on that one's threads.
    private let isLower: Bool
    let pool = HelperPool()
    private var committer: Committer?
    /// Requests that went to helper threads.
    let helped = Atomic<UInt64>(0)
    private let faults = Atomic<UInt64>(0)
    private let isThreaded = Atomic<Bool>(false)

    /// The most queues.
    private static let mostQueues = 16

    init(_ opening: Opening) throws(PluginError) {
        let isLocked = try opening[VHDOption.lock]
        threadCount = Int(clamping: try opening[VHDOption.threads])
        discards = try opening[VHDOption.discard] == .unmap
        isLower = opening.isBacking
        isReadOnly = opening.isReadOnly
        let wanted = try opening[VHDOption.direct]
        var options = VHDOptions()
        options.cacheBytes = try opening[VHDOption.cache]
        options.discards = discards
        options.isReadOnly = opening.isReadOnly
        if isLocked {
            let fd = opening.fd
            try ImageLock.take(fd: fd, isReadOnly: opening.isReadOnly, isSuccessor: opening.isSuccessor)
            if !opening.isReadOnly {
                // Without the lock anybody may write.
                if opening.hasLostWrites { ImageMark.failed.leave(fd: fd) }
                options.hasFailed = opening.isSuccessor && ImageMark(fd: fd) == .failed
                options.whenFailed = { ImageMark.failed.leave(fd: fd) }
            }
        }
        if opening.hasLostWrites { options.hasFailed = true }
        let isDirect = !opening.isBacking && (wanted == .on || wanted == .auto && opening.isDirect)
        let file = try ImageFile(fd: opening.fd, access: isDirect ? .directSectors : .cached)
        do throws(PluginError) {
            if wanted == .on, !opening.isBacking, !file.isDirect {
                throw PluginError(EINVAL, "direct I/O is not possible here; use direct=auto")
            }
            let isServed = options.hasFailed
            let image = try examining { () throws(ImageError) in try VHDImage(file, isServed: isServed) }
            let below = try Self.parent(of: image, opening, lock: isLocked)
            let settled = options
            engine = try examining { () throws(ImageError) in
                try VHDEngine(file, opened: image, below: below, options: settled)
            }
            parent = below
        } catch {
            file.finish()
            throw error
        }
        self.file = file
        host = opening.hostDisk
        label = opening.label
        report()
    }

    /// The parent, by the first of its names that the host opens; nil: the image has none.
    private static func parent(
        of image: VHDImage, _ opening: Opening, lock: Bool
    ) throws(PluginError) -> BackingFile<VHDDevice>? {
        guard image.footer.kind == .differencing, let header = image.header else { return nil }
        var refusal: PluginError?
        for reference in image.parents {
            let found: BackingFile<VHDDevice>?
            do throws(PluginError) {
                found = try BackingFile(
                    ImageFileName(.backing, name: reference.name, format: reference.format ?? []), opening: opening,
                    lock: lock)
            } catch {
                if refusal == nil { refusal = error }
                continue
            }
            guard let found else {
                throw PluginError(EOPNOTSUPP, "the parent of the image is neither a VHD nor raw")
            }
            if let disk = found.disk { try judge(disk, header, opening) }
            return found
        }
        throw refusal ?? .invalid("the image has a parent, and no name of it that can be read")
    }

    /// A parent that is another image than the one that was written above would show data of two disks.
    private static func judge(_ parent: VHDDevice, _ header: VHDHeader, _ opening: Opening) throws(PluginError) {
        guard parent.engine.image.footer.identifier == header.parentIdentifier else {
            throw .invalid(
                "the parent that the image names is another one than it was made above: its identifier differs")
        }
        // By the time of the file, as Hyper-V does it; XenServer looks at the identifier alone, for a copy has a new time.
        let changed = parent.file.modificationTime - 946_684_800
        if changed > Int64(header.parentTimestamp) {
            opening.hostDisk.log(
                .warning,
                "\(opening.label): the parent's file was changed or copied after the image was made above it; if it was "
                    + "written to, the disk shows a mixture")
        }
    }

    private func report() {
        let image = engine.image
        if !image.hasWholeFooter {
            host.log(
                .warning,
                "\(label): the footer at the end of the image is damaged or missing; its copy at the beginning is used"
                    + (isReadOnly ? "" : ", and one is written before the first change"))
        }
        if image.footer.hasSavedState {
            host.log(.warning, "\(label): a virtual machine was suspended on this disk: it will find it changed")
        }
        if image.footer.currentSize & ~511 != image.size {
            host.log(
                .info,
                "\(label): the disk has \(image.size) bytes by its geometry, as the program goes by that made it")
        }
        engine.observe { [unowned self] event in
            switch event {
            case .failed(let code):
                host.log(
                    .error,
                    PluginError(
                        system:
                            "\(label): what was written could not be made durable; nothing is written any more until "
                            + "the disk is attached again", code
                    ).message)
            case .cutOff(let bytes):
                host.log(
                    .error,
                    "\(label): somebody has cut the image off: it has \(bytes) bytes. Nothing is written to it any more, reading "
                        + "goes on; restore it from a backup")
                host.notify(.corrupt)
            case .unreadable(let code, let offset, let words):
                let count = faults.wrappingAdd(1, ordering: .relaxed).newValue
                host.log(
                    .error,
                    PluginError(system: "\(label): cannot read at offset \(offset) of the disk: \(words)", code).message
                )
                if count == 1, code == EIO { host.notify(.corrupt) }
            case .full:
                host.log(
                    .error,
                    "\(label): no block can be added: a VHD can have 2 TiB, and one on a device no more than that")
            }
        }
    }

    // MARK: Control calls

    var size: UInt64 { engine.size }

    /// Starts the threads.
    func start() throws(PluginError) {
        // A chain of images needs no more threads than its top: a process may have few.
        if isLower { return }
        try pool.start(threadCount, for: self)
        if engine.failure != 0 {
            host.log(
                .error,
                "\(label): the process before this one could not make writes durable, or found the image cut off: nothing is "
                    + "written to it until the disk is attached again, reading goes on")
        }
        if !isReadOnly { committer = try Committer(engine) }
    }

    func close() {
        pool.stop()
        committer?.stop()
        engine.close()
        parent?.finish()
        file.finish()
    }

    var info: DiskInfo {
        var info = DiskInfo(size: size)
        if !isReadOnly {
            info.capabilities = [.write, .flush, .writeZeroes]
            if discards { info.capabilities.insert(.discard) }
        }
        info.physicalBlock = 4096
        info.optimalTransfer = UInt32(clamping: min(engine.image.header?.blockSize ?? 0, 4 << 20))
        info.maxTransfer = 4 << 20
        info.maxBuffers = 1024
        info.maxQueues = UInt32(Self.mostQueues)
        info.memoryAlignment = file.isDirect ? 512 : 1
        if file.isDirect { info.queueDepth = UInt32(AsynchronousRoom.depth) }
        info.discardGranularity = 4096
        info.maxDiscard = 1 << 30
        info.maxWriteZeroes = 64 << 20
        return info
    }

    func openQueue(_ parameters: QueueParameters) throws(PluginError) -> ImageQueue<VHDRouter> {
        try ImageQueue(VHDRouter(self), parameters, fd: file.fd, isDirect: file.isDirect, pool: pool) {
            servesByThreads(after: $0)
        }
    }

    /// A queue gets no room in the kernel: threads serve it, and more of them.
    func servesByThreads(after code: Int32) {
        if isThreaded.exchange(true, ordering: .relaxed) { return }
        host.log(.warning, AsynchronousRoom.refusal(code))
        pool.grow(to: max(threadCount, AsynchronousRoom.threadCount))
    }

    /// Reports what of a range is allocated in this image, until `report` gives false.
    func map(from start: UInt64, length: UInt64, _ report: (MappedRange) -> Bool) throws(PluginError) {
        try examining { () throws(ImageError) in
            try engine.extents(from: start, length: length) { offset, count, isData, isZero in
                report(MappedRange(offset, count, isData ? [] : isZero ? [.hole, .zeroes] : .hole))
            }
        }
    }

    // MARK: The long way

    /// Does what a queue's thread could not do at once.
    func perform(_ job: UnsafeMutablePointer<Job>) {
        let accepted = unsafe job.pointee.accepted
        if RequestTag.isSet(on: accepted) {
            // The offset is one of the file already.
            let done = unsafe job.pointee.done
            let status = BlockingIO.transfer(fd: file.fd, accepted, done: done, alignment: 512)
            accepted.complete(Outcome(status: status))
            return
        }
        if accepted.operation == .flush {
            let status = isReadOnly ? 0 : engine.flush()
            accepted.complete(Outcome(status: status))
            return
        }
        // Somebody else has given it its place meanwhile: its own memory goes there.
        if accepted.operation == .write, case .file(let place) = engine.placeOfWrite(accepted.offset, accepted.length) {
            let owner = unsafe accepted.owner
            let taken = unsafe accepted.release()
            unsafe RequestTag.set(taken, 0, place: place)
            let moved = unsafe Request(taken, queue: owner.queue, complete: owner.complete)
            let status = BlockingIO.transfer(fd: file.fd, moved, done: 0, alignment: 512)
            moved.complete(Outcome(status: status))
            return
        }
        let operation = SlowOperation(accepted, pool: pool)
        if operation.kind == .read {
            operation.finish(operation.read { read(into: &$0, at: $1) })
        } else {
            _ = engine.perform(operation)
        }
    }

    /// Fills all of `buffer` with what the disk shows from `offset` on: 0 or a negative errno. Any thread.
    func read(into buffer: inout MutableRawSpan, at offset: UInt64) -> Int32 { engine.read(into: &buffer, at: offset) }

    var statistics: [(StaticString, UInt64)] {
        let done = engine.counters
        return [
            ("read-faults", faults.load(ordering: .relaxed)),
            ("helper-requests", helped.load(ordering: .relaxed)),
            ("allocated-blocks", done.allocated.load(ordering: .relaxed)),
            ("reclaimed-blocks", done.reclaimed.load(ordering: .relaxed)),
            ("group-commits", done.commits.load(ordering: .relaxed)),
            ("reserve-waits", done.refills.load(ordering: .relaxed)),
            ("range-waits", done.waits.load(ordering: .relaxed)),
        ]
    }
}
