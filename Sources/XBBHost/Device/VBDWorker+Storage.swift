// SPDX-License-Identifier: BSD-2-Clause
// Opening the storage of a VBD, once for a confined process.
import BlockQueue
import ProcessConfinement
import ImageInspection
import PluginHost
import Base
import Support
import XenBus

extension VBDWorker {
    /// Opens the storage and gives up the rights that opening needs.
    func open(_ request: DeviceRequest) -> VBDMachine.Event {
        if isConfined {
            log.info("\(request.image.path) is opened by a new process: this one is confined")
            pending.append(.stopRequested(.handOver))
            return .deviceOpenFailed("a confined process cannot open \(request.image.path)")
        }
        var source = DiskSource(
            format: request.image.format.name, path: request.image.path, readOnly: request.isReadOnly,
            deviceNumber: request.deviceNumber)
        source.options = pluginOptions()
        let mailbox = mailbox
        let vigil = control.flatMap { OpeningVigil($0, opening: source.path) }
        defer { vigil?.end() }
        do throws(OperationError) {
            source = try FormatDetection.resolve(
                source, pluginDirectories: options.pluginDirectories, stateDirectory: options.stateDirectory, log: log)
            let device = try PluginDevice(
                source, directories: options.pluginDirectories, backing: options.backing, log: log
            ) {
                mailbox.post(.notified($0))
            }
            if !device.library.hasNoFile { remember(device.source) }
            tellChain(device)
            // Before the process is confined, whose threads are its own affair then.
            vigil?.end()
            try confine(for: device)
            try device.start()
            self.device = device
            self.request = request
            KillPoint.reach(.opened)
            let info = device.info
            log.info(
                "opened \(source.path) as \(source.format) with plugin '\(device.library.name)': "
                    + "\(info.sectorCount) sectors\(device.isReadOnly ? ", read-only" : "")")
            return .deviceOpened(
                DeviceFacts(
                    sectorCount: info.sectorCount, physicalSectorSize: info.physicalBlock,
                    isReadOnly: device.isReadOnly, canFlush: true,
                    discard: info.capabilities.contains(.discard)
                        ? DeviceFacts.Discard(
                            granularity: info.discardGranularity, alignment: info.discardOffset,
                            isSecure: info.capabilities.contains(.discardSecure)) : nil))
        } catch {
            return .deviceOpenFailed(error.description)
        }
    }

    /// What was served as one format is not taken for another one later, whatever its content looks like then.
    private func remember(_ source: DiskSource) {
        guard let directory = options.stateDirectory, let image = ImageIdentity(of: source.path) else { return }
        do throws(OperationError) {
            try FormatRecords(stateDirectory: directory).note(image, format: source.format)
        } catch {
            log.warning("\(error); do not attach it with format=auto")
        }
    }

    /// Which images a disk consists of, where it is more than one: in XenStore, for operators.
    private func tellChain(_ device: PluginDevice) {
        guard device.images.count > 1 else { return }
        let chain = device.images.map { "\($0.format):\(BackingName.shown($0.path))" }.joined(separator: " ")
        log.info("the disk consists of \(chain)")
        do throws(OperationError) {
            try store.write("\(options.backendPath)/xbb-chain", chain)
        } catch {
            log.warning(error.description)
        }
    }

    /// Between open() and start() of the plugin, as its ABI says. Handles of Xen for every queue are opened before.
    private func confine(for device: PluginDevice) throws(OperationError) {
        guard let settings = options.confinement else { return }
        try platform.prepare(queues: mostQueues)
        isConfined = true
        try Confinement.enter(settings, network: device.library.isNetwork, log: log)
    }

    /// Options for the plugin: the toolstack's key "xbb-options", "name=value,name=value".
    private func pluginOptions() -> [String: String] {
        var found: [String: String] = [:]
        do throws(OperationError) {
            let text = try store.text("\(options.backendPath)/xbb-options") ?? ""
            for part in text.split(separator: ",") {
                let pair = part.split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false)
                found[String(pair[0])] = pair.count == 2 ? String(pair[1]) : "on"
            }
        } catch {
            log.error(error.description)
        }
        return found
    }
}
