/* SPDX-License-Identifier: BSD-2-Clause
 * The other side of a ring when it does not play by the rules: it writes while we read. */
#include "oracle.h"

static bool running(const int32_t *stop) { return __atomic_load_n(stop, __ATOMIC_ACQUIRE) == 0; }

void oracle_stop(int32_t *stop) { __atomic_store_n(stop, 1, __ATOMIC_RELEASE); }

uint64_t oracle_flip(void *target, const uint32_t *a, const uint32_t *b, size_t words, const int32_t *stop)
{
    volatile uint32_t *word = target;
    uint64_t rounds = 0;
    while (running(stop)) {
        for (size_t i = 0; i < words; i++) word[i] = b[i];
        for (size_t i = 0; i < words; i++) word[i] = a[i];
        rounds++;
    }
    return rounds;
}

uint64_t oracle_scribble(void *target, const uint32_t *near, uint64_t seed, const int32_t *stop)
{
    uint64_t state = seed | 1, rounds = 0;
    while (running(stop)) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        uint32_t value = (uint32_t)state;
        if (state >> 62) value = __atomic_load_n(near, __ATOMIC_RELAXED) + value % 100 - 50;
        __atomic_store_n((uint32_t *)target, value, __ATOMIC_RELAXED);
        rounds++;
    }
    return rounds;
}
