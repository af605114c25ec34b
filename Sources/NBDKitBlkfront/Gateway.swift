// SPDX-License-Identifier: BSD-2-Clause
// The disks behind all connections of an nbdkit process.
import Blkfront
import CNBDKit
import Synchronization
import Xen
import XenLoopback

/// The frontends of one domain for all NBD clients: nbdkit's threads call a disk, its queues serialise.
///
/// A domain has one process as its frontend, so all its disks that are exported are exported by one nbdkit.
final class Gateway: Sendable {
    static let shared = Gateway()

    private struct State {
        var configuration = PluginConfiguration()
        var disks: [(name: DeviceName, disk: FrontDisk)] = []
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

    /// Connects all disks. Threads start here, so it must not be before nbdkit has forked.
    func connect() throws {
        let configuration = state.withLock { $0.configuration }
        let domain = try LoopbackDomain(joining: configuration.domain ?? 0, directory: configuration.directory)
        // Grants of a frontend that was here before; those in use stay.
        for reference in domain.grantedReferences { _ = domain.endAccess(reference) }
        do {
            for name in configuration.exports {
                let disk = try connect(name, domain, configuration.options)
                state.withLock { $0.disks.append((name, disk)) }
            }
        } catch {
            close()
            throw error
        }
    }

    private func connect(_ name: DeviceName, _ domain: LoopbackDomain, _ options: FrontOptions) throws -> FrontDisk {
        let device = FrontDevice(
            domain: domain, store: try domain.openStore(), number: name.number, options: options)
        try device.connect()
        return try FrontDisk(device) { event in
            switch event {
            case .resized(let bytes): debug("\(name) has \(bytes) bytes now; clients see it when they reconnect")
            case .backendCloses(let state): debug("the backend of \(name) closes, state \(state)")
            }
        }
    }

    /// The names of the disks, the default one first.
    var exports: [String] { state.withLock { $0.configuration.exports.map(\.description) } }

    /// The disk of an NBD export; the first one for the empty name, nil if there is none of that name.
    func disk(_ export: String) -> FrontDisk? {
        state.withLock { state in
            if export.isEmpty { return state.disks.first?.disk }
            guard let name = DeviceName(export) else { return nil }
            return state.disks.first { $0.name == name }?.disk
        }
    }

    func close() {
        let disks = state.withLock { state in
            let disks = state.disks
            state.disks = []
            return disks
        }
        for (name, disk) in disks {
            do {
                try disk.close()
            } catch {
                report("close \(name): \(error)")
            }
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
