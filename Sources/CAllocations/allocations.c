// SPDX-License-Identifier: BSD-2-Clause
// malloc() and its kind in front of the C library's own. Under a sanitizer, which has its own, nothing is counted.
#define _GNU_SOURCE
#include "callocations.h"

#include <errno.h>
#include <malloc.h>
#include <stdbool.h>
#include <stddef.h>

static uint64_t calls;
static int64_t blocks, bytes;

/* Most processes that this is linked into never ask, and counting costs a fifth of a test that allocates much. */
static bool counts;

static void count(void) { __atomic_store_n(&counts, true, __ATOMIC_RELAXED); }

uint64_t callocations_calls(void)
{
    count();
    return __atomic_load_n(&calls, __ATOMIC_RELAXED);
}

int64_t callocations_live_blocks(void)
{
    count();
    return __atomic_load_n(&blocks, __ATOMIC_RELAXED);
}

int64_t callocations_live_bytes(void)
{
    count();
    return __atomic_load_n(&bytes, __ATOMIC_RELAXED);
}

#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define SANITIZED
#endif
#endif

#ifndef SANITIZED
extern void *__libc_malloc(size_t);
extern void *__libc_calloc(size_t, size_t);
extern void *__libc_realloc(void *, size_t);
extern void *__libc_memalign(size_t, size_t);
extern void __libc_free(void *);

static void *given(void *block)
{
    if (!block || !__atomic_load_n(&counts, __ATOMIC_RELAXED)) return block;
    __atomic_fetch_add(&calls, 1, __ATOMIC_RELAXED);
    __atomic_fetch_add(&blocks, 1, __ATOMIC_RELAXED);
    __atomic_fetch_add(&bytes, (int64_t)malloc_usable_size(block), __ATOMIC_RELAXED);
    return block;
}

static void taken(size_t size)
{
    if (!__atomic_load_n(&counts, __ATOMIC_RELAXED)) return;
    __atomic_fetch_sub(&blocks, 1, __ATOMIC_RELAXED);
    __atomic_fetch_sub(&bytes, (int64_t)size, __ATOMIC_RELAXED);
}

void *malloc(size_t size) { return given(__libc_malloc(size)); }
void *calloc(size_t number, size_t size) { return given(__libc_calloc(number, size)); }
void *memalign(size_t alignment, size_t size) { return given(__libc_memalign(alignment, size)); }
void *aligned_alloc(size_t alignment, size_t size) { return given(__libc_memalign(alignment, size)); }

void *realloc(void *old, size_t size)
{
    size_t before = old ? malloc_usable_size(old) : 0;
    void *block = __libc_realloc(old, size);
    if (old && (block || size == 0)) taken(before);
    return given(block);
}

int posix_memalign(void **out, size_t alignment, size_t size)
{
    if (alignment < sizeof(void *) || (alignment & (alignment - 1)) != 0) return EINVAL;
    void *block = given(__libc_memalign(alignment, size));
    if (!block) return ENOMEM;
    *out = block;
    return 0;
}

void free(void *block)
{
    if (!block) return;
    taken(malloc_usable_size(block));
    __libc_free(block);
}
#endif
