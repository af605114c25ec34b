// SPDX-License-Identifier: BSD-2-Clause
// The disk behind all connections of an nbdkit process.
import Blkfront
import CNBDKit
import Synchronization
import Xen
import XenLoopback

/// One frontend for all NBD clients: nbdkit's threads call it, the disk's queues serialise.
final class Gateway: Sendable {
    static let shared = Gateway()

    private struct State {
        var configuration = PluginConfiguration()
        var disk: FrontDisk?
    }

    private let state = Mutex(State())

    func configure(_ key: String, _ value: String) throws(ParameterError) {
        try state.withLock { state throws(ParameterError) in try state.configuration.set(key, value) }
    }

    func checkConfiguration() throws(ParameterError) {
        if state.withLock({ $0.configuration.domain }) == nil {
            throw ParameterError(message: "domid=<N> is missing")
        }
    }

    /// Connects. Threads start here, so it must not be before nbdkit has forked.
    func connect() throws {
        let configuration = state.withLock { $0.configuration }
        let domain = try LoopbackDomain(joining: configuration.domain ?? 0, directory: configuration.directory)
        // Grants of a frontend that was here before; those in use stay.
        for reference in domain.grantedReferences { _ = domain.endAccess(reference) }
        let device = FrontDevice(
            domain: domain, store: try domain.openStore(), number: configuration.device.number,
            options: configuration.options)
        try device.connect()
        let disk = try FrontDisk(device) { event in
            switch event {
            case .resized(let bytes): debug("the disk has \(bytes) bytes now; NBD clients see it when they reconnect")
            case .backendCloses(let state): debug("the backend closes, state \(state)")
            }
        }
        state.withLock { $0.disk = disk }
    }

    /// The disk, nil before ``connect()`` and after ``close()``.
    var disk: FrontDisk? { state.withLock { $0.disk } }

    func close() {
        let disk = state.withLock { state in
            let disk = state.disk
            state.disk = nil
            return disk
        }
        do {
            try disk?.close()
        } catch {
            report("close the disk: \(error)")
        }
    }
}

/// An error message of nbdkit, on the standard error or in the log.
func report(_ message: String) {
    unsafe message.withCString { unsafe cnbdkit_error($0) }
}

/// A message that nbdkit shows with -v.
func debug(_ message: String) {
    unsafe message.withCString { unsafe cnbdkit_debug($0) }
}
