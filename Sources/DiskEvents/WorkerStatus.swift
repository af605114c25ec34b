// SPDX-License-Identifier: BSD-2-Clause
// How a worker tells xbbd by its end what it wants.

/// Exit statuses of xbb-vbd that xbbd tells apart.
public enum WorkerStatus {
    /// The storage cannot be reached from this process any more: a successor opens it anew (EX_TEMPFAIL of sysexits.h).
    public static let storageGone: Int32 = 75
}
