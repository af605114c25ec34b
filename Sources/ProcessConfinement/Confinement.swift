// SPDX-License-Identifier: BSD-2-Clause
// Confinement of a process that serves a disk: the rights that it gives up once its storage is open.
import Base
import CLinux
import Glibc
import Support

/// How a worker is to be confined.
public struct ConfinementSettings: Sendable, Equatable {
    /// The user to become; nil keeps the current one.
    public var user: ConfinementUser?
    /// An empty directory that becomes the root; nil keeps the current root.
    public var emptyDirectory: String?
    /// What the process may use from then on; nil: as much as before.
    public var limits: ConfinementLimits?

    /// Keeps the current user and root.
    public init() {}
}

/// How much a confined process may use.
public struct ConfinementLimits: Sendable, Equatable {
    /// Bytes of data beyond those that it has when it is confined (RLIMIT_DATA).
    public var memoryBytes: Int
    /// Processes and threads of its user (RLIMIT_NPROC): only where no other disk has the same one.
    public var tasks: Int
    /// Open files (RLIMIT_NOFILE). No disk comes near.
    static let descriptors: UInt64 = 4096

    /// These.
    public init(memoryBytes: Int, tasks: Int) {
        self.memoryBytes = memoryBytes
        self.tasks = tasks
    }
}

/// A user of this system.
public struct ConfinementUser: Sendable, Equatable {
    /// The user if no other is named.
    public static let usual = "xbb"

    /// The name in the user database.
    public let name: String
    let user: UInt32
    let group: UInt32
    /// Of one disk, so that what is counted for the user is counted for the disk.
    let isOwn: Bool

    /// The user of one disk: a number that is nobody else's, and a group of the same number.
    public init(ownNumber number: UInt32) {
        name = "\(number)"
        user = number
        group = number
        isOwn = true
    }

    /// Looks up a user; nil if there is none. Throws if the user database cannot be read.
    public init?(named name: String) throws(OperationError) {
        var user: UInt32 = 0
        var group: UInt32 = 0
        let found = unsafe clinux_user(name, &user, &group)
        if found < 0 { throw OperationError(.open, "look for user '\(name)'", .errno(errno)) }
        if found == 0 { return nil }
        self.name = name
        self.user = user
        self.group = group
        isOwn = false
    }
}

/// Confines the process.
package enum Confinement {
    /// Gives up every right that a process serving an open disk does not need; docs/confinement.md lists them.
    ///
    /// Throws if a mandatory part fails: the disk must not be served then. Parts that this process or this kernel
    /// cannot apply are logged. With `network`, the plugin may open connections.
    package static func enter(_ settings: ConfinementSettings, network: Bool, log: Log) throws(OperationError) {
        let isRoot = geteuid() == 0
        var parts: [String] = []
        if clinux_no_new_privileges() != 0 { throw failure("refuse new privileges") }
        // Before the root directory, which has no /proc.
        if let limits = settings.limits { try apply(limits, countsTasks: isRoot && settings.user?.isOwn == true) }
        if let path = settings.emptyDirectory, isRoot {
            if unsafe clinux_confine_root(path) == 0 {
                parts.append("root \(path)")
            } else {
                log.warning("confinement: the root stays '/', not \(path): \(errnoText(errno))")
            }
        }
        let landlock = clinux_confine_landlock(network ? 1 : 0)
        if landlock > 0 {
            parts.append("Landlock \(landlock)")
        } else {
            log.info("confinement: no Landlock\(landlock < 0 ? ": \(errnoText(errno))" : " in this kernel")")
        }
        if let user = settings.user, isRoot {
            if clinux_confine_user(user.user, user.group) != 0 { throw failure("become user '\(user.name)'") }
            parts.append("user \(user.name)")
        }
        if clinux_no_capabilities() != 0 { throw failure("give up capabilities") }
        if clinux_confine_filter(network ? 1 : 0) != 0 { throw failure("filter system calls") }
        log.info("confined: \((parts + ["no capabilities", "seccomp"]).joined(separator: ", "))")
    }

    private static func apply(_ limits: ConfinementLimits, countsTasks: Bool) throws(OperationError) {
        let tasks = countsTasks ? UInt64(clamping: limits.tasks) : 0
        if clinux_limit_worker(UInt64(clamping: limits.memoryBytes), ConfinementLimits.descriptors, tasks) != 0 {
            throw failure("limit memory, descriptors and threads")
        }
    }

    /// Gives up the protection from the out-of-memory killer that a process has from the one that started it: memory that a
    /// guest makes it take is then taken from this process first. To be called before there are other processes and threads.
    package static func giveUpProtection(log: Log) {
        if clinux_unprotect() < 0 { log.warning("protected from the out-of-memory killer: \(errnoText(errno))") }
    }

    private static func failure(_ what: String) -> OperationError {
        OperationError(
            .open, "confinement: cannot \(what): \(errnoText(errno)); --no-confine serves without, see xbb-vbd(8)")
    }
}
