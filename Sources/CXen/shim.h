/* SPDX-License-Identifier: BSD-2-Clause
 * The C libraries behind the Xen seam, and the union of xengnttab.h by names that Swift can use. */
#ifndef CXEN_SHIM_H
#define CXEN_SHIM_H

/* As in clinux.h: types of the C library must look the same to both modules, and to Swift's glibc module. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <features.h>
#define fds_bits __fds_bits
#include <sys/select.h>
#undef fds_bits
#include <stdlib.h>
#include <xenstore.h>
#include <xengnttab.h>
#include <xenevtchn.h>
#include <xen/xen.h>
#include <xen/grant_table.h>
#include <xen/io/xenbus.h>
#include <xen/io/xs_wire.h>

/* Fills in one operation between a granted page and host memory. The status is an error until the copy is done. */
static inline void cxen_set_copy(xengnttab_grant_copy_segment_t *operation, uint16_t domain, uint32_t reference,
                                 uint16_t offset, uint16_t length, void *host, int to_guest)
{
    union xengnttab_copy_ptr *guest_side = to_guest ? &operation->dest : &operation->source;
    union xengnttab_copy_ptr *host_side = to_guest ? &operation->source : &operation->dest;
    guest_side->foreign.ref = reference;
    guest_side->foreign.offset = offset;
    guest_side->foreign.domid = domain;
    host_side->virt = host;
    operation->len = length;
    operation->flags = to_guest ? GNTCOPY_dest_gref : GNTCOPY_source_gref;
    operation->status = GNTST_general_error;
}

static inline int cxen_copy_to_guest(const xengnttab_grant_copy_segment_t *operation)
{
    return (operation->flags & GNTCOPY_dest_gref) != 0;
}
static inline uint32_t cxen_copy_reference(const xengnttab_grant_copy_segment_t *operation)
{
    return cxen_copy_to_guest(operation) ? operation->dest.foreign.ref : operation->source.foreign.ref;
}
static inline uint16_t cxen_copy_domain(const xengnttab_grant_copy_segment_t *operation)
{
    return cxen_copy_to_guest(operation) ? operation->dest.foreign.domid : operation->source.foreign.domid;
}
static inline uint16_t cxen_copy_offset(const xengnttab_grant_copy_segment_t *operation)
{
    return cxen_copy_to_guest(operation) ? operation->dest.foreign.offset : operation->source.foreign.offset;
}
static inline void *cxen_copy_host(const xengnttab_grant_copy_segment_t *operation)
{
    return cxen_copy_to_guest(operation) ? operation->source.virt : operation->dest.virt;
}

#endif
