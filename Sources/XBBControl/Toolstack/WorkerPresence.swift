// SPDX-License-Identifier: BSD-2-Clause
// Whether a process has the storage of a disk. XenStore does not say it: a backend is in state 6 as soon as its guest has
// closed, and keeps its storage open for the guest's next driver.
import Base
import CLinux
import Glibc
import Support

/// Asks xbbd whether a disk has a worker; without xbbd, its lock says it.
public struct WorkerPresence: Sendable {
    private let socket: String

    /// The workers of the xbbd whose socket is at `socket`; they may live without it.
    public init(socket: String) {
        self.socket = socket
    }

    /// True while a worker lives that serves `address`, or has served it.
    public func isThere(_ address: VBDAddress) -> Bool {
        do throws(ControlError) {
            return try ask(address)["worker"]?.string != nil
        } catch {
            // No xbbd, or an earlier version. Nobody else takes the lock then.
            return FileLock.isHeld(RunDirectory.workerLock(address, beside: socket))
        }
    }

    /// What xbbd says of a worker that does not answer; nil of one that does, or without an xbbd.
    func silence(of address: VBDAddress) -> String? {
        do throws(ControlError) {
            return try ask(address)["silent"]?.string
        } catch {
            return nil
        }
    }

    private func ask(_ address: VBDAddress) throws(ControlError) -> JSON {
        guard let reference = VBDReference(kind: address.kind, domain: address.domain, device: address.device) else {
            return .null
        }
        return try ControlClient(path: socket, timeoutSeconds: 5).call(.worker(reference)).value
    }

    /// Waits until no worker has the disk; false where one still does after `seconds`.
    public func awaitEnd(of address: VBDAddress, seconds: Double) -> Bool {
        let deadline = clinux_monotonic_ns() &+ UInt64(min(max(seconds, 0), 1e6) * 1e9)
        var pause: UInt32 = 1000
        while isThere(address) {
            if clinux_monotonic_ns() >= deadline { return false }
            usleep(pause)
            pause = min(pause * 2, 50_000)
        }
        return true
    }
}
