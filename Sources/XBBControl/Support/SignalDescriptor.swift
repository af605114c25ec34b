// SPDX-License-Identifier: BSD-2-Clause
// Signals as a readable descriptor.
import Base
import CLinux
import Glibc

enum SignalDescriptor {
    /// Blocks the signals in the calling thread and returns a descriptor that is readable when one of them arrives.
    static func open(_ numbers: [Int32]) throws(OperationError) -> Descriptor {
        var set = sigset_t()
        unsafe sigemptyset(&set)
        for number in numbers { unsafe sigaddset(&set, number) }
        unsafe pthread_sigmask(SIG_BLOCK, &set, nil)
        signal(SIGPIPE, SIG_IGN)
        signal(SIGCHLD, SIG_DFL)  // ignored, it would let children vanish without a status
        let raw = unsafe signalfd(-1, &set, Int32(SFD_CLOEXEC) | Int32(SFD_NONBLOCK))
        return try Descriptor(raw, "signalfd")
    }
}
