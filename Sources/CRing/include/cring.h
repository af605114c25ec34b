/* SPDX-License-Identifier: BSD-2-Clause
 * Loads and stores of memory that another domain writes at the same time.
 *
 * Swift has no volatile access: the optimiser may read plain memory twice, and a check made on the first
 * reading says nothing about the second. Every access to a shared ring therefore goes through one of these.
 */
#ifndef CRING_H
#define CRING_H

#include <stddef.h>
#include <stdint.h>

static inline uint32_t cring_load32_acquire(const void *p)
{
    return __atomic_load_n((const volatile uint32_t *)p, __ATOMIC_ACQUIRE);
}

static inline uint32_t cring_load32_relaxed(const void *p)
{
    return __atomic_load_n((const volatile uint32_t *)p, __ATOMIC_RELAXED);
}

static inline void cring_store32_release(void *p, uint32_t value)
{
    __atomic_store_n((volatile uint32_t *)p, value, __ATOMIC_RELEASE);
}

static inline void cring_store32_relaxed(void *p, uint32_t value)
{
    __atomic_store_n((volatile uint32_t *)p, value, __ATOMIC_RELAXED);
}

static inline uint32_t cring_exchange32(void *p, uint32_t value)
{
    return __atomic_exchange_n((volatile uint32_t *)p, value, __ATOMIC_SEQ_CST);
}

static inline int cring_compare_exchange32(void *p, uint32_t expected, uint32_t value)
{
    return __atomic_compare_exchange_n((volatile uint32_t *)p, &expected, value, 0,
                                       __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
}

static inline uint64_t cring_load64_acquire(const void *p)
{
    return __atomic_load_n((const volatile uint64_t *)p, __ATOMIC_ACQUIRE);
}

static inline int cring_compare_exchange64(void *p, uint64_t expected, uint64_t value)
{
    return __atomic_compare_exchange_n((volatile uint64_t *)p, &expected, value, 0,
                                       __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
}

static inline uint64_t cring_exchange64(void *p, uint64_t value)
{
    return __atomic_exchange_n((volatile uint64_t *)p, value, __ATOMIC_SEQ_CST);
}

static inline uint64_t cring_add64(void *p, uint64_t value)
{
    return __atomic_fetch_add((volatile uint64_t *)p, value, __ATOMIC_RELAXED);
}

static inline uint64_t cring_load64_relaxed(const void *p)
{
    return __atomic_load_n((const volatile uint64_t *)p, __ATOMIC_RELAXED);
}

static inline void cring_store64_relaxed(void *p, uint64_t value)
{
    __atomic_store_n((volatile uint64_t *)p, value, __ATOMIC_RELAXED);
}

static inline void cring_store64_release(void *p, uint64_t value)
{
    __atomic_store_n((volatile uint64_t *)p, value, __ATOMIC_RELEASE);
}

static inline void cring_full_fence(void)
{
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
}

/* What tells the calling thread from all others that run; pthread_self() is a call. */
static inline uintptr_t cring_thread(void)
{
    return (uintptr_t)__builtin_thread_pointer();
}

/* Tells the processor that this is a waiting loop. */
static inline void cring_cpu_pause(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#endif
}

/* Copies `words` 32-bit words out of shared memory, each read exactly once. Slots of the three ABIs are
 * multiples of four bytes and aligned to four. */
static inline void cring_copy_in(void *to, const void *from, size_t words)
{
    const volatile uint32_t *source = (const volatile uint32_t *)from;
    uint32_t *target = (uint32_t *)to;
    for (size_t i = 0; i < words; i++) target[i] = source[i];
    __asm__ volatile("" ::: "memory");
}

/* The same for the slots of 112 bytes, in as few loads as there can be. They are aligned to eight bytes only. */
typedef uint8_t cring_bytes16 __attribute__((vector_size(16), aligned(8)));
static inline void cring_copy_in_112(void *to, const void *from)
{
    const volatile cring_bytes16 *source = (const volatile cring_bytes16 *)from;
    cring_bytes16 *target = (cring_bytes16 *)to;
#pragma clang loop unroll(full)
    for (size_t i = 0; i < 7; i++) target[i] = source[i];
    __asm__ volatile("" ::: "memory");
}

#endif
