// SPDX-License-Identifier: BSD-2-Clause
// Carrying out what the negotiation decides, and taking what queues and plugins say.
import DiskEvents
import StorageKeeping
import BlockQueue
import PluginHost
import Base
import Glibc
import PluginAPI
import Support
import Xen
import XenBus

extension VBDWorker {
    /// Carries out actions in order.
    func perform(_ actions: [VBDMachine.Action]) {
        for action in actions {
            log.debug("action \(action)")
            perform(action)
        }
    }

    private func perform(_ action: VBDMachine.Action) {
        switch action {
        case .update(let update): pending.insert(apply(update), at: 0)
        case .openDevice(let request): open(request)
        case .closeDevice: closeStorage { [self] in pending.append(.deviceClosed) }
        case .connectRings(let origin): connect(origin)
        case .startQueues: disk.startQueues(after: succession.predecessor)
        case .disconnectRings(let end):
            let hadTrouble = disk.journalTrouble != nil
            disk.disconnect(end.drain) { [self] in
                if hadTrouble { publishTrouble() }
                pending.append(.ringsDisconnected)
            }
        case .startTimer(let milliseconds): loop.startTimer(milliseconds: milliseconds)
        case .exit(let reason):
            // The machine gives nothing away that it holds; whatever is left of the queues ends before the lock goes.
            disk.disconnect(.atOnce) { [self] in closeStorage { [self] in finish(reason) } }
        }
    }

    private func apply(_ update: StoreUpdate) -> VBDMachine.Event {
        if let error = update.error {
            log.error(error)
            problem = error
            events.emit(.error, [("text", .string(error))])
        }
        do throws(OperationError) {
            return try nodes.apply(update)
        } catch {
            return canServe(after: error) ? .updateDone : .storeFailed(error.description)
        }
    }

    private func open(_ request: DeviceRequest) {
        if opener.isConfined {
            log.info("\(request.image.path) is opened by a new process: this one is confined")
            pending.append(.stopRequested(.handOver))
            pending.append(.deviceOpenFailed("a confined process cannot open \(request.image.path)"))
            return
        }
        let isShared: Bool
        do throws(OperationError) {
            isShared = try resolveSharing(request)
            try disk.take(options: try nodes.options())
        } catch {
            return openFailed(error)
        }
        opener.open(
            request, isShared: isShared, patience: patience,
            // A copy that is not complete, or another image, where an administrator had it.
            leastSectors: patience == .endless ? publishedSectorCount ?? 0 : 0,
            afterDeath: succession.predecessor != .handedOver,
            isExchanged: exchange != nil,
            isAwaited: machine.ownsInheritedRings && exchange == nil, confinement: disk.confinement
        ) {
            [self] () throws(OperationError) in
            try prepareHandles()
        } onOpened: { [self] in
            endStorageWait()
        } _: { [self] result in
            endStorageWait()
            switch result {
            case .failure(let error):
                if opener.hasLostConnection { endForStorage() }
                openFailed(explained(error, request))
            case .success(let device):
                disk.open(device, for: request)
                KillPoint.reach(.opened)
                do throws(OperationError) { try checkExchange(device) } catch { return openFailed(error) }
                if !machine.ownsInheritedRings { completeExchange() }
                toldSectors = device.info.sectorCount
                events.emit(.attached, [("size_bytes", .integer(device.info.sectorCount &* 512))])
                pending.append(.deviceOpened(device.facts))
            }
        }
    }

    /// For how long storage that is absent or locked is waited for.
    ///
    /// Storage that a process before this one has served is waited for also where its guest is not connected just now: a guest that
    /// starts would find the disk refused because somebody looked at the image when the worker died, and nobody would try it again.
    var patience: StoragePatience {
        if mayGoBack || machine.mustEnd { return .never }
        if machine.ownsInheritedRings { return exchange == nil ? .brief : .endless }
        return exchange == nil && publishedSectorCount != nil && !machine.isDetaching ? .brief : .never
    }

    private func openFailed(_ error: OperationError) {
        if mayGoBack { return giveUpExchange(error) }
        pending.append(.deviceOpenFailed(error.description))
    }

    /// Gets ready for confinement: opens what the queues need of Xen. Event channels of the frontend's domain alone can be
    /// bound with it.
    private func prepareHandles() throws(OperationError) {
        let domain = nodes.frontendDomain
        disk.journal.seal()
        do throws(OperationError) {
            try disk.area?.seal(queues: disk.mostQueues)
        } catch {
            log.warning("\(error); counters and what xbbctl sets end with this process")
            disk.area = nil
        }
        if try platform.prepare(queues: disk.mostQueues, of: domain) { return }
        // Linux takes no 0 there: such a disk is the toolstack's own.
        log.write(
            domain == 0 ? .info : .warning,
            "event channels of every domain can be bound: this system cannot restrict them\(domain == 0 ? " to domain 0" : "")"
        )
    }

    private func connect(_ origin: VBDMachine.RingOrigin) {
        guard let device = disk.device else { return pending.append(.ringsFailed("no device is open")) }
        do throws(OperationError) {
            switch try nodes.readFrontend(disk.limits(origin)) {
            case .failure(let error):
                if mayGoBack { return giveUpExchange(OperationError(.open, error.description)) }
                pending.append(.ringsFailed(error.description))
            case .success(let node):
                let isKnown = try compareStorage(origin, device)
                disk.connect(
                    node, of: nodes.frontendDomain, origin, after: succession.predecessor, isStorageKnown: isKnown,
                    isExchanged: exchange != nil
                ) { [self] result in
                    switch result {
                    case .success(let offered):
                        if !isKnown { publishStorage(device) }
                        completeExchange()
                        problem = nil
                        if disk.journalTrouble != nil { publishTrouble() }
                        pending.append(.ringsConnected(offered))
                    case .failure(let error):
                        if mayGoBack { return giveUpExchange(error) }
                        publishTrouble()
                        pending.append(.ringsFailed(error.description))
                    }
                }
            }
        } catch {
            if mayGoBack { return giveUpExchange(error) }
            pending.append(.ringsFailed(error.description))
        }
    }

