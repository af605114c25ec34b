// SPDX-License-Identifier: BSD-2-Clause
// eventfd(2): a descriptor by which one thread or process wakes another.
import CLinux
import Glibc

extension Descriptor {
    /// An eventfd with counter 0 that never blocks and is closed by exec.
    public static func event() throws(OperationError) -> Descriptor {
        try Descriptor(eventfd(0, Int32(EFD_CLOEXEC) | Int32(EFD_NONBLOCK)), "make an event descriptor")
    }

    /// Adds one to an eventfd; any thread. A full counter is as readable as one that took the addition.
    public func signal() {
        var one: UInt64 = 1
        _ = unsafe write(raw, &one, 8)
    }

    /// Sets an eventfd's counter to zero.
    public func drain() {
        var count: UInt64 = 0
        _ = unsafe read(raw, &count, 8)
    }
}
