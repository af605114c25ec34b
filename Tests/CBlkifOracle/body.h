/* SPDX-License-Identifier: BSD-2-Clause
 * The function table of one ABI, over the types of blkif.h that the including file has defined. */
#include "oracle.h"

struct oracle_front {
    blkif_front_ring_t ring;
};

struct oracle_back {
    blkif_back_ring_t ring;
};

static uint32_t const_ring_size(size_t bytes)
{
    return (uint32_t)__CONST_RING_SIZE(blkif, bytes);
}

static struct oracle_front *front_new(void *pages, size_t bytes, uint32_t start)
{
    struct oracle_front *front = calloc(1, sizeof *front);
    blkif_sring_t *shared = pages;
    if (!front) abort();
    SHARED_RING_INIT(shared);
    if (start == 0) {
        FRONT_RING_INIT(&front->ring, shared, bytes);
        return front;
    }
    shared->req_prod = shared->rsp_prod = start;
    shared->req_event = shared->rsp_event = start + 1;
    FRONT_RING_ATTACH(&front->ring, shared, start, bytes);
    return front;
}

static void front_delete(struct oracle_front *front) { free(front); }
static uint32_t front_req_prod_pvt(const struct oracle_front *front) { return front->ring.req_prod_pvt; }
static uint32_t front_rsp_cons(const struct oracle_front *front) { return front->ring.rsp_cons; }
static uint32_t front_size(const struct oracle_front *front) { return RING_SIZE(&front->ring); }
static uint32_t front_free(const struct oracle_front *front) { return RING_FREE_REQUESTS(&front->ring); }
static bool front_full(const struct oracle_front *front) { return RING_FULL(&front->ring); }

static void front_put(struct oracle_front *front, const void *request)
{
    memcpy(RING_GET_REQUEST(&front->ring, front->ring.req_prod_pvt), request, sizeof(struct blkif_request));
    front->ring.req_prod_pvt++;
}

static bool front_push(struct oracle_front *front)
{
    bool notify;
    RING_PUSH_REQUESTS_AND_CHECK_NOTIFY(&front->ring, notify);
    return notify;
}

static uint32_t front_unconsumed(const struct oracle_front *front)
{
    uint32_t count = XEN_RING_NR_UNCONSUMED_RESPONSES(&front->ring);
    xen_rmb();
    return count;
}

static bool front_overflow(const struct oracle_front *front)
{
    return RING_RESPONSE_PROD_OVERFLOW(&front->ring, front->ring.sring->rsp_prod);
}

static void front_take(struct oracle_front *front, struct oracle_response *out)
{
    blkif_response_t response;
    RING_COPY_RESPONSE(&front->ring, front->ring.rsp_cons, &response);
    front->ring.rsp_cons++;
    *out = (struct oracle_response){.id = response.id, .operation = response.operation, .status = response.status};
}

static bool front_final_check(struct oracle_front *front)
{
    bool work;
    RING_FINAL_CHECK_FOR_RESPONSES(&front->ring, work);
    return work;
}

static struct oracle_back *back_new(void *pages, size_t bytes, bool fresh)
{
    struct oracle_back *back = calloc(1, sizeof *back);
    blkif_sring_t *shared = pages;
    if (!back) abort();
    if (fresh)
        BACK_RING_INIT(&back->ring, shared, bytes);
    else
        BACK_RING_ATTACH(&back->ring, shared, shared->rsp_prod, bytes);
    return back;
}

static void back_delete(struct oracle_back *back) { free(back); }
static uint32_t back_req_cons(const struct oracle_back *back) { return back->ring.req_cons; }
static uint32_t back_rsp_prod_pvt(const struct oracle_back *back) { return back->ring.rsp_prod_pvt; }
static uint32_t back_size(const struct oracle_back *back) { return RING_SIZE(&back->ring); }

static uint32_t back_unconsumed(const struct oracle_back *back)
{
    uint32_t count = XEN_RING_NR_UNCONSUMED_REQUESTS(&back->ring);
    xen_rmb();
    return count;
}

static bool back_prod_overflow(const struct oracle_back *back)
{
    return RING_REQUEST_PROD_OVERFLOW(&back->ring, back->ring.sring->req_prod);
}

static bool back_cons_overflow(const struct oracle_back *back)
{
    return RING_REQUEST_CONS_OVERFLOW(&back->ring, back->ring.req_cons);
}

static void back_take(struct oracle_back *back, void *out)
{
    blkif_request_t request;
    RING_COPY_REQUEST(&back->ring, back->ring.req_cons, &request);
    back->ring.req_cons++;
    memcpy(out, &request, sizeof request);
}

static void back_respond(struct oracle_back *back, uint64_t id, uint8_t operation, int16_t status)
{
    blkif_response_t response;
    memset(&response, 0, sizeof response);
    response.id = id;
    response.operation = operation;
    response.status = status;
    memcpy(RING_GET_RESPONSE(&back->ring, back->ring.rsp_prod_pvt), &response, sizeof response);
    back->ring.rsp_prod_pvt++;
}

static bool back_push(struct oracle_back *back)
{
    bool notify;
    RING_PUSH_RESPONSES_AND_CHECK_NOTIFY(&back->ring, notify);
    return notify;
}

static bool back_final_check(struct oracle_back *back)
{
    bool work;
    RING_FINAL_CHECK_FOR_REQUESTS(&back->ring, work);
    return work;
}

