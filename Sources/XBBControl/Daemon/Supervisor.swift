// SPDX-License-Identifier: BSD-2-Clause
// xbbd: one worker for each VBD of this domain, and the answers for xbbctl. One thread, which never waits for a worker, nor for
// a file system with images (`ImageLook`).
import Base
import CLinux
import Glibc
import StorageKeeping
public import Xen
import Support

/// Supervises the VBDs whose backend is in this domain.
public final class Supervisor {
    /// What is known of one VBD.
    final class Record {
        let address: VBDAddress
        /// The user that its workers become; nil: the one of all.
        let user: UInt32?
        var supervision: VBDSupervision
        /// The worker, if there is a known one.
        var process: WorkerProcess?
        /// The process that is prepared to take over.
        var standby: Standby?
        /// The open files of the disk, for the next worker; nil while the storage is closed, or if nobody left them.
        var storage: KeptStorage?
        /// What the disk was served from last, also when it is closed.
        var images: [ServedImage] = []
        /// Where the node says that the storage is; nil: not read since the node has changed.
        var location: Location?
        /// Where the worker leaves them.
        var storageChannel: StorageChannel?
        /// Whose the files are that are kept: each worker leaves its own once, before it is confined.
        var storageOrigin = StorageOrigin.nobody
        /// When a standby is to be started, in ns of CLOCK_MONOTONIC; nil if none is scheduled.
        var standbyDue: UInt64?
        /// When the worker is killed because its node is gone, in ns of CLOCK_MONOTONIC; nil while it is there.
        var endsBy: UInt64?
        /// How the last known worker ended.
        var lastExit: WorkerExit?
        /// The change of the worker's program that is in progress.
        var replacement = Replacement.none
        /// Why the last upgrade was abandoned.
        var refusal: String?
        /// Workers that this process started for the VBD.
        var startCount = 0
        /// How much is logged about the VBD, whatever its guest and its workers do.
        let logLimit = LogLimit()
        /// It was logged that an unknown process serves this VBD.
        var loggedForeign = false
        /// Whether the worker answers; nil without one.
        var answers: AnswerWatch?
        /// The call that asks it.
        var question: UInt64?
        /// Who waits until the storage is released.
        var releaseClient: ControlServer.ClientID?
        /// The worker was told to let the storage go for the administrator.
        var isReleasing = false
        /// Whose command has the storage released as long as it runs; nil: none, or it asks again soon.
        var holder: ControlServer.ClientID?
        /// Other storage that the disk is getting.
        var exchange: Exchange?
        /// Who serves could not be written down.
        var isUnnoted = false
        /// How the worker's events are asked for; nil without a worker.
        var events: EventQuestion?
        /// How many events of the disk are told, whatever its guest and its workers do.
        let eventLimit = RateLimit(burst: 32, perSecond: 1)
        /// When states are told that could not be told because of the limit, in ns of CLOCK_MONOTONIC; nil: there are none.
        var eventsDue: UInt64?

        init(_ address: VBDAddress, user: UInt32?, policy: RestartPolicy) {
            self.address = address
            self.user = user
            supervision = VBDSupervision(policy: policy)
        }

        /// A worker is about to serve the storage that the disk had before, for as long as it cannot open that.
        var awaitsStorage: Bool { exchange?.step == .returning && exchange?.client == nil }

        /// Nobody serves the disk, or is about to: the administrator has its storage.
        var isReleased: Bool {
            if case .released = supervision.phase { true } else { isReleasing }
        }
    }

    /// Whose open files xbbd has of a disk.
    enum StorageOrigin {
        /// None are there.
        case nobody
        /// The worker was given them. It may refuse them, where others are configured by now, and leave its own.
        case earlierWorker
        /// The worker has left its own.
        case worker
    }

    /// What a node says of a disk's storage.
    struct Location {
        var format: String?
        var path: String?
    }

    let settings: SupervisorSettings
    let log: Log
    let store: any XenStore
    let own: DomainID
    let directory: RunDirectory
    let eventStore: EventStore
    var eventWaits: [EventWait] = []
    let loop: EventLoop
    private let ownLock: FileLock
    private let storeLock: FileLock
    private let signals: Descriptor
    private var server: ControlServer?
    /// Where the disks' open files are while xbbd is restarted; nil before ``run(for:)``.
    private(set) var storageStore: StorageStore?

