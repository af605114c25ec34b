/* SPDX-License-Identifier: BSD-2-Clause
 * libaio, which has no pkg-config file, and the two things that it leaves to the caller: filling in an iocb with
 * RWF flags and an eventfd, and reading the completion ring that the kernel maps into the process. */
#ifndef CAIO_SHIM_H
#define CAIO_SHIM_H

#include <libaio.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

/* An iocb for `count` parts at `offset`; one part goes without an iovec, which saves the kernel a copy. */
static inline void caio_prepare(struct iocb *iocb, bool write, int fd, const struct iovec *iov, uint32_t count,
                                uint64_t offset, int rw_flags, int eventfd, void *data)
{
    memset(iocb, 0, sizeof *iocb);
    iocb->data = data;
    iocb->aio_rw_flags = rw_flags;
    iocb->aio_fildes = fd;
    iocb->u.c.offset = (long long)offset;
    iocb->u.c.flags = 1u << 0; /* IOCB_FLAG_RESFD */
    iocb->u.c.resfd = (unsigned)eventfd;
    if (count == 1) {
        iocb->aio_lio_opcode = write ? IO_CMD_PWRITE : IO_CMD_PREAD;
        iocb->u.c.buf = iov->iov_base;
        iocb->u.c.nbytes = iov->iov_len;
    } else {
        iocb->aio_lio_opcode = write ? IO_CMD_PWRITEV : IO_CMD_PREADV;
        iocb->u.c.buf = (void *)iov;
        iocb->u.c.nbytes = count;
    }
}

/* Takes what an eventfd counts.  read(3) is a point of cancellation, which costs two locked instructions in a process with
 * threads; this is not. */
static inline void caio_drain(int eventfd)
{
    uint64_t count;
    (void)syscall(SYS_read, eventfd, &count, sizeof count);
}

/* struct aio_ring of fs/aio.c.  io_context_t is its address.  Not in any header, but fixed by its magic: libaio's own
 * io_getevents and fio read it the same way. */
struct caio_ring {
    uint32_t id, nr, head, tail, magic, compat_features, incompat_features, header_length;
};

/* True if the ring has the layout known here; else io_getevents is the way. */
static inline bool caio_ring_readable(io_context_t context)
{
    const struct caio_ring *ring = (const struct caio_ring *)context;
    return ring && ring->magic == 0xa10a10a1u && ring->incompat_features == 0
        && ring->header_length == sizeof *ring && ring->nr > 0;
}

/* Takes up to `room` events without a system call.  One thread per context: head has one writer. */
static inline uint32_t caio_ring_take(io_context_t context, struct io_event *events, uint32_t room)
{
    struct caio_ring *ring = (struct caio_ring *)context;
    const struct io_event *slots = (const struct io_event *)(ring + 1);
    uint32_t nr = ring->nr, head = ring->head, taken = 0;
    uint32_t tail = __atomic_load_n(&ring->tail, __ATOMIC_ACQUIRE); /* the kernel writes events, then tail */
    while (head != tail && taken < room) {
        events[taken++] = slots[head];
        if (++head >= nr) head = 0;
    }
    /* Release: the kernel may use the slots again once it sees the new head. */
    if (taken) __atomic_store_n(&ring->head, head, __ATOMIC_RELEASE);
    return taken;
}

#endif
