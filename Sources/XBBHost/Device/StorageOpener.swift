// SPDX-License-Identifier: BSD-2-Clause
// Opening the storage of a VBD, once for a confined process: format, plugin, rights, in this order.
import Blkif
import ProcessConfinement
import ImageInspection
import PluginHost
import Base
import Support
import XenBus

/// Opens storage, and gives up the rights that opening needs. Control thread only.
final class StorageOpener {
    private let options: VBDOptions
    private let nodes: NodeStore
    private let mailbox: Mailbox
    private let log: Log
    /// The process has given up what it does not need to serve its open storage (docs/confinement.md).
    private(set) var isConfined = false

    init(options: VBDOptions, nodes: NodeStore, mailbox: Mailbox, log: Log) {
        self.options = options
        self.nodes = nodes
        self.mailbox = mailbox
        self.log = log
    }

    /// Opens what was asked for and lets its plugin start.
    ///
    /// `isShared`: others have the storage too. The control socket, if any, is answered meanwhile. `prepareHandles` opens what the process needs of Xen later; it is
    /// called before the process is confined. Throws what went wrong, and nothing is open then.
    func open(
        _ request: DeviceRequest, isShared: Bool, answeringOn control: ControlSocket?,
        prepareHandles: () throws(OperationError) -> Void
    ) throws(OperationError) -> PluginDevice {
        let mailbox = mailbox
        var source = DiskSource(
            format: request.image.format.name, path: request.image.path, readOnly: request.isReadOnly,
            deviceNumber: request.deviceNumber)
        source.options = pluginOptions()
        source.isShared = isShared
        let responder = control.flatMap { OpeningResponder($0, opening: source.path) }
        defer { responder?.end() }
        source = try FormatDetection.resolve(
            source, pluginDirectories: options.pluginDirectories, stateDirectory: options.stateDirectory, log: log)
        let device = try PluginDevice(
            source, directories: options.pluginDirectories, backing: options.backing, log: log
        ) {
            mailbox.post(.notified($0))
        }
        if !device.library.hasNoFile { record(device.source) }
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

    /// Loads the plugin of a disk that another process still serves: whether it can be loaded is found out before.
    func loadPlugin(of node: BackendNode) throws(OperationError) {
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
