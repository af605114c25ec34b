// SPDX-License-Identifier: BSD-2-Clause
// The domain of a loopback Xen that a program runs in. Real Xen knows a program's domain; the loopback Xen must be
// told.
import Glibc

/// The position of this process on a loopback Xen.
public enum LoopbackPlace {
    /// XBB_LOOPBACK_DOMAIN of the environment, which child programs inherit; domain 0 if it is not set.
    public static var domain: UInt16 {
        let text = unsafe getenv("XBB_LOOPBACK_DOMAIN").map { unsafe String(cString: $0) }
        return text.flatMap { UInt16($0) } ?? 0
    }

    /// The socket of XenStore for programs in `domain` of the loopback Xen in `directory`.
    public static func storeSocket(in directory: String, domain: UInt16 = domain) -> String {
        domain == 0 ? directory + "/xenstored.sock" : directory + "/xenstored-\(domain).sock"
    }
}
