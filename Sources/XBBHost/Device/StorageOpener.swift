// SPDX-License-Identifier: BSD-2-Clause
// Opening the storage of a VBD, once for a confined process: format, plugin, rights, in this order.
import Blkif
import CLinux
import Glibc
import ProcessConfinement
import ImageInspection
import PluginHost
import Base
import Settings
import StorageKeeping
import Support
import Synchronization
import XenBus

/// For how long storage that is absent or locked is tried again. An image that is being replaced, or that somebody looks at, is
/// there again soon.
enum StoragePatience {
    /// Nobody waits for it, or there is other storage to go back to.
    case never
    /// 10 s: the guest has had it, from a process that died.
    case brief
    /// Until it is there: an administrator has had it, and the guest has nothing else.
    case endless
}

/// That the storage is not waited for any more: said by the control thread, read by that of the call.
private final class WaitEnd: Sendable {
    private let flag = Atomic(false)
    var isOver: Bool { flag.load(ordering: .acquiring) }
    func set() { flag.store(true, ordering: .releasing) }
}

/// Opens storage, and gives up the rights that opening needs. Control thread only.
final class StorageOpener {
    private let options: VBDOptions
    private let nodes: NodeStore
    private let mailbox: Mailbox
    private let calls: PluginCalls
    private let log: Log
    private let inherited: InheritedStorage
    /// The longest pause between two attempts to open storage in the network, in us.
    private static var longestPause: UInt32 { 1_000_000 }
    /// How long a brief wait for storage lasts, in ns.
    private static var briefWait: UInt64 { 10_000_000_000 }
    /// When an endless one is told, in ns: who only looks at an image is done by then.
    private static var quietWait: UInt64 { 1_000_000_000 }
    /// Ends the wait of the call that runs.
    private var waitEnd = WaitEnd()
    /// start() of a plugin whose guest waits has said that its connection broke (ENOTCONN): another process is to try.
    private(set) var hasLostConnection = false
    /// The process has given up what it does not need to serve its open storage (docs/confinement.md).
    private(set) var isConfined = false

    init(
        options: VBDOptions, nodes: NodeStore, mailbox: Mailbox, inherited: InheritedStorage, calls: PluginCalls,
        log: Log
    ) {
        self.inherited = inherited
        self.options = options
        self.nodes = nodes
        self.mailbox = mailbox
        self.calls = calls
        self.log = log
    }

    /// Opens what was asked for and lets its plugin start; `completion` gets the disk, or what went wrong, and nothing is
    /// open then.
    ///
    /// `prepareHandles` opens what the process needs of Xen later; it is called before the process is confined, as `confinement` says.
    ///
    /// `onOpened` is called when open() has returned, before start().
    ///
    /// `isShared`: others have the storage too. The storage of the process before is used if it was left; otherwise one that is
    /// absent, locked by somebody else, cannot be opened for another reason or is smaller than `leastSectors` of 512 bytes is waited for
    /// with `patience`. `afterDeath`: the process before did not end by itself. `isExchanged`: the guest had other storage before; what was
    /// answered from that, and is below this one now, is made durable. `isAwaited`: a guest is connected, and has had this storage.
    func open(
        _ request: DeviceRequest, isShared: Bool, patience: StoragePatience, leastSectors: UInt64, afterDeath: Bool,
        isExchanged: Bool, isAwaited: Bool,
        confinement: ConfinementSettings?, prepareHandles: @escaping () throws(OperationError) -> Void,
        onOpened: @escaping () -> Void,
        _ completion: @escaping (Result<PluginDevice, OperationError>) -> Void
    ) {
        let (options, mailbox, inherited, log) = (options, mailbox, inherited, log)
        let waitEnd = WaitEnd()
        self.waitEnd = waitEnd
        var wanted = DiskSource(
            format: request.image.format.name, path: request.image.path, readOnly: request.isReadOnly,
            deviceNumber: request.deviceNumber)
        wanted.options = pluginOptions()
        wanted.isShared = isShared
        let source = wanted
        calls.make("open() of \(BackingName.shown(source.path)), format \(source.format)") {
            () throws(OperationError) -> PluginDevice in
            // Nobody else uses it until this call has ended.
            let storage = inherited.take(for: request, source)
            var source = source
            if let format = storage?.images.first?.format { source.format = format }
            let hasLostWrites = storage.map { afterDeath ? $0.hasLostWrites : $0.hasUntoldLoss } ?? false
            if hasLostWrites {
                log.error(
                    "\(BackingName.shown(source.path)): writing back failed while a process before died: what was written and not "
                        + "flushed may be lost, and the guest's next flush fails")
            }
            // A server comes back when its administrator says so, and a guest that has the disk has nothing else.
            let isNetwork = patience == .brief && Self.isInNetwork(source, options)
            let device = try Self.patiently(
                isNetwork ? .endless : patience, waitEnd, mailbox, log, isNetwork: isNetwork
            ) { () throws(OperationError) in
                let found = try FormatDetection.resolve(
                    source, pluginDirectories: options.pluginDirectories, stateDirectory: options.stateDirectory,
                    log: log)
                let device = try PluginDevice(
                    found, directories: options.pluginDirectories, backing: options.backing, inherited: storage,
                    hasLostWrites: hasLostWrites, isAwaited: isAwaited, isAfterDeath: afterDeath, log: log
                ) {
                    mailbox.post(.notified($0))
                }
                let sectors = device.info.sectorCount
                guard device.library.isNetwork || sectors >= leastSectors else {
                    device.close()
                    throw OperationError(
                        .open,
                        "\(BackingName.shown(source.path)) has \(sectors) sectors of 512 bytes, and the guest's disk \(leastSectors)"
                    )
                }
                return device
            }
            if isExchanged {
                do throws(OperationError) {
                    try device.sync()
                } catch {
                    device.close()
                    throw error
                }
            }
            if !device.library.hasNoFile, storage == nil { Self.record(device.source, options, log) }
            return device
        } _: { [self] result in
            switch result {
            case .failure(let error): completion(.failure(error))
            case .success(let device):
                onOpened()
                start(device, confinement, isWaitedFor: patience != .never || isAwaited, prepareHandles, completion)
            }
        }
    }

