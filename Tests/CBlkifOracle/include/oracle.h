/* SPDX-License-Identifier: BSD-2-Clause
 * Xen's own blkif.h and ring.h behind function tables, one for each ABI, as the oracle of the tests of Blkif.
 *
 * Nothing here is written by hand that the headers can say: sizes come from sizeof, offsets from offsetof, ring
 * arithmetic from the macros of ring.h. */
#ifndef CBLKIF_ORACLE_H
#define CBLKIF_ORACLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* A #define of the headers. */
struct oracle_constant {
    const char *name;
    int64_t value;
};

/* sizeof and offsetof of everything that is shared. */
struct oracle_layout {
    size_t request_size, request_operation, request_nr_segments, request_handle, request_id, request_sector_number,
        request_seg;
    size_t segment_size, segment_gref, segment_first_sect, segment_last_sect;
    size_t discard_size, discard_operation, discard_flag, discard_handle, discard_id, discard_sector_number,
        discard_nr_sectors;
    size_t indirect_size, indirect_op, indirect_nr_segments, indirect_id, indirect_sector_number, indirect_handle,
        indirect_grefs;
    size_t response_size, response_id, response_operation, response_status;
    size_t sring_req_prod, sring_req_event, sring_rsp_prod, sring_rsp_event, sring_ring, sring_entry_size;
};

/* A request field by field, independent of the ABI. nr_segments and flag are the same byte on the wire, and
 * nr_sectors is what stands where the segments begin. */
struct oracle_request {
    uint8_t operation, nr_segments, flag;
    uint16_t handle;
    uint64_t id, sector_number, nr_sectors;
    uint32_t gref[11];
    uint8_t first_sect[11], last_sect[11];
};

struct oracle_response {
    uint64_t id;
    uint8_t operation;
    int16_t status;
};

struct oracle_front;
struct oracle_back;

/* What one ABI can do. All `pages` are aligned to 4096 and outlive the ring. Requests are `request_size` bytes. */
struct oracle {
    struct oracle_layout layout;
    /* __CONST_RING_SIZE */
    uint32_t (*const_ring_size)(size_t bytes);

    /* SHARED_RING_INIT and FRONT_RING_INIT; all indices begin at `start`. */
    struct oracle_front *(*front_new)(void *pages, size_t bytes, uint32_t start);
    void (*front_delete)(struct oracle_front *);
    uint32_t (*front_req_prod_pvt)(const struct oracle_front *);
    uint32_t (*front_rsp_cons)(const struct oracle_front *);
    uint32_t (*front_size)(const struct oracle_front *);
    uint32_t (*front_free)(const struct oracle_front *);
    bool (*front_full)(const struct oracle_front *);
    void (*front_put)(struct oracle_front *, const void *request);
    /* RING_PUSH_REQUESTS_AND_CHECK_NOTIFY */
    bool (*front_push)(struct oracle_front *);
    /* XEN_RING_NR_UNCONSUMED_RESPONSES */
    uint32_t (*front_unconsumed)(const struct oracle_front *);
    /* RING_RESPONSE_PROD_OVERFLOW of the shared rsp_prod */
    bool (*front_overflow)(const struct oracle_front *);
    /* RING_COPY_RESPONSE */
    void (*front_take)(struct oracle_front *, struct oracle_response *);
    /* RING_FINAL_CHECK_FOR_RESPONSES */
    bool (*front_final_check)(struct oracle_front *);

    /* BACK_RING_ATTACH at the shared rsp_prod; BACK_RING_INIT if `fresh`. */
    struct oracle_back *(*back_new)(void *pages, size_t bytes, bool fresh);
    void (*back_delete)(struct oracle_back *);
    uint32_t (*back_req_cons)(const struct oracle_back *);
    uint32_t (*back_rsp_prod_pvt)(const struct oracle_back *);
    uint32_t (*back_size)(const struct oracle_back *);
    /* XEN_RING_NR_UNCONSUMED_REQUESTS */
    uint32_t (*back_unconsumed)(const struct oracle_back *);
    /* RING_REQUEST_PROD_OVERFLOW of the shared req_prod */
    bool (*back_prod_overflow)(const struct oracle_back *);
    /* RING_REQUEST_CONS_OVERFLOW of req_cons */
    bool (*back_cons_overflow)(const struct oracle_back *);
    /* RING_COPY_REQUEST */
    void (*back_take)(struct oracle_back *, void *request);
    /* Writes a response whose padding is zero. */
    void (*back_respond)(struct oracle_back *, uint64_t id, uint8_t operation, int16_t status);
    /* RING_PUSH_RESPONSES_AND_CHECK_NOTIFY */
    bool (*back_push)(struct oracle_back *);
    /* RING_FINAL_CHECK_FOR_REQUESTS */
    bool (*back_final_check)(struct oracle_back *);

    /* Fills `slot` with a struct blkif_request, or with a struct blkif_request_discard if the operation says so.
     * Bytes that belong to no field are zero. */
    void (*encode)(void *slot, const struct oracle_request *);
    /* Reads a slot as a struct blkif_request and as a struct blkif_request_discard. */
    void (*decode)(const void *slot, struct oracle_request *);
};

const struct oracle *oracle_x86_64(void);
const struct oracle *oracle_x86_32(void);

/* The constants of blkif.h and what protocols.h calls the ABIs. */
const struct oracle_constant *oracle_constants(size_t *count);
const char *oracle_protocol_x86_32(void);
const char *oracle_protocol_x86_64(void);
const char *oracle_protocol_native(void);

/* A frontend that writes while the backend reads: rewrites `words` words of 32 bits, now from `a` and now from `b`,
 * until *stop is not zero. Returns how often it did. */
uint64_t oracle_flip(void *target, const uint32_t *a, const uint32_t *b, size_t words, const int32_t *stop);
/* The same with one word and numbers that are often near `*near`. */
uint64_t oracle_scribble(void *target, const uint32_t *near, uint64_t seed, const int32_t *stop);
void oracle_stop(int32_t *stop);

#endif
