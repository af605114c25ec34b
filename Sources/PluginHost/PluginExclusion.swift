// SPDX-License-Identifier: BSD-2-Clause
// The lock for plugins that allow one call at a time.
import Glibc

/// A lock around the calls into a plugin.
///
/// `@unchecked Sendable`: it is nothing but a mutex at a fixed address.
@safe
package final class PluginExclusion: @unchecked Sendable {
    private let mutex: UnsafeMutablePointer<pthread_mutex_t>

    init() {
        unsafe mutex = .allocate(capacity: 1)
        unsafe mutex.initialize(to: pthread_mutex_t())
        unsafe pthread_mutex_init(mutex, nil)
    }

    deinit {
        unsafe pthread_mutex_destroy(mutex)
        unsafe mutex.deallocate()
    }

    package func lock() { unsafe pthread_mutex_lock(mutex) }
    package func unlock() { unsafe pthread_mutex_unlock(mutex) }
}
