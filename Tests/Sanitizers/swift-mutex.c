/* SPDX-License-Identifier: BSD-2-Clause
 * Lets ThreadSanitizer see Swift's Mutex. What is inlined of a lock and an unlock are atomics that it sees; what it does
 * when two threads meet is in libswiftSynchronization.so, which is not instrumented: the one that waited seems to have no
 * order behind the one that let go, and each thing that the lock protects is reported. Preloaded, this stands between.
 * Swift 6.3, stdlib/public/Synchronization/Mutex/LinuxImpl.swift. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SWIFT __attribute__((swiftcall))
#define SELF __attribute__((swift_context)) void *self

/* Of the program that this is loaded into. */
void __tsan_acquire(void *);
void __tsan_release(void *);
#pragma weak __tsan_acquire
#pragma weak __tsan_release

/* _MutexHandle._lockSlow(_: UInt32), ._tryLockSlow() -> Bool, ._unlockSlow() */
#define LOCK "$s15Synchronization12_MutexHandleV9_lockSlowyys6UInt32VF"
#define TRY_LOCK "$s15Synchronization12_MutexHandleV12_tryLockSlowSbyF"
#define UNLOCK "$s15Synchronization12_MutexHandleV11_unlockSlowyyF"

SWIFT void lock(uint32_t thread, SELF) __asm__(LOCK);
SWIFT bool try_lock(SELF) __asm__(TRY_LOCK);
SWIFT void unlock(SELF) __asm__(UNLOCK);

static void *next(void **place, const char *name)
{
    void *found = __atomic_load_n(place, __ATOMIC_ACQUIRE);
    if (found == NULL) {
        found = dlsym(RTLD_NEXT, name);
        __atomic_store_n(place, found, __ATOMIC_RELEASE);
    }
    return found;
}

SWIFT void lock(uint32_t thread, SELF)
{
    static void *place;
    SWIFT void (*real)(uint32_t, SELF) = next(&place, LOCK);
    real(thread, self);
    if (__tsan_acquire != NULL) __tsan_acquire(self);
}

SWIFT bool try_lock(SELF)
{
    static void *place;
    SWIFT bool (*real)(SELF) = next(&place, TRY_LOCK);
    bool has = real(self);
    if (has && __tsan_acquire != NULL) __tsan_acquire(self);
    return has;
}

SWIFT void unlock(SELF)
{
    static void *place;
    SWIFT void (*real)(SELF) = next(&place, UNLOCK);
    if (__tsan_release != NULL) __tsan_release(self);
    real(self);
}