    /// Between open() and start() of the plugin, as its ABI says, the process is confined: all of its threads.
    private func start(
        _ device: PluginDevice, _ confinement: ConfinementSettings?, isWaitedFor: Bool,
        _ prepareHandles: () throws(OperationError) -> Void,
        _ completion: @escaping (Result<PluginDevice, OperationError>) -> Void
    ) {
        inherited.keep(device)
        publishChain(of: device)
        do throws(OperationError) {
            if let settings = confinement {
                try prepareHandles()
                isConfined = true
                try Confinement.enter(settings, network: device.library.isNetwork, log: log)
            }
        } catch {
            return abandon(device, error, completion)
        }
        let mailbox = mailbox
        calls.make("start()") { () throws(OperationError) in
            // What goes wrong there is what the guest waits for.
            try device.start { if isWaitedFor { mailbox.post(.startTroubled($0)) } }
        } _: { [self] result in
            if case .failure(let error) = result {
                hasLostConnection = isWaitedFor && device.library.isNetwork && error.code == ENOTCONN
                return abandon(device, error, completion)
            }
            inherited.settled()
            log.info(
                "opened \(device.source.path) as \(device.source.format) with plugin '\(device.library.name)': "
                    + "\(device.info.sectorCount) sectors\(device.isReadOnly ? ", read-only" : "")")
            completion(.success(device))
        }
    }

    private func abandon(
        _ device: PluginDevice, _ error: OperationError,
        _ completion: @escaping (Result<PluginDevice, OperationError>) -> Void
    ) {
        calls.make("close()") { () throws(OperationError) in
            device.close()
        } _: { _ in
            completion(.failure(error))
        }
    }

    /// Fails to open what is waited for, if anything is: nobody needs it any more.
    func stopWaiting() { waitEnd.set() }

    /// The plugin reaches its storage over a network.
    private static func isInNetwork(_ source: DiskSource, _ options: VBDOptions) -> Bool {
        do throws(OperationError) {
            let name = try PluginDevice.pluginName(for: source, directories: options.pluginDirectories)
            let library = try PluginLibrary.load(name: name, directories: options.pluginDirectories)
            return library.isNetwork && library.hasNoFile
        } catch {
            return false
        }
    }

