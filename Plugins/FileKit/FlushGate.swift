// SPDX-License-Identifier: BSD-2-Clause
// The flushes of a file, one after the other.
//
// The kernel tells an error of writing back to one fdatasync(2) of an open file, and not to another that ends at the same time
// ("errseq"). So no two run at once, and all flushes that came before one has failed fail with it.
import Glibc
import PluginKit

/// Lets one flush through at a time. Those that come meanwhile are answered together by the next one.
@safe
final class FlushGate {
    private let monitor = Monitor()
    private var isOpen = true
    private var waiting = JobList()
    /// An error of writing back that nobody was told: the next flush fails. Of the thread whose turn it is.
    private var hasUntoldError: Bool

    /// `hasUntoldError`: writing back has failed before.
    init(hasUntoldError: Bool) { self.hasUntoldError = hasUntoldError }

    /// Does a job that is a flush with `sync`, which gives 0 or a negative errno, or leaves it to the thread that is at it. Sleeps.
    /// Any thread.
    func perform(_ job: UnsafeMutablePointer<Job>, _ sync: () -> Int32) {
        let isFirst = monitor.locked {
            defer { isOpen = false }
            if !isOpen { unsafe waiting.append(job) }
            return isOpen
        }
        guard isFirst else { return }
        var jobs = JobList()
        unsafe jobs.append(job)
        while jobs.count > 0 {
            var code = sync()
            if hasUntoldError {
                hasUntoldError = false
                if code == 0 { code = -EIO }
            }
            let came = monitor.locked {
                defer { waiting = JobList() }
                // Who came while it failed may have lost data by it, too.
                if code != 0 { jobs.append(waiting) }
                let next = code == 0 ? waiting : JobList()
                isOpen = next.count == 0
                return next
            }
            while let job = unsafe jobs.removeFirst() { unsafe job.pointee.accepted.complete(Outcome(status: code)) }
            jobs = came
        }
    }
}
