// SPDX-License-Identifier: BSD-2-Clause
// Which domain of a loopback Xen a program runs in. On Xen it is the domain that the program is in; here it is told.
import Glibc

/// The place of this process on a loopback Xen.
public enum LoopbackPlace {
    /// XBB_LOOPBACK_DOMAIN of the environment, which programs hand on to those that they start; else domain 0.
    public static var domain: UInt16 {
        let text = unsafe getenv("XBB_LOOPBACK_DOMAIN").map { unsafe String(cString: $0) }
        return text.flatMap { UInt16($0) } ?? 0
    }

    /// The socket of XenStore for programs in `domain` of the loopback Xen in `directory`.
    public static func storeSocket(in directory: String, domain: UInt16 = domain) -> String {
        domain == 0 ? directory + "/xenstored.sock" : directory + "/xenstored-\(domain).sock"
    }
}
