// SPDX-License-Identifier: BSD-2-Clause
// Opening the storage of a VBD, once for a confined process: format, plugin, rights, in this order.
import Blkif
import CLinux
import Glibc
import ProcessConfinement
import ImageInspection
import PluginHost
import Base
import StorageKeeping
import Support
import XenBus

/// Opens storage, and gives up the rights that opening needs. Control thread only.
final class StorageOpener {
    private let options: VBDOptions
    private let nodes: NodeStore
    private let mailbox: Mailbox
    private let log: Log
    private let inherited: InheritedStorage
    /// How long a successor waits for storage that is absent or locked: 10 s, in ns. An image that is being replaced, or that
    /// somebody looks at, is there again by then; a guest waits that long.
    private static var patience: UInt64 { 10_000_000_000 }
    /// The process has given up what it does not need to serve its open storage (docs/confinement.md).
    private(set) var isConfined = false

    init(options: VBDOptions, nodes: NodeStore, mailbox: Mailbox, inherited: InheritedStorage, log: Log) {
        self.inherited = inherited
        self.options = options
        self.nodes = nodes
        self.mailbox = mailbox
        self.log = log
    }

    /// Opens what was asked for and lets its plugin start.
    ///
    /// The control socket, if any, is answered meanwhile. `prepareHandles` opens what the process needs of Xen later; it is
    /// called before the process is confined. Throws what went wrong, and nothing is open then.
    ///
    /// `isSuccessor`: a connected guest waits. The storage of the process before is used if it was left; otherwise one that is
    /// absent, or locked by somebody else, is waited for.
    func open(
        _ request: DeviceRequest, isSuccessor: Bool, answeringOn control: ControlSocket?,
        prepareHandles: () throws(OperationError) -> Void
    ) throws(OperationError) -> PluginDevice {
        let mailbox = mailbox
        var source = DiskSource(
            format: request.image.format.name, path: request.image.path, readOnly: request.isReadOnly,
            deviceNumber: request.deviceNumber)
        source.options = pluginOptions()
        let responder = control.flatMap { OpeningResponder($0, opening: source.path) }
        defer { responder?.end() }
        let storage = inherited.take(for: request, source)
        if let format = storage?.images.first?.format { source.format = format }
        let wanted = source
        let device = try patiently(isSuccessor) { () throws(OperationError) in
            let source = try FormatDetection.resolve(
                wanted, pluginDirectories: options.pluginDirectories, stateDirectory: options.stateDirectory, log: log)
            return try PluginDevice(
                source, directories: options.pluginDirectories, backing: options.backing, inherited: storage, log: log
            ) {
                mailbox.post(.notified($0))
            }
        }
        source = device.source
        if !device.library.hasNoFile, storage == nil { record(device.source) }
        inherited.keep(device)
        publishChain(of: device)
        // Before the process is confined, whose threads are its own affair then.
        responder?.end()
        if let settings = options.confinement {
            // Between open() and start() of the plugin, as its ABI says.
            try prepareHandles()
            isConfined = true
            try Confinement.enter(settings, network: device.library.isNetwork, log: log)
        }
        try device.start()
        log.info(
            "opened \(source.path) as \(source.format) with plugin '\(device.library.name)': "
                + "\(device.info.sectorCount) sectors\(device.isReadOnly ? ", read-only" : "")")
        return device
    }

    /// Tries again what fails because the storage is absent or locked, if a guest waits.
    private func patiently(
        _ isSuccessor: Bool, _ open: () throws(OperationError) -> PluginDevice
    ) throws(OperationError) -> PluginDevice {
        let began = clinux_monotonic_ns()
        var isSaid = false
        while true {
            do throws(OperationError) {
                return try open()
            } catch {
                let mayPass = [ENOENT, ENOTDIR, EBUSY, EAGAIN, EACCES].contains(error.code)
                guard isSuccessor, mayPass, clinux_monotonic_ns() &- began < Self.patience else { throw error }
                if !isSaid { log.warning("\(error); tried again for \(Self.patience / 1_000_000_000) s") }
                isSaid = true
                usleep(50_000)
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
    private func record(_ source: DiskSource) {
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
            return try nodes.pluginOptions()
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