    /// The disks' control groups; nil where there are none.
    let groups: DiskGroups?
    var records: [VBDAddress: Record] = [:]
    /// VBDs that changed according to watches; read again before the loop sleeps.
    var dirty: Set<VBDAddress> = []
    var dirtyKinds: Set<String> = []
    /// Disks without a node whose files are in the run directory, because a process still has them.
    var leftovers: Set<VBDAddress> = []
    /// Names below "backend" that were reported as invalid or not ours.
    var reportedNames: Set<String> = []
    private var watchPending = false
    private static let storeCheckInterval = 10 * RestartPolicy.second
    private var nextStoreCheck: UInt64 = 0
    private var sweptAt: UInt64 = 0
    /// When files of disks that are gone are looked at again.
    private var nextSweep: UInt64 { leftovers.isEmpty ? .max : sweptAt &+ Self.storeCheckInterval }
    private var nextBeat: UInt64 = .max
    private var status = ""
    var calls: [UInt64: WorkerCall] = [:]
    var lastCall: UInt64 = 0
    /// Made when workers are asked first.
    var workerGathering: WorkerGathering?
    /// Those who wait, by the number of their question.
    var gatherings: [UInt64: GatheringWait] = [:]
    var images: ImageLook?
    var imageWaits: [ImageWait] = []
    /// What the last look at the images of disks found.
    var imageProblems: [VBDAddress: String] = [:]
    var pluginDump: PluginDump?
    var dumpClients: [ControlServer.ClientID] = []
    /// When xbbd ends at the latest, in ns of CLOCK_MONOTONIC; nil while it is not stopping.
    private var stopDeadline: UInt64?

    /// Claims the run directory and the XenStore. Throws if another xbbd has one of them, or if something that is needed is missing.
    ///
    /// Blocks SIGTERM, SIGINT and SIGHUP in the calling thread. `detach` may fork: it is called after the steps that
    /// are most likely to fail, and before there is a thread or an epoll instance.
    public init(
        settings: SupervisorSettings, store: any XenStore, log: Log,
        detach: () throws(ControlError) -> Void = { () throws(ControlError) in }
    ) throws(ControlError) {
        self.settings = settings
        self.store = store
        self.log = log
        directory = try RunDirectory(settings.runDirectory)
        do throws(OperationError) {
            own = try store.ownDomain()
            switch try FileLock.attemptPatiently(directory.lock) {
            case .taken(let lock): ownLock = lock
            case .held(let note):
                let process = LockNote(reading: note).holder.map { ", process \($0.process)" } ?? ""
                throw OperationError(EADDRINUSE, "serve \(settings.runDirectory) beside another xbbd\(process)")
            }
            storeLock = try StoreOwner.claim(
                loopback: settings.workers.loopback, own: own, runDirectory: settings.runDirectory)
        } catch {
            throw ControlError("\(error)")
        }
        try detach()
        eventStore = EventStore(path: directory.events, log: log)
        let files = directory
        groups = DiskGroups(settings.controlGroup, settings.groupLimits, note: { files.workerGroup($0) }, log)
        do throws(OperationError) {
            if let identity = ProcessIdentity(running: getpid()) {
                try ownLock.write(note: identity.note)
                try storeLock.write(note: StoreOwner.note(identity, runDirectory: settings.runDirectory))
            }
            signals = try SignalDescriptor.open([SIGTERM, SIGINT, SIGHUP])
            loop = try EventLoop()
            server = try ControlServer(path: directory.socket, group: settings.socketGroup, loop: loop) {
                [unowned self] in request($1, from: $0)
            }
            server?.onEnd = { [unowned self] in clientEnded($0) }
        } catch {
            throw ControlError("\(error)")
        }
    }

    /// Supervises until SIGTERM or SIGINT. `manager` is told when all present VBDs have been read, how many there are
    /// whenever that changes, and at its heartbeat interval that the loop is alive: it restarts a loop that hangs.
    ///
    /// Throws if XenStore fails; the workers continue.
    public func run(for manager: ServiceManager) throws(OperationError) {
        if manager.heartbeat != nil { nextBeat = 0 }
        storageStore = StorageStore(manager, directory, log)
        for kind in settings.kinds { try store.watch(kindPath(kind), token: kind) }
        try loop.add(store.watchFileDescriptor) { [unowned self] in watchPending = true }
        if store.endDescriptor >= 0 {
            try loop.add(store.endDescriptor, 0) { [unowned self] in
                loop.remove(store.endDescriptor)
                nextStoreCheck = 0
            }
        }
        try loop.add(signals.raw) { [unowned self] in takeSignal() }
        dirtyKinds = Set(settings.kinds)
        try readChanges()
        noteLost()
        storageStore?.dropRest()
        sweepFiles()
        log.info(
            "serves domain \(own), backend/\(settings.kinds.joined(separator: ", backend/")); "
                + "\(records.count) VBDs; xbbctl at \(directory.socket)")
        manager.say("READY=1\n\(noteStatus() ?? "")")
        while true {
            if let stopDeadline {
                let isLeft = settings.stopsWorkers && records.values.contains { $0.process != nil }
                if !isLeft || stopDeadline <= clinux_monotonic_ns() { break }
            }
            try loop.turn(until: nextDeadline)
            if watchPending {
                watchPending = false
                try takeWatchEvents()
            }
            if !isStopping { try readChanges() }
            try checkStore()
            expire()
            if let status = noteStatus() { manager.say(status) }
            sendHeartbeat(manager)
        }
        manager.say("STOPPING=1")
        server?.close()
        let left = records.values.count { $0.process != nil }
        log.info("ends; \(left) workers go on")
    }

