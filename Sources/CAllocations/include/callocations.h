/* SPDX-License-Identifier: BSD-2-Clause
 * Counts the allocations of the process that this is linked into, those of its shared libraries among them, from the first
 * call of one of these functions on: only the difference between two calls means something. */
#ifndef CALLOCATIONS_H
#define CALLOCATIONS_H

#include <stdint.h>

/* Calls that asked for memory so far. */
uint64_t callocations_calls(void);
/* Blocks that were given and not taken back, and their bytes; below zero where older ones were taken back. */
int64_t callocations_live_blocks(void);
int64_t callocations_live_bytes(void);

#endif
