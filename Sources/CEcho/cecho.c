/* SPDX-License-Identifier: BSD-2-Clause */
#include "cecho.h"
#define __XEN_INTERFACE_VERSION__ 0x00040e00
#include <xen/xen.h>
#define xen_mb() __sync_synchronize()
#define xen_rmb() __asm__ volatile("" ::: "memory")
#define xen_wmb() __asm__ volatile("" ::: "memory")
#include <xen/io/ring.h>
#include <xen/io/blkif.h>

uint64_t cecho_serve(void *ring_pages, size_t byte_count, const volatile uint32_t *stop, void *context,
                     void (*notify)(void *context), void (*wait)(void *context))
{
    blkif_back_ring_t ring;
    uint64_t answered = 0;
    BACK_RING_ATTACH(&ring, (blkif_sring_t *)ring_pages, ((blkif_sring_t *)ring_pages)->rsp_prod, byte_count);
    for (;;) {
        RING_IDX producer = ring.sring->req_prod;
        int work, must_notify;
        xen_rmb();
        if (RING_REQUEST_PROD_OVERFLOW(&ring, producer)) return answered;
        while (ring.req_cons != producer && !RING_REQUEST_CONS_OVERFLOW(&ring, ring.req_cons)) {
            blkif_request_t request;
            RING_COPY_REQUEST(&ring, ring.req_cons, &request);
            ring.req_cons++;
            blkif_response_t *response = RING_GET_RESPONSE(&ring, ring.rsp_prod_pvt);
            response->id = request.id;
            response->operation = request.operation;
            response->status = BLKIF_RSP_OKAY;
            ring.rsp_prod_pvt++;
            answered++;
        }
        RING_PUSH_RESPONSES_AND_CHECK_NOTIFY(&ring, must_notify);
        if (must_notify) notify(context);
        RING_FINAL_CHECK_FOR_REQUESTS(&ring, work);
        if (work) continue;
        if (*stop) return answered;
        wait(context);
    }
}
