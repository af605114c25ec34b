// SPDX-License-Identifier: BSD-2-Clause
// Rights that the process of a disk gives up when its storage is open, and what is kept.
import Base
import CLinux
import Glibc
import Support

/// How a worker is to be confined.
public struct ConfinementSettings: Sendable, Equatable {
    /// The user that it becomes; nil: stays who it is.
    public var user: ConfinementUser?
    /// An empty directory that becomes its root; nil: names stay.
    public var emptyDirectory: String?

    /// Stays who it is, with the usual root.
    public init() {}
}

/// A user of this system.
public struct ConfinementUser: Sendable, Equatable {
    /// The user that is taken where nobody names another one.
    public static let usual = "xbb"

    /// The name in the user database.
    public let name: String
    let user: UInt32
    let group: UInt32

    /// Looks a user up; nil where there is none. Throws where the user database does not answer.
    public init?(named name: String) throws(OperationError) {
        var user: UInt32 = 0
        var group: UInt32 = 0
        let found = unsafe clinux_user(name, &user, &group)
        if found < 0 { throw OperationError(.open, "look for user '\(name)'", .errno(errno)) }
        if found == 0 { return nil }
        self.name = name
        self.user = user
        self.group = group
    }
}

/// Confines the process.
package enum Confinement {
    /// Takes away all that a process does not need that serves an open disk; docs/confinement.md says what it is.
    ///
    /// Throws where a part of it fails that must not: the disk is not to be served then. What this process or this kernel
    /// cannot do is logged. With `network` the plugin may make connections.
    package static func enter(_ settings: ConfinementSettings, network: Bool, log: Log) throws(OperationError) {
        let isRoot = geteuid() == 0
        var parts: [String] = []
        if clinux_no_new_privileges() != 0 { throw failure("refuse new privileges") }
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

    private static func failure(_ what: String) -> OperationError {
        OperationError(
            .open, "confinement: cannot \(what): \(errnoText(errno)); --no-confine serves without, see xbb-vbd(8)")
    }
}
