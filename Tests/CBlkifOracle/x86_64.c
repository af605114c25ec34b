/* SPDX-License-Identifier: BSD-2-Clause
 * blkif.h as it is: the ABI of a 64-bit frontend, and the constants. */
#include "xen.h"
#include <xen/io/blkif.h>

#define ORACLE oracle_x86_64
#include "body.h"

_Static_assert(sizeof(struct blkif_request) == 112, "size of a 64-bit request");
_Static_assert(sizeof(struct blkif_response) == 16, "size of a 64-bit response");

#define CONSTANT(name) {#name, name}

const struct oracle_constant *oracle_constants(size_t *count)
{
    static const struct oracle_constant table[] = {
        CONSTANT(BLKIF_OP_READ),
        CONSTANT(BLKIF_OP_WRITE),
        CONSTANT(BLKIF_OP_WRITE_BARRIER),
        CONSTANT(BLKIF_OP_FLUSH_DISKCACHE),
        CONSTANT(BLKIF_OP_RESERVED_1),
        CONSTANT(BLKIF_OP_DISCARD),
        CONSTANT(BLKIF_OP_INDIRECT),
        CONSTANT(BLKIF_RSP_OKAY),
        CONSTANT(BLKIF_RSP_ERROR),
        CONSTANT(BLKIF_RSP_EOPNOTSUPP),
        CONSTANT(BLKIF_MAX_SEGMENTS_PER_REQUEST),
        CONSTANT(BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST),
        CONSTANT(BLKIF_DISCARD_SECURE),
        CONSTANT(VDISK_CDROM),
        CONSTANT(VDISK_REMOVABLE),
        CONSTANT(VDISK_READONLY),
        CONSTANT(XEN_PAGE_SHIFT),
    };
    *count = sizeof table / sizeof table[0];
    return table;
}

const char *oracle_protocol_x86_32(void) { return XEN_IO_PROTO_ABI_X86_32; }
const char *oracle_protocol_x86_64(void) { return XEN_IO_PROTO_ABI_X86_64; }
const char *oracle_protocol_native(void) { return XEN_IO_PROTO_ABI_NATIVE; }
