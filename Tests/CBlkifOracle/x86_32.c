/* SPDX-License-Identifier: BSD-2-Clause
 * blkif.h as a compiler for i386 reads it.
 *
 * There a 64-bit integer is aligned to four bytes, and nothing else is different. `#pragma pack(4)` would do too, but
 * an alignment that belongs to the type says it exactly and changes no other member. */
#include "xen.h"

typedef uint64_t uint64_of_i386 __attribute__((aligned(4)));
#ifndef __i386__
#define uint64_t uint64_of_i386
#define __i386__ 1
#include <xen/io/blkif.h>
#undef __i386__
#undef uint64_t
#else
#include <xen/io/blkif.h>
#endif

_Static_assert(sizeof(struct blkif_request) == 108, "size of a 32-bit request");
_Static_assert(sizeof(struct blkif_response) == 12, "size of a 32-bit response");
_Static_assert(sizeof(struct blkif_request_indirect) == 64, "size that blkif.h promises for i386");

#define ORACLE oracle_x86_32
#include "body.h"