    /// True if the node says that inherited rings were served from the images that are open now; throws if it says that
    /// they were served from others. The journal says the same, but may be lost.
    private func compareStorage(_ origin: VBDMachine.RingOrigin, _ device: PluginDevice) throws(OperationError) -> Bool
    {
        guard origin == .inherited, exchange == nil, let served = try nodes.readStorage() else { return false }
        if served != StorageIdentity.text(device.storage) { throw StorageIdentity.exchanged(device.storage) }
        return true
    }

    /// Says from which images the guest is served, before it knows that it is.
    private func publishStorage(_ device: PluginDevice) {
        do throws(OperationError) {
            try nodes.publish(storage: StorageIdentity.text(device.storage))
        } catch {
            log.error("\(error); if the journal is lost too, the guest loses its disk with this process")
        }
    }

    private func closeStorage(_ completion: @escaping () -> Void) {
        disk.close { [self] in
            if !machine.leavesToSuccessor { inherited.release() }
            completion()
        }
    }

    /// In the order of docs/recovery.md: the queues have ended, the storage is closed, the lock is let go.
    private func finish(_ reason: VBDMachine.ExitReason) {
        log.info("done: \(reason)")
        switch reason {
        case .handedOver:
            KillPoint.reach(.closed)
            // A name that the next process gives to its own socket.
            control = nil
            // Before the lock is free: who has it then reads this.
            if let holder = succession.holder {
                // Of rings that were not connected here, all is as the process before has left it.
                let isUntouched = machine.ownsInheritedRings && succession.predecessor != .handedOver
                nodes.publish(handedOverBy: holder, hasLeft: disk.leftRequests > 0 || isUntouched)
            }
            succession.handOver()
            KillPoint.reach(.letGo)
        case .storeFailed: break
        case .detached, .vanished, .conflict:
            nodes.removeErrors()
            disk.area?.end()
        }
        exitReason = reason
    }

    // MARK: Messages

    /// Takes what a queue or a plugin says.
    func receive(_ message: DeviceMessage) {
        switch message {
        case .queueFailed(let text):
            log.error(text)
            report(text)
            events.emit(.error, [("text", .string(text))])
        case .replayed(let index): disk.queueReplayed(index)
        case .queueStarted: disk.queueStarted()
        case .callEnded: disk.calls.ended()
        case .queuePaused: disk.queuePaused()
        case .queueEnded: disk.queueEnded()
        case .storageFailed: storageFailed()
        case .holdChanged: holdChanged()
        case .queueAwoke: idleRule.awoke()
        case .storageAwaited(let reason): storageAwaited(reason)
        case .startTroubled(let text): startTroubled(text)
        case .pluginCounted: if disk.finishQuestion() { resize() }
        case .notified(let what): takeNotification(what)
        }
    }

    func report(_ text: String) {
        problem = text
        do throws(OperationError) {
            try nodes.report(error: text)
        } catch {
            log.error(error.description)
        }
    }

    private func takeNotification(_ what: UInt32) {
        switch Int(what) {
        case Int(XBB_NOTIFY_INFO): resize()
        case Int(XBB_NOTIFY_LOST):
            let text = "the storage is gone; requests fail until it is back"
            tellTrouble(text)
            events.emit(.error, [("text", .string(text))])
        case Int(XBB_NOTIFY_FOUND):
            log.info("the storage is back")
            trouble.told = nil
            publishTrouble()
        case Int(XBB_NOTIFY_CORRUPT):
            tellTrouble("the image is damaged: the plugin's line in the log says how")
            events.emit(.imageDamaged)
        case Int(XBB_NOTIFY_REOPEN): endForStorage()
        default: log.warning("the plugin reported \(what), which this host does not know")
        }
    }

    /// Ends this process as a kill would: the storage cannot be reached from it any more. What is in flight stands in the journal, and the
    /// next process, which has the rights to open the storage anew, does it again.
    func endForStorage() -> Never {
        let text = "the connection to the storage is gone: the next process opens it anew; the guest waits"
        log.warning(text)
        events.emit(.error, [("text", .string(text))])
        takeOutput(isLast: true)
        _exit(WorkerStatus.storageGone)
    }

    /// Says what the plugin found, wherever an operator looks.
    private func tellTrouble(_ text: String) {
        log.error(text)
        trouble.told = text
        report(text)
        publishTrouble()
    }

    private func resize() {
        disk.resize { [self] result in
            switch result {
            case .success(let event):
                // A resize that was asked for was told when it was done.
                if tellSize() { log.info("the disk has \(disk.device?.info.sectorCount ?? 0) sectors now") }
                pending.append(event)
            case .failure(let error): log.error(error.description)
            }
        }
    }

    /// Tells a new size once, whoever noticed it: true if it is new.
    @discardableResult
    func tellSize() -> Bool {
        guard let now = disk.device?.info.sectorCount, let before = toldSectors, now != before else { return false }
        toldSectors = now
        events.emit(
            .resized, [("size_bytes", .integer(now &* 512)), ("old_size_bytes", .integer(before &* 512))])
        return true
    }
}
