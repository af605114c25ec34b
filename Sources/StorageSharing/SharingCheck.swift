// SPDX-License-Identifier: BSD-2-Clause
// The one answer to the question whether a guest may have some storage: what xbbctl attach, the hotplug script and a worker
// whose disk has no script ask.
//
// Storage may be read by many, or written by one. It is the same storage whatever its names are, and whatever lies between:
// a partition of it, a loop device over it, a device-mapper or md device made of it.
import Base
import CLinux
import Glibc
public import Xen
import XenBus

/// What a guest is to have, and how.
public struct SharingCheck: Sendable {
    /// What the guest may do with the storage.
    public enum Mode: Sendable, Equatable {
        /// It reads, as others may.
        case reads
        /// It writes, and nobody else reads or writes.
        case writes
        /// It writes, and whoever configured it takes care of the others (`w!`).
        case shares

        /// The mode of a backend's node.
        public init(node mode: String) {
            self = mode.hasPrefix("w") || mode.hasPrefix("rw") ? (mode.hasSuffix("!") ? .shares : .writes) : .reads
        }
    }

    /// What came out.
    public struct Finding: Sendable, Equatable {
        /// Who uses the storage in a way that excludes the guest, one sentence each; empty if nobody does.
        public var conflicts: [String] = []
        /// Another domain of the same guest has the storage, rightly.
        public var isSameGuest = false
    }

    /// A path, or what the format's plugin alone understands.
    public var location: String
    /// The format of the image.
    public var format: String
    /// What the guest may do.
    public var mode: Mode
    /// The backend's node of the disk itself; nil if it has none yet.
    public var node: String?
    /// The domain that gets the disk.
    public var guest: DomainID
    /// The formats whose locations are no paths.
    public var opaqueFormats: Set<String>

    /// A question.
    public init(
        location: String, format: String, mode: Mode, node: String?, guest: DomainID, opaqueFormats: Set<String>
    ) {
        self.location = location
        self.format = format
        self.mode = mode
        self.node = node
        self.guest = guest
        // XBB itself opens what these stand for, whichever plugin serves it then.
        self.opaqueFormats = opaqueFormats.subtracting(["raw", "auto"])
    }

    /// Who holds a lock on the file at `path` that keeps others from reading or writing it: "PATH is locked by NAME, process
    /// N". nil if nobody does.
    public static func lockHolder(_ path: String, writes: Bool) -> String? {
        guard case .file? = StorageID(path: path) else { return nil }
        return FileLocks(path: path)?.conflict(writes: writes).map { "\(path) \($0)" }
    }

    private var isOpaque: Bool { opaqueFormats.contains(format) }

    /// A path, where a format and a path with two '/' look like a URI.
    private func path(_ location: String, _ format: String) -> String {
        location.hasPrefix("\(format)://") ? String(location.dropFirst(format.utf8.count + 1)) : location
    }

    /// Asks all who might use the storage. Throws if XenStore cannot be read.
    public func run(
        _ store: any XenStore, own: DomainID, topology: @autoclosure () -> BlockTopology = .read(),
        uses: @autoclosure () -> [LocalUse] = LocalUse.read()
    ) throws(OperationError) -> Finding {
        var finding = Finding()
        if mode == .shares { return finding }
        let path = path(location, format)
        let storage = isOpaque ? nil : StorageID(path: path)
        let topology = storage == nil ? BlockTopology(devices: [:]) : topology()
        var same: Set<StorageID> = []
        if let storage { same = topology.above(storage).union(topology.below(storage)).union([storage]) }
        if let storage { finding.conflicts = local(storage, same, topology, uses()) }
        for use in try GuestUse.read(store, own: own, except: node) {
            guard let how = how(use, uses: same), mode == .writes || how == .writes else { continue }
            if try isSameGuest(use.domain, store) {
                finding.isSameGuest = true
                continue
            }
            let what = how == .reads && use.writes ? "below a disk of" : "used by"
            finding.conflicts.append(
                "\(location) is \(what) domain \(use.domain) as \(use.name), mode \(use.mode)")
        }
        // Who is known by name was named; a guest that has it rightly has claimed it too.
        if finding.conflicts.isEmpty, !finding.isSameGuest, let storage {
            if let claim = claim(storage, path, topology) { finding.conflicts.append(claim) }
        }
        return finding
    }

    // MARK: In this domain

    private func local(
        _ storage: StorageID, _ same: Set<StorageID>, _ topology: BlockTopology, _ uses: [LocalUse]
    ) -> [String] {
        var found: [String] = []
        func add(_ text: String, writes: Bool) {
            if mode == .writes || writes, !found.contains(text) { found.append(text) }
        }
        for use in uses where same.contains(use.storage) {
            let through =
                use.storage == storage || topology.devices[use.storage] == nil
                ? "" : ", as \(topology.name(of: use.storage))"
            add("\(location) \(use.text) in this domain\(through)", writes: use.writes)
        }
        for holder in topology.above(storage) {
            guard let device = topology.devices[holder], device.isHolder else { continue }
            add("\(location) is part of \(topology.name(of: holder)) in this domain", writes: !device.isReadOnly)
        }
        return found.sorted()
    }

    /// Who has claimed the storage without a name that is listed anywhere, if anybody.
    private func claim(_ storage: StorageID, _ path: String, _ topology: BlockTopology) -> String? {
        if let holder = Self.lockHolder(path, writes: mode == .writes) { return holder }
        guard mode == .writes else { return nil }
        for device in topology.above(storage).union([storage]) {
            guard let name = device == storage ? path : topology.devices[device].map({ "/dev/\($0.name)" }),
                device.deviceNumber != nil
            else { continue }
            let raw = unsafe clinux_open(name, O_RDONLY | O_EXCL | O_NONBLOCK | O_CLOEXEC, 0)
            if raw >= 0 {
                close(raw)
            } else if errno == EBUSY {
                let through = device == storage ? "" : ", as \(topology.name(of: device))"
                return
                    "\(location) is in use in this domain\(through): a program or the kernel has claimed it for itself "
                    + "(O_EXCL)"
            }
        }
        return nil
    }

    // MARK: Guests

    /// How another guest's disk uses one of `same`; nil if it does not.
    private func how(_ use: GuestUse, uses same: Set<StorageID>) -> Mode? {
        let mode: Mode = use.writes ? .writes : .reads
        if isOpaque || opaqueFormats.contains(use.format) {
            // Of two such locations only the plugin knows more than whether they are written alike; "/" is none.
            let isAlike = isOpaque && use.format == format && use.location == location && location != "/"
            return isAlike ? mode : nil
        }
        if use.storage.contains(where: same.contains) { return mode }
        let other = path(use.location, use.format)
        if let storage = StorageID(path: other) {
            if same.contains(storage) { return mode }
        } else if !other.isEmpty, other == path(location, format) {
            return mode
        }
        return use.below.contains(where: same.contains) ? .reads : nil
    }

    /// Two domains are one guest while it migrates on one host, or where one is the other's stub domain
    /// (block-common.sh).
    private func isSameGuest(_ other: DomainID, _ store: any XenStore) throws(OperationError) -> Bool {
        if other == guest { return false }
        if try store.text("/local/domain/\(other)/target") == String(guest) { return true }
        if try store.text("/local/domain/\(guest)/target") == String(other) { return true }
        guard let machine = try store.text("/local/domain/\(guest)/vm") else { return false }
        return try store.text("/local/domain/\(other)/vm") == machine
    }
}
