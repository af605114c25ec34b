// SPDX-License-Identifier: BSD-2-Clause
// Runs journalctl with the fields of our log lines.
import Base
import CLinux
import Glibc
import Xen

/// The journalctl command.
public enum JournalCommand {
    /// The path of journalctl, if there is a journal to read; otherwise nil.
    public static func find() -> String? {
        guard unsafe access("/run/systemd/journal/socket", F_OK) == 0 else { return nil }
        return ["/usr/bin/journalctl", "/bin/journalctl"].first { unsafe access($0, X_OK) == 0 }
    }

    /// Its arguments for the lines of one VBD, or for all lines of this package.
    public static func arguments(
        domain: DomainID?, device: UInt32?, lines: Int, follows: Bool, json: Bool
    ) -> [String] {
        var arguments = ["journalctl", "--lines=\(lines)"]
        if follows { arguments.append("--follow") }
        arguments.append(json ? "--output=json" : "--no-hostname")
        if let domain, let device { return arguments + ["XBB_DOMID=\(domain)", "XBB_VDEV=\(device)"] }
        return arguments + ["SYSLOG_IDENTIFIER=xbbd", "+", "SYSLOG_IDENTIFIER=xbb-vbd"]
    }

    /// Replaces this process with journalctl. Returns only if that fails, with the reason.
    public static func run(_ program: String, _ arguments: [String]) -> ControlError {
        var list: [UnsafeMutablePointer<CChar>?] = unsafe arguments.map { unsafe strdup($0) } + [nil]
        defer { for index in unsafe list.indices { unsafe free(list[index]) } }
        unsafe execv(program, &list)
        return ControlError("run \(program): \(errnoText(errno))")
    }
}
