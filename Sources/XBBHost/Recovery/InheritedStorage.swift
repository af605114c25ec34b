// SPDX-License-Identifier: BSD-2-Clause
// The worker's end of the way on which a disk's open files go from one worker to the next. docs/recovery.md explains it.
import Base
import Blkif
import CLinux
import Glibc
import ImageInspection
import PluginHost
import StorageKeeping
import Support
import XenBus

/// What the worker before had open, and what this one leaves for the next. Control thread only.
final class InheritedStorage {
    /// How long xbbd may take to close its copies, in ms. It never works for as long; but the toolstack waits for us.
    private static let releaseMilliseconds: Int32 = 2000

    private let channel: StorageChannel?
    private let log: Log
    private var storage: KeptStorage?
    /// The storage of the worker before will be handed over with the word to begin.
    private(set) var isPromised = false
    /// xbbd has copies of what is open here.
    private var isKept = false
    /// What is kept are connections of a process that died, and no plugin has waited yet until the server has done what that had sent.
    private var isUnsettled = false

    /// Takes over the descriptor of the channel to xbbd; nil for none.
    init(channel descriptor: Int32?, log: Log) {
        self.log = log
        channel = descriptor.map {
            _ = clinux_fcntl_int($0, F_SETFD, FD_CLOEXEC)
            return StorageChannel(Descriptor(owning: $0))
        }
    }

    /// Reads what xbbd has sent so far.
    func receive() {
        while case .message(let message)? = channel?.receive() {
            switch message {
            case .promised: isPromised = true
            case .keep(let storage): self.storage = storage
            case .release, .released: break
            }
        }
    }

    /// The open files of the worker before, if they are those of `request`; nil if they are to be opened by name. Once.
    ///
    /// Another path, format or mode was configured meanwhile, or another device, if they are not.
    /// `source` is what `request` asks for; its format may be "auto".
    func take(for request: DeviceRequest, _ source: DiskSource) -> KeptStorage? {
        receive()
        guard let storage else { return nil }
        self.storage = nil
        isKept = true
        isUnsettled = !storage.handles.isEmpty
        guard Self.isOf(storage, request, source) else {
            log.info("\(source.path) is not what the process before this one had open")
            isUnsettled = false
            release()
            return nil
        }
        return storage
    }

    private static func isOf(_ storage: KeptStorage, _ request: DeviceRequest, _ source: DiskSource) -> Bool {
        guard let top = storage.images.first else {
            // Also where the disk has another place by now, which may be another name of the same server.
            return storage.handles.allSatisfy { $0.format == source.format }
        }
        return [source.path, try? source.filePath()].contains(top.path)
            && (source.format == FormatDetection.word || source.format == top.format)
            && source.readOnly == top.isReadOnly
            && (request.deviceNumber == nil || request.deviceNumber == top.deviceNumber)
    }

    /// Leaves the open files of `device` for a successor. Files stay those that were inherited; what a plugin keeps by itself is
    /// new with each process.
    func keep(_ device: PluginDevice) {
        guard let channel, !isKept || device.library.hasNoFile else { return }
        do throws(OperationError) {
            guard let storage = try device.keptStorage() else { return }
            isKept = channel.send(.keep(storage)) || isKept
        } catch {
            log.warning("\(error); a successor has to open the disk by its name")
        }
    }

    /// The plugin has started: it has waited for what the process before had under way.
    func settled() { isUnsettled = false }

    /// The storage is closed for good: returns when xbbd has closed it, too, so that whoever waits for this worker's word
    /// can unmount what the image is on.
    func release() {
        guard let channel, isKept, !isUnsettled else { return }
        isKept = false
        guard channel.send(.release) else { return }
        let end = clinux_monotonic_ns() &+ UInt64(Self.releaseMilliseconds) * 1_000_000
        while clinux_monotonic_ns() < end {
            switch channel.await(milliseconds: Self.releaseMilliseconds) {
            case .message(.released), .ended, .invalid: return
            case .message, .nothing: break
            }
        }
        log.warning("xbbd has not closed the storage within \(Self.releaseMilliseconds / 1000) s")
    }
}
