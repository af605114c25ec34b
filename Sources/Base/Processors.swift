// SPDX-License-Identifier: BSD-2-Clause
// How many processors the system has.
import Glibc

/// Processors that are online, at least 1.
public func onlineProcessors() -> Int { max(sysconf(Int32(_SC_NPROCESSORS_ONLN)), 1) }
