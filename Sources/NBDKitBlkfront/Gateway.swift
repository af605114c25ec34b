// SPDX-License-Identifier: BSD-2-Clause
// The disks behind all connections of an nbdkit process.
import Blkfront
import CNBDKit
import XenLoopback

/// The frontends of one domain for all NBD clients: nbdkit's threads call a disk, its queues serialise.
///
/// A domain has one process as its frontend, so all its disks that are exported are exported by one nbdkit.
///
/// No lock guards the state, because nbdkit's order does: parameters come before it forks and before there are other
/// threads, ``connect()`` before the first client, ``close()`` after the last one. There must not be a `Mutex` before
/// the fork anyway: Swift's remembers the number of the thread that it first saw, and that changes with a fork.
final class Gateway: @unchecked Sendable {
    static let shared = Gateway()

    private var configuration = PluginConfiguration()
    private var disks: [(name: DeviceName, disk: FrontDisk)] = []
    /// Why there are no disks.
    private(set) var failure: String?

    func configure(_ key: String, _ value: String) throws(ParameterError) {
        try configuration.set(key, value)
    }

    func checkConfiguration() throws(ParameterError) {
        if configuration.domain == nil { throw ParameterError(message: "domid=<N> is missing") }
    }

    /// Connects all disks. Threads start here, so it must not be before nbdkit has forked.
    ///
    /// A failure is told to each client: if nbdkit ended here, the command of its --run would wait for ever at a socket that
    /// nobody serves.
    func start() {
        do {
            try connect()
        } catch {
            failure = "connect to the disk: \(error)"
            report("connect to the disk: \(error)")
        }
    }

    private func connect() throws {
        let domain = try LoopbackDomain(joining: configuration.domain ?? 0, directory: configuration.directory)
        // Grants of a frontend that was here before; those in use stay.
        for reference in domain.grantedReferences { _ = domain.endAccess(reference) }
        do {
            for name in configuration.exports { disks.append((name, try connect(name, domain, configuration.options))) }
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
    var exports: [String] { configuration.exports.map(\.description) }

    /// The disk of an NBD export; the first one for the empty name, nil if there is none of that name.
    func disk(_ export: String) -> FrontDisk? {
        if export.isEmpty { return disks.first?.disk }
        guard let name = DeviceName(export) else { return nil }
        return disks.first { $0.name == name }?.disk
    }

    func close() {
        for (name, disk) in disks {
            do {
                try disk.close()
            } catch {
                report("close \(name): \(error)")
            }
        }
        disks = []
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
