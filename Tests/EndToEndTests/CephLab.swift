// SPDX-License-Identifier: BSD-2-Clause
// A real Ceph on this machine: a monitor, OSDs in memory and the pool "rbd".
import Foundation

/// A cluster in a directory of its own. It ends with this object.
final class CephLab {
    let directory: String

    init(auth: String = "none", osds: Int = 1) throws {
        directory = try makeTemporaryDirectory("ceph")
        try LibxlLab.shell("'\(packageDirectory)/scripts/ceph-lab.sh' start '\(directory)' \(auth) \(osds)")
    }

    deinit {
        _ = try? LibxlLab.shell("'\(packageDirectory)/scripts/ceph-lab.sh' stop '\(directory)'")
        try? FileManager.default.removeItem(atPath: directory)
    }

    /// Runs a command with this cluster as the one that rbd(8) and ceph(8) mean.
    @discardableResult
    func run(_ command: String) throws -> String {
        try LibxlLab.shell("export CEPH_CONF='\(directory)/ceph.conf'; cd '\(directory)'; \(command)")
    }

    /// A disk of this cluster.
    func disk(_ image: String, mode: String = "w", _ options: String = "") -> Storage {
        Storage(
            path: image, mode: mode, format: "rbd",
            options: "conf=\(directory)/ceph.conf,run-dir=\(directory)/run" + (options.isEmpty ? "" : ",\(options)"))
    }

    /// The first bytes of an image, as rbd(8) exports it.
    func content(_ image: String, bytes: Int) throws -> [UInt8] {
        try run("rm -f export; rbd export --no-progress \(image) export")
        guard let file = FileHandle(forReadingAtPath: "\(directory)/export") else { throw LabError("no export") }
        return Array(try file.read(upToCount: bytes) ?? Data())
    }
}