static void encode(void *slot, const struct oracle_request *from)
{
    memset(slot, 0, sizeof(struct blkif_request));
    if (from->operation == BLKIF_OP_DISCARD) {
        struct blkif_request_discard discard;
        memset(&discard, 0, sizeof discard);
        discard.operation = from->operation;
        discard.flag = from->flag;
        discard.handle = from->handle;
        discard.id = from->id;
        discard.sector_number = from->sector_number;
        discard.nr_sectors = from->nr_sectors;
        memcpy(slot, &discard, sizeof discard);
        return;
    }
    struct blkif_request request;
    memset(&request, 0, sizeof request);
    request.operation = from->operation;
    request.nr_segments = from->nr_segments;
    request.handle = from->handle;
    request.id = from->id;
    request.sector_number = from->sector_number;
    for (int i = 0; i < BLKIF_MAX_SEGMENTS_PER_REQUEST; i++) {
        request.seg[i].gref = from->gref[i];
        request.seg[i].first_sect = from->first_sect[i];
        request.seg[i].last_sect = from->last_sect[i];
    }
    memcpy(slot, &request, sizeof request);
}

static void decode(const void *slot, struct oracle_request *to)
{
    struct blkif_request request;
    struct blkif_request_discard discard;
    memcpy(&request, slot, sizeof request);
    memcpy(&discard, slot, sizeof discard);
    memset(to, 0, sizeof *to);
    to->operation = request.operation;
    to->nr_segments = request.nr_segments;
    to->flag = discard.flag;
    to->handle = request.handle;
    to->id = request.id;
    to->sector_number = request.sector_number;
    to->nr_sectors = discard.nr_sectors;
    for (int i = 0; i < BLKIF_MAX_SEGMENTS_PER_REQUEST; i++) {
        to->gref[i] = request.seg[i].gref;
        to->first_sect[i] = request.seg[i].first_sect;
        to->last_sect[i] = request.seg[i].last_sect;
    }
}

const struct oracle *ORACLE(void)
{
    static const struct oracle table = {
        .layout = {
            .request_size = sizeof(struct blkif_request),
            .request_operation = offsetof(struct blkif_request, operation),
            .request_nr_segments = offsetof(struct blkif_request, nr_segments),
            .request_handle = offsetof(struct blkif_request, handle),
            .request_id = offsetof(struct blkif_request, id),
            .request_sector_number = offsetof(struct blkif_request, sector_number),
            .request_seg = offsetof(struct blkif_request, seg),
            .segment_size = sizeof(struct blkif_request_segment),
            .segment_gref = offsetof(struct blkif_request_segment, gref),
            .segment_first_sect = offsetof(struct blkif_request_segment, first_sect),
            .segment_last_sect = offsetof(struct blkif_request_segment, last_sect),
            .discard_size = sizeof(struct blkif_request_discard),
            .discard_operation = offsetof(struct blkif_request_discard, operation),
            .discard_flag = offsetof(struct blkif_request_discard, flag),
            .discard_handle = offsetof(struct blkif_request_discard, handle),
            .discard_id = offsetof(struct blkif_request_discard, id),
            .discard_sector_number = offsetof(struct blkif_request_discard, sector_number),
            .discard_nr_sectors = offsetof(struct blkif_request_discard, nr_sectors),
            .indirect_size = sizeof(struct blkif_request_indirect),
            .indirect_op = offsetof(struct blkif_request_indirect, indirect_op),
            .indirect_nr_segments = offsetof(struct blkif_request_indirect, nr_segments),
            .indirect_id = offsetof(struct blkif_request_indirect, id),
            .indirect_sector_number = offsetof(struct blkif_request_indirect, sector_number),
            .indirect_handle = offsetof(struct blkif_request_indirect, handle),
            .indirect_grefs = offsetof(struct blkif_request_indirect, indirect_grefs),
            .response_size = sizeof(struct blkif_response),
            .response_id = offsetof(struct blkif_response, id),
            .response_operation = offsetof(struct blkif_response, operation),
            .response_status = offsetof(struct blkif_response, status),
            .sring_req_prod = offsetof(struct blkif_sring, req_prod),
            .sring_req_event = offsetof(struct blkif_sring, req_event),
            .sring_rsp_prod = offsetof(struct blkif_sring, rsp_prod),
            .sring_rsp_event = offsetof(struct blkif_sring, rsp_event),
            .sring_ring = offsetof(struct blkif_sring, ring),
            .sring_entry_size = sizeof(union blkif_sring_entry),
        },
        .const_ring_size = const_ring_size,
        .front_new = front_new,
        .front_delete = front_delete,
        .front_req_prod_pvt = front_req_prod_pvt,
        .front_rsp_cons = front_rsp_cons,
        .front_size = front_size,
        .front_free = front_free,
        .front_full = front_full,
        .front_put = front_put,
        .front_push = front_push,
        .front_unconsumed = front_unconsumed,
        .front_overflow = front_overflow,
        .front_take = front_take,
        .front_final_check = front_final_check,
        .back_new = back_new,
        .back_delete = back_delete,
        .back_req_cons = back_req_cons,
        .back_rsp_prod_pvt = back_rsp_prod_pvt,
        .back_size = back_size,
        .back_unconsumed = back_unconsumed,
        .back_prod_overflow = back_prod_overflow,
        .back_cons_overflow = back_cons_overflow,
        .back_take = back_take,
        .back_respond = back_respond,
        .back_push = back_push,
        .back_final_check = back_final_check,
        .encode = encode,
        .decode = decode,
    };
    return &table;
}
