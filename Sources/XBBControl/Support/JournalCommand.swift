// SPDX-License-Identifier: BSD-2-Clause
// journalctl with the fields of our lines.
import Base
import CLinux
import Glibc
import Xen

/// How journalctl is called.
public enum JournalCommand {
    /// The program, where there is a journal to read; else nil.
    public static func find() -> String? {
        guard unsafe access("/run/systemd/journal/socket", F_OK) == 0 else { return nil }
        return ["/usr/bin/journalctl", "/bin/journalctl"].first { unsafe access($0, X_OK) == 0 }
    }

    /// Its arguments for the lines of one VBD, or of everything that is ours.
    public static func arguments(
        domain: DomainID?, device: UInt32?, lines: Int, follows: Bool, json: Bool
    ) -> [String] {
        var arguments = ["journalctl", "--lines=\(lines)"]
        if follows { arguments.append("--follow") }
        arguments.append(json ? "--output=json" : "--no-hostname")
        if let domain, let device { return arguments + ["XBB_DOMID=\(domain)", "XBB_VDEV=\(device)"] }
        return arguments + ["SYSLOG_IDENTIFIER=xbbd", "+", "SYSLOG_IDENTIFIER=xbb-vbd"]
    }

    /// Becomes journalctl; returns only where that fails, with the reason.
    public static func run(_ program: String, _ arguments: [String]) -> ControlError {
        var list: [UnsafeMutablePointer<CChar>?] = unsafe arguments.map { unsafe strdup($0) } + [nil]
        defer { for index in unsafe list.indices { unsafe free(list[index]) } }
        unsafe execv(program, &list)
        return ControlError("run \(program): \(errnoText(errno))")
    }
}