    /// True once xbbd is to end: no more workers are started.
    var isStopping: Bool { stopDeadline != nil }

    /// The log for lines about one VBD.
    func log(_ address: VBDAddress) -> Log {
        log.about(domain: address.domain, device: address.device, limit: records[address]?.logLimit)
    }

    func hold(_ client: ControlServer.ClientID) { server?.hold(client) }
    func isConnected(_ client: ControlServer.ClientID) -> Bool { server?.isConnected(client) == true }
    func isPrivileged(_ client: ControlServer.ClientID) -> Bool { server?.isPrivileged(client) ?? false }
    func answer(_ value: JSON, to client: ControlServer.ClientID) { server?.answer(value, to: client) }
    func answer(_ line: [UInt8], to client: ControlServer.ClientID) { server?.answer(line, to: client) }

    // MARK: The service manager

    /// Counts of VBDs for `systemctl status`, "STATUS=...", if they have changed; otherwise nil.
    private func noteStatus() -> String? {
        var served = 0
        var failed: [VBDAddress] = []
        for record in records.values {
            if record.process != nil { served += 1 }
            if case .failed = record.supervision.phase { failed.append(record.address) }
        }
        var text = "STATUS=\(records.count) disks, \(served) served"
        if !failed.isEmpty {
            text += "; given up: " + failed.sorted().prefix(8).map { "\($0)" }.joined(separator: " ")
        }
        if text == status { return nil }
        status = text
        return text
    }

    /// Reports that the loop is alive, when that is due.
    private func sendHeartbeat(_ manager: ServiceManager) {
        guard let heartbeat = manager.heartbeat else { return }
        let now = clinux_monotonic_ns()
        if now < nextBeat { return }
        manager.say("WATCHDOG=1")
        nextBeat = now &+ heartbeat
    }

    // MARK: Time

    private var nextDeadline: UInt64 {
        var deadline = min(nextStoreCheck, nextBeat, stopDeadline ?? .max, nextSweep)
        func consider(_ other: UInt64?) {
            if let other { deadline = min(deadline, other) }
        }
        if !isStopping {
            for record in records.values {
                consider(record.supervision.deadline)
                consider(record.standby?.deadline)
                consider(record.endsBy)
                consider(record.answers?.deadline)
                consider(eventDeadline(record))
                consider(record.exchange?.deadline)
                if wantsStandby(record) { consider(record.standbyDue) }
            }
        }
        for record in records.values { consider(record.logLimit.deadline) }
        for call in calls.values { consider(call.deadline) }
        for wait in imageWaits { consider(wait.deadline) }
        for wait in eventWaits { consider(wait.deadline) }
        consider(server?.deadline)
        consider(pluginDump?.deadline)
        return deadline
    }

    /// Asks XenStore whether it lives: when its connection has ended, and now and then where nothing would say that.
    private func checkStore() throws(OperationError) {
        let now = clinux_monotonic_ns()
        if nextSweep <= now {
            sweptAt = now
            sweepFiles()
        }
        guard nextStoreCheck <= now else { return }
        _ = try store.ownDomain()
        nextStoreCheck = store.endDescriptor >= 0 ? .max : now &+ Self.storeCheckInterval
    }

    private func expire() {
        let now = clinux_monotonic_ns()
        for call in calls.values where call.deadline <= now { call.expire() }
        expireImages(now: now)
        expireEvents(now: now)
        server?.expire(now: now)
        if let pluginDump, pluginDump.deadline <= now { pluginDump.expire() }
        for record in records.values where record.logLimit.deadline <= now { log(record.address).tellDropped() }
        if isStopping { return }
        for record in records.values {
            expireEnd(record, now: now)
            careForAnswers(record, now: now)
            careForEvents(record, now: now)
            expireExchange(record, now: now)
            expireStandby(record, now: now)
            if wantsStandby(record), let due = record.standbyDue, due <= now { keepStandby(record) }
            if let deadline = record.supervision.deadline, deadline <= now { hand(.timer, to: record) }
        }
    }

    // MARK: Signals

    private func takeSignal() {
        var info = signalfd_siginfo()
        guard unsafe read(signals.raw, &info, MemoryLayout<signalfd_siginfo>.size) > 0, !isStopping else { return }
        if info.ssi_signo == UInt32(SIGHUP) {
            log.info("SIGHUP: VBDs that were given up are tried again")
            for record in records.values { hand(.retry, to: record) }
            return
        }
        log.info("SIG\(info.ssi_signo == UInt32(SIGINT) ? "INT" : "TERM")")
        stopDeadline = clinux_monotonic_ns() &+ 10 * RestartPolicy.second
        // A standby that was called continues; one that only waits is of no use to the next xbbd.
        for record in records.values where record.standby?.isCalled == false { dismiss(record) }
        if settings.stopsWorkers {
            for record in records.values { record.process?.send(SIGTERM) }
        }
    }
}
