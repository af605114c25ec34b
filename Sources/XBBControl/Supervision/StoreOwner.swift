// SPDX-License-Identifier: BSD-2-Clause
// One xbbd for each XenStore. Two would start two workers for a disk, each of them with the right that its own run
// directory gives: so the right to a XenStore has its place beside the XenStore, and not in a run directory.
import Base
import CLinux
import Glibc
import Settings
import Xen

/// Who serves the disks of a XenStore. The claim is a flock(2): it ends with the process that holds it.
public struct StoreOwner: Equatable, Sendable {
    /// The number of the xbbd that has the claim; nil if it has not said it yet.
    public let process: Int32?
    /// Its run directory, where its socket is; nil if it has not said it yet.
    public let runDirectory: String?

    /// What is known about the claim of a XenStore.
    public enum Finding: Equatable, Sendable {
        /// No xbbd serves it.
        case nobody
        /// This xbbd does.
        case served(StoreOwner)
        /// This user may not see it, or an xbbd of an earlier version makes no claim.
        case unknown
    }

    /// Where the claim of the machine's own XenStore is, whatever socket or device leads to it.
    static let usualPlace = SettingsSchema.usualRunDirectory + "/xenstore.lock"
    private static let usualSockets = ["/run/xenstored/socket", "/var/run/xenstored/socket"]

    /// Where the claim of the XenStore of the loopback Xen in `loopback`, or else of the environment or the machine, may be:
    /// beside the socket, or where that cannot be written, among our own files under the numbers of the socket's folder.
    static func places(loopback: String?) -> [String] {
        let variable = unsafe getenv("XENSTORED_PATH").map { unsafe String(cString: $0) }
        guard let socket = loopback.map({ LoopbackPlace.storeSocket(in: $0) }) ?? variable,
            let folder = realPath(InstallPaths.folder(of: DaemonProcess.absolute(socket)))
        else { return [usualPlace] }
        let name = socket.split(separator: "/").last.map(String.init) ?? ""
        let path = "\(folder)/\(name)"
        // A link leads to the same XenStore.
        let target = realPath(path) ?? path
        if usualSockets.contains(target) { return [usualPlace] }
        var status = stat()
        guard unsafe stat(InstallPaths.folder(of: target), &status) == 0 else { return ["\(target).xbbd.lock"] }
        let numbers = "\(status.st_dev)-\(status.st_ino)"
        return ["\(target).xbbd.lock", SettingsSchema.usualRunDirectory + "/xenstore-\(numbers).lock"]
    }

    private static func realPath(_ path: String) -> String? {
        guard let raw = unsafe realpath(path, nil) else { return nil }
        defer { unsafe free(raw) }
        return unsafe String(cString: raw)
    }

    /// Takes the claim for the caller, whose run directory is `runDirectory`. Throws who has it.
    static func claim(loopback: String?, own: DomainID, runDirectory: String) throws(OperationError) -> FileLock {
        var refused: OperationError?
        for path in places(loopback: loopback) {
            if path.hasPrefix(SettingsSchema.usualRunDirectory + "/") {
                _ = unsafe mkdir(SettingsSchema.usualRunDirectory, 0o755)
            }
            do throws(OperationError) {
                return try claim(path, own: own)
            } catch {
                guard [EROFS, EACCES, EPERM].contains(error.code) else { throw error }
                refused = error
            }
        }
        throw refused ?? OperationError(ENOENT, "claim the XenStore")
    }

    /// Somebody who looks holds the lock for a moment: it is tried for half a second.
    private static func claim(_ path: String, own: DomainID) throws(OperationError) -> FileLock {
        let note: String
        switch try FileLock.attemptPatiently(path) {
        case .taken(let lock): return lock
        case .held(let text): note = text
        }
        let owner = StoreOwner(note: note)
        let who = owner.process.map { "xbbd, process \($0)" } ?? "another xbbd"
        let place = owner.runDirectory.map { ", with the run directory \($0)" } ?? ""
        throw OperationError(
            .option,
            "\(who)\(place), serves the disks of domain \(own) already: two would serve them twice. End it first "
                + "(systemctl stop xbbd)"
                + (owner.runDirectory.map { ", or use it: xbbctl --socket \($0)/xbbd.sock" } ?? ""))
    }

    /// Looks who serves the XenStore of a loopback Xen, or else of the environment or the machine.
    public static func find(loopback: String?) -> Finding {
        var finding = Finding.unknown
        for path in places(loopback: loopback) {
            let raw = unsafe clinux_open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0)
            // An xbbd that makes no claim may be there; its socket is.
            guard raw >= 0 else { continue }
            let file = Descriptor(owning: raw)
            if flock(raw, LOCK_SH | LOCK_NB) == 0 {
                finding = .nobody
            } else if errno == EWOULDBLOCK, case .bytes(let note) = file.readAvailable(limit: 512) {
                return .served(StoreOwner(note: String(decoding: note, as: UTF8.self)))
            }
        }
        return finding
    }

    /// What the holder writes into the file.
    static func note(_ identity: ProcessIdentity, runDirectory: String) -> String {
        identity.note + runDirectory + "\n"
    }

    private init(note: String) {
        let lines = note.split(separator: "\n", omittingEmptySubsequences: false)
        process = lines.first.flatMap { ProcessIdentity(note: String($0))?.process }
        runDirectory = lines.count > 1 && lines[1].hasPrefix("/") ? String(lines[1]) : nil
    }
}