    /// Tries again what fails because the storage is absent or locked.
    private static func patiently(
        _ patience: StoragePatience, _ end: WaitEnd, _ mailbox: Mailbox, _ log: Log, isNetwork: Bool,
        _ open: () throws(OperationError) -> PluginDevice
    ) throws(OperationError) -> PluginDevice {
        let began = clinux_monotonic_ns()
        var isSaid = false
        var pause: UInt32 = 50_000
        while true {
            do throws(OperationError) {
                return try open()
            } catch {
                // What is wrong today may be right tomorrow: a file system that is mounted read-only, an image that is being copied,
                // one below it that is gone. A guest that lost its disk would not get it back.
                let waited = clinux_monotonic_ns() &- began
                guard !end.isOver else { throw error }
                switch patience {
                case .never: throw error
                case .brief:
                    guard waited < briefWait else { throw error }
                    if !isSaid { log.warning("\(error); tried again for \(briefWait / 1_000_000_000) s") }
                    isSaid = true
                case .endless:
                    if !isSaid, waited >= quietWait {
                        mailbox.post(.storageAwaited(error.description))
                        isSaid = true
                    }
                }
                usleep(pause)
                if isNetwork { pause = min(pause + pause / 2, longestPause) }
            }
        }
    }

    /// Checks, of a disk that another process still serves, what can be checked before: that the plugin can be loaded, and
    /// that the storage will be had. Throws where this process could not go on.
    func prepare(for node: BackendNode) throws(OperationError) {
        inherited.receive()
        try loadPlugin(of: node)
        guard !inherited.isPromised, node.state == .connected, let served = try nodes.readStorage(),
            served != StorageIdentity.text([])
        else { return }
        let request: DeviceRequest?
        do throws(NegotiationError) { request = try node.deviceRequest(from: options.storageSource) } catch { return }
        guard let request else { return }
        let source = DiskSource(format: request.image.format.name, path: request.image.path)
        let file = try DiskFile(path: try source.filePath(), readOnly: true, direct: false)
        guard let found = StorageIdentity(file: file.descriptor) else { return }
        if !served.hasPrefix(StorageIdentity.text([found])) { throw StorageIdentity.exchanged([found]) }
    }

    private func loadPlugin(of node: BackendNode) throws(OperationError) {
        let request: DeviceRequest
        do throws(NegotiationError) {
            guard let found = try node.deviceRequest(from: options.storageSource) else { return }
            request = found
        } catch {
            return
        }
        if request.image.format.name == FormatDetection.word { return }
        let source = DiskSource(format: request.image.format.name, path: request.image.path)
        let name = try PluginDevice.pluginName(for: source, directories: options.pluginDirectories)
        _ = try PluginLibrary.load(name: name, directories: options.pluginDirectories)
    }

    /// What was served as one format is not taken for another one later, whatever its content looks like then.
    private static func record(_ source: DiskSource, _ options: VBDOptions, _ log: Log) {
        guard let directory = options.stateDirectory, let image = ImageIdentity(of: source.path) else { return }
        do throws(OperationError) {
            try FormatRecords(stateDirectory: directory).note(image, format: source.format)
        } catch {
            log.warning("\(error); do not attach it with format=auto")
        }
    }

    /// Says which images a disk consists of, where it is more than one: in the log and in XenStore.
    private func publishChain(of device: PluginDevice) {
        guard device.images.count > 1 else { return }
        let chain = device.images.map { "\($0.format):\(BackingName.shown($0.path))" }.joined(separator: " ")
        log.info("the disk consists of \(chain)")
        do throws(OperationError) {
            try nodes.publish(chain: chain)
        } catch {
            log.warning(error.description)
        }
    }

    private func pluginOptions() -> [String: String] {
        do throws(OperationError) {
            // Settings of the disk stand among them.
            return try nodes.options().filter { SettingsSchema.ofDisk.named($0.key) == nil }
        } catch {
            log.error(error.description)
            return [:]
        }
    }
}

extension PluginDevice {
    /// What the plugin says of the disk, in the words of the negotiation.
    var facts: DeviceFacts {
        DeviceFacts(
            sectorCount: info.sectorCount, physicalSectorSize: info.physicalBlock, isReadOnly: isReadOnly,
            canFlush: true,
            discard: info.capabilities.contains(.discard)
                ? DiscardSupport(
                    granularity: info.discardGranularity, alignment: info.discardOffset,
                    isSecure: info.capabilities.contains(.discardSecure)) : nil)
    }
}
