// SPDX-License-Identifier: BSD-2-Clause
// A copy of the process of a check: to be killed, or to load the plugin as the worker does that follows on a killed one.
import CPluginHarness
import Glibc

extension Bench {
    /// Calls `body` in a copy of this process, which ends behind it, and `watch` in this one meanwhile. Returns how the
    /// copy ended, as waitpid(2) gives it.
    ///
    /// Each has an end of one pipe: `watch` reads what the copy writes there, and the pipe's end once the copy is gone.
    /// What `body` throws is reported as the outcome of the check, and the copy ends with 0 nevertheless: the caller
    /// sees by what it has read whether there is anything left to look at.
    ///
    /// This process must not load the plugin before: a copy would have it without its threads.
    @discardableResult
    func inCopy(
        _ body: (_ pipe: Int32) throws(Failure) -> Void, watch: (_ copy: Int32, _ pipe: Int32) -> Void = { _, _ in }
    ) throws(Failure) -> Int32 {
        var pipe: Int32 = -1
        let copy = unsafe harness_fork(&pipe)
        try require(copy >= 0, "cannot fork: error \(errno)")
        if copy == 0 {
            do throws(Failure) {
                try body(pipe)
            } catch {
                tell(error)
            }
            _exit(0)
        }
        watch(copy, pipe)
        Glibc.close(pipe)
        var status: Int32 = 0
        unsafe waitpid(copy, &status, 0)
        return status
    }
}
