// SPDX-License-Identifier: BSD-2-Clause
// A worker that gives a connected guest other storage, and the pause that outlives workers.
import Base
import BlockQueue
import CLinux
import PluginHost
import Support
import Xen
import XenBus

extension VBDWorker {
    /// Goes on with what the process before was told: a pause, and other storage.
    func inherit(_ node: BackendNode) {
        exchange = node.exchange
        publishedSectorCount = node.publishedSectorCount
        guard let end = node.pausedUntil else { return }
        let now = clinux_monotonic_ns()
        // No pause is longer than a day: what says otherwise is of another boot.
        guard end > now, end - now <= 86_400_000_000_000 else { return nodes.forgetPause(log) }
        log.info("the disk is paused, for \((end - now) / 1_000_000_000) s at most")
        disk.inheritPause(until: end)
    }

    /// Ends a pause whose time is over.
    func careForPause() {
        guard let text = disk.expirePause(now: clinux_monotonic_ns()) else { return }
        log.warning(text)
        nodes.forgetPause(log)
        events.emit(.resumed)
    }

    // MARK: Other storage

    /// xbbd goes back to the storage before if this process ends without serving.
    var mayGoBack: Bool { exchange?.direction == .forth }

    /// Throws why the guest cannot go on with the storage that was opened for it.
    func checkExchange(_ device: PluginDevice) throws(OperationError) {
        // A medium may have any size: whoever changes it expects that.
        guard mayGoBack, machine.ownsInheritedRings, configured?.isDrive != true, let before = publishedSectorCount
        else { return }
        let now = device.info.sectorCount
        if now < before {
            throw OperationError(
                .open,
                "\(device.source.path) has \(now) sectors of 512 bytes, and the guest's disk has \(before): other storage has "
                    + "to be as large at least")
        }
    }

    /// Ends this process: nothing was served from the new storage, and xbbd goes back to the one before.
    func giveUpExchange(_ error: OperationError) {
        report(error.description)
        failure = error
    }

    /// The guest may be served from what is open now: there is no way back any more.
    func completeExchange() {
        guard let exchange else { return }
        KillPoint.reach(.exchanged)
        do throws(OperationError) {
            try nodes.publish(BackendKey.swapServed, exchange.text)
            self.exchange = nil
        } catch {
            giveUpExchange(error)
        }
    }
}
