// SPDX-License-Identifier: BSD-2-Clause
// The device model of a guest that needs QEMU for nothing but disks, when XBB serves these disks.
//
// For disks below backend/qdisk, libxl starts a device model with the guest and waits until it reports that it is
// running (libxl_dm.c, libxl__need_xenpv_qemu and libxl__spawn_local_dm). libxl does not check such disks itself, so
// only the device model can make `xl create` fail if an image cannot be opened.
import Base
import CLinux
import Glibc
import Support
public import Xen
import XenBus

/// Reports that it is running once all disks of the guest are open, answers libxl, and stays until it is stopped or the
/// guest is gone. Use from one thread.
public final class DeviceModel {
    private let arguments: DeviceModelArguments
    private let store: any XenStore
    private let log: Log
    private let loop: EventLoop
    private let signals: Descriptor
    private var monitor: MonitorServer?
    private var hasEvents = false
    private var isEnding = false

    /// Kinds of backends that only QEMU serves for such guests.
    private static let foreignKinds = ["vfb", "vkbd", "9pfs", "qusb"]
    private static let guestToken = "guest"

    /// Blocks SIGTERM, SIGINT and SIGHUP in the calling thread; libxl ends a device model with them.
    public init(_ arguments: DeviceModelArguments, store: any XenStore, log: Log) throws(ControlError) {
        self.arguments = arguments
        self.store = store
        self.log = log
        do throws(OperationError) {
            signals = try SignalDescriptor.open([SIGTERM, SIGINT, SIGHUP])
            loop = try EventLoop()
            try loop.add(store.watchFileDescriptor) { [unowned self] in hasEvents = true }
            try loop.add(signals.raw) { [unowned self] in isEnding = true }
        } catch {
            throw ControlError("\(error)")
        }
    }

    /// Runs until the end. Throws if the guest must not be started, and if XenStore fails.
    public func run() throws(ControlError) {
        let domain = arguments.domain
        try asControlError { () throws(OperationError) in
            try store.watch(disksPath, token: "disks")
            try store.watch("/local/domain/\(domain)/domid", token: Self.guestToken)
        }
        for kind in Self.foreignKinds {
            let found = try asControlError { () throws(OperationError) in
                try store.childrenIfPresent("backend/\(kind)/\(domain)")
            }
            guard found.isEmpty else {
                throw ControlError(
                    "domain \(domain) has a device of kind \(kind), which only QEMU serves: take QEMU as device model")
            }
        }
        // The socket comes first: libxl connects as soon as it reads "running".
        if let path = arguments.monitorPath {
            monitor = try asControlError { () throws(OperationError) in try MonitorServer(path: path, loop: loop) }
        }
        defer { monitor?.close() }
        try awaitDisks()
        if isEnding { return }
        try asControlError { () throws(OperationError) in
            try store.write("device-model/\(domain)/state", "running")
        }
        log.info("domain \(domain) runs")
        _ = try turn(until: nil) { () throws(OperationError) -> Bool? in try isGuestGone() ? true : nil }
        log.info("domain \(domain) is over")
    }

    /// Relative paths, as QEMU and libxl use them: below the home of this process's own domain.
    private var disksPath: String { "backend/qdisk/\(arguments.domain)" }

    /// Runs the loop until `check` returns a value, a stop is requested, or `deadline` has come. `check` is called at
    /// once and after each change.
    private func turn<Value>(
        until deadline: UInt64?, _ check: () throws(OperationError) -> Value?
    ) throws(ControlError) -> Value? {
        try asControlError { () throws(OperationError) -> Value? in
            while !isEnding {
                while try store.nextWatchEvent() != nil {}
                hasEvents = false
                if let value = try check() { return value }
                repeat {
                    if let deadline, clinux_monotonic_ns() >= deadline { return nil }
                    try loop.turn(until: deadline)
                } while !hasEvents && !isEnding
            }
            return nil
        }
    }

    /// The state of all disks taken together.
    private enum Disks {
        case open(Int)
        case failed(String)
    }

    private func awaitDisks() throws(ControlError) {
        var waitingFor = ""
        let deadline = clinux_monotonic_ns() &+ UInt64(arguments.waitSeconds) &* RestartPolicy.second
        let result = try turn(until: deadline) { () throws(OperationError) -> Disks? in
            var count = 0
            for device in try store.childrenIfPresent(disksPath) {
                let path = "\(disksPath)/\(device)"
                let name = try store.text("\(path)/\(BackendKey.dev)") ?? device
                switch try store.text("\(path)/\(BackendKey.hotplugStatus)") {
                case "connected": count += 1
                case "error":
                    let reason = try store.text("\(path)/\(BackendKey.hotplugError)") ?? "the log of xbbd says why"
                    return .failed("disk \(name) of domain \(arguments.domain): \(reason)")
                default:
                    waitingFor = "\(path) (\(name))"
                    return nil
                }
            }
            return .open(count)
        }
        switch result {
        case .open(let count)?: log.info("domain \(arguments.domain): \(count) disks are open")
        case .failed(let text)?: throw ControlError(text)
        case nil where isEnding: return
        case nil:
            throw ControlError(
                "nobody opened \(waitingFor) within \(arguments.waitSeconds) s: is xbbd running, with '--backend "
                    + "qdisk'?", status: .timedOut)
        }
    }

    /// In a driver domain the guest's home may not be readable, so only "not there" counts as an answer.
    private func isGuestGone() throws(OperationError) -> Bool {
        do throws(OperationError) {
            _ = try store.read("/local/domain/\(arguments.domain)/domid", in: .none)
            return false
        } catch {
            if error.isNotFound { return true }
            if error.code == EACCES { return false }
            throw error
        }
    }
}
