// SPDX-License-Identifier: BSD-2-Clause
// A real Ceph on this machine: a monitor, an OSD in memory, keys (cephx), and the pool "rbd".
import Foundation

/// The cluster of all tests. It ends with this process, however that ends.
final class CephLab: Sendable {
    let directory: String

    private static let cluster = Result { try CephLab() }

    /// The cluster, started by the first test that asks for it.
    static func shared() throws -> CephLab { try cluster.get() }

    /// scripts/setup.sh installs it where Debian has it.
    static let isInstalled = ["ceph-mon", "ceph-osd", "rbd"].allSatisfy {
        FileManager.default.isExecutableFile(atPath: "/usr/bin/\($0)")
    }

    private init() throws {
        directory = try makeTemporaryDirectory("ceph")
        try LibxlLab.shell("'\(packageDirectory)/scripts/ceph-lab.sh' start '\(directory)' cephx 1 \(getpid())")
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

    /// Stops a daemon, "mon.a" or "osd.0", as if its machine hung, while `body` runs.
    func without<Value>(_ daemon: String, _ body: () throws -> Value) throws -> Value {
        try run("kill -STOP $(cat \(daemon).pid)")
        defer { _ = try? run("kill -CONT $(cat \(daemon).pid)") }
        return try body()
    }

    /// The clients that the cluster refuses.
    func blocklist() throws -> Set<String> {
        Set(
            try run("ceph osd blocklist ls 2>/dev/null").split(separator: "\n").compactMap {
                $0.split(separator: " ").first.map(String.init)
            })
    }

    /// The client that has the exclusive lock of an image.
    func lockOwner(of image: String) throws -> String {
        let list = try run("rbd lock ls --format json \(image)")
        struct Lock: Decodable { var address: String }
        guard let lock = try JSONDecoder().decode([Lock].self, from: Data(list.utf8)).first else {
            throw LabError("no lock of \(image)")
        }
        return lock.address
    }
}
