// SPDX-License-Identifier: BSD-2-Clause
// What a worker may do in XenStore: read its two nodes, change its own keys, and nothing else. Pure.
import XenBus

/// The part of XenStore that belongs to one VBD.
///
/// A worker's own connection would have the rights of dom0: it could make backend nodes that name any file, and have them
/// served by another worker that begins as root.
package struct StorePolicy: Sendable, Equatable {
    /// The backend's node, as this process was told it at its start.
    package let backendPath: String
    /// The frontend's node, as the toolstack wrote it; nil: it is not known yet, and nothing of it is given out.
    package var frontendPath: String?

    /// The part of the backend's node at `backendPath`: "/local/domain/0/backend/vbd/1/51712".
    package init(backendPath: String, frontendPath: String? = nil) {
        self.backendPath = backendPath
        self.frontendPath = frontendPath
    }

    /// Where errors of the VBD stand: "error/" and the backend's path, in the home of the backend's domain.
    package var errorPath: String { BackendKey.errorPath(of: backendPath) }

    /// Keys of the backend's node that a worker writes. Not among them: what says which storage is served, by which script,
    /// for whom and whether it is wanted.
    static let written: Set<String> = [
        BackendKey.state, BackendKey.sectors, BackendKey.sectorSize, BackendKey.physicalSectorSize, BackendKey.info,
        BackendKey.maxRingPageOrder, BackendKey.maxRingPages, BackendKey.maxQueues, BackendKey.flushCache,
        BackendKey.barrier, BackendKey.discard, BackendKey.discardGranularity, BackendKey.discardAlignment,
        BackendKey.discardSecure, BackendKey.persistent, BackendKey.maxIndirectSegments, BackendKey.hotplugStatus,
        BackendKey.hotplugError, BackendKey.storage, BackendKey.chain, BackendKey.stall, BackendKey.handedOver,
        BackendKey.statistics, BackendKey.trouble, BackendKey.paused, BackendKey.swapServed,
    ]

    /// May be read.
    package func allowsReading(_ path: String) -> Bool {
        if path == Self.ping { return true }
        return Self.isPath(path) && (key(path) != nil || frontendPath.map { path.hasPrefix($0 + "/") } == true)
    }

    /// May be written.
    package func allowsWriting(_ path: String) -> Bool {
        path == errorPath + "/error" || key(path).map(Self.written.contains) == true
    }

    /// May be removed.
    package func allowsRemoving(_ path: String) -> Bool {
        path == errorPath || allowsWriting(path) && path != "\(backendPath)/\(BackendKey.state)"
    }

    /// May be watched.
    package func allowsWatching(_ path: String) -> Bool {
        path == backendPath || frontendPath.map { path == "\($0)/\(FrontendKey.state)" } == true
    }

    /// What is read to learn whether XenStore lives: relative to the home of the reader's domain.
    package static let ping = "domid"

    /// The name of a key that stands in the backend's node itself.
    private func key(_ path: String) -> String? {
        guard path.hasPrefix(backendPath + "/") else { return nil }
        let name = path.dropFirst(backendPath.utf8.count + 1)
        return name.isEmpty || name.contains("/") ? nil : String(name)
    }

    /// XenStore has no "..", but what is compared with a prefix should mean what it says.
    private static func isPath(_ path: String) -> Bool {
        path.utf8.count <= 1024 && !path.contains("//") && !path.utf8.contains(0)
    }
}
