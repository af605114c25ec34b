// SPDX-License-Identifier: BSD-2-Clause
// An image or block device through Linux AIO: submit() starts requests and returns; an eventfd in the host's event loop
// says when they are done. The queue's thread never sleeps here, and nothing is allocated per request: the kernel's
// control block lies in the scratch memory that comes with each request.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <libaio.h>
#include <linux/fs.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xbb_plugin.h>

enum { BATCH = 64 };
struct disk { int fd, flags; uint32_t block; uint64_t size, caps; };
struct queue {
    struct disk *disk;
    struct xbb_hqueue *host_queue;
    struct xbb_watch *watch;
    io_context_t context;
    int event;
};
static const struct xbb_host *host;

static int load(const struct xbb_host *table) { host = table; return 0; }

// The smallest block that direct I/O takes here, by trying: 512 or 4096 bytes; 0 if there is no direct I/O.
static uint32_t direct_block(int fd) {
    void *memory;
    if (posix_memalign(&memory, 4096, 8192)) return 0;
    uint32_t block = 512;
    while (block && pread(fd, (char *)memory + block % 4096, block, block) < 0) block = block == 512 ? 4096 : 0;
    free(memory);
    return block;
}

// The descriptor is the host's: it gets it back as it was.
static int refuse(const struct disk *disk, struct xbb_error *err, int code, const char *message) {
    if (disk->flags >= 0) fcntl(disk->fd, F_SETFL, disk->flags);
    return xbb_set_error(err, code, message);
}

static int open_disk(const struct xbb_open *open, void **out, struct xbb_error *err) {
    struct stat status;
    struct disk disk = {.fd = open->fd, .flags = fcntl(open->fd, F_GETFL), .block = 512};
    if (disk.flags < 0 || fstat(disk.fd, &status) < 0) return refuse(&disk, err, -errno, "the image cannot be examined");
    disk.size = (uint64_t)status.st_size;
    if (!S_ISREG(status.st_mode) && ioctl(disk.fd, BLKGETSIZE64, &disk.size) < 0)
        return refuse(&disk, err, -errno, "neither a file nor a block device");
    // Without O_DIRECT, io_submit() sleeps until the data are there. tmpfs has none, and needs none.
    if (fcntl(disk.fd, F_SETFL, disk.flags | O_DIRECT) == 0 && !(disk.block = direct_block(disk.fd)))
        return refuse(&disk, err, -EINVAL, "the image takes no direct I/O");
    if (disk.size < disk.block) return refuse(&disk, err, -EINVAL, "the image is smaller than one block");
    disk.size -= disk.size % disk.block;
    if (!(open->flags & XBB_OPEN_RDONLY)) disk.caps = XBB_CAP_WRITE | XBB_CAP_FLUSH | XBB_CAP_FUA;
    struct disk *kept = malloc(sizeof *kept);
    if (!kept) return refuse(&disk, err, -ENOMEM, "no memory for a disk");
    *kept = disk, *out = kept;
    return 0;
}

static void close_disk(void *dev) {
    struct disk *disk = dev;
    fcntl(disk->fd, F_SETFL, disk->flags);
    free(disk);
}

static int get_info(void *dev, struct xbb_info *info) {
    const struct disk *disk = dev;
    info->size = disk->size, info->caps = disk->caps;
    info->logical_block = info->mem_align = disk->block;
    info->max_queues = 16, info->max_iov = 1024, info->max_transfer = 1 << 30;       // what a system call takes
    return 0;
}

static void completions(void *q, int fd, uint32_t events) {
    struct queue *queue = q;
    struct io_event done[BATCH];
    uint64_t count;
    int n;
    if (!(events & XBB_FD_READ) || read(fd, &count, sizeof count) < 0) return;
    do {
        n = io_getevents(queue->context, 0, BATCH, done, &(struct timespec){0, 0});
        for (int i = 0; i < n; i++) {
            struct xbb_req *req = done[i].data;
            int64_t moved = (int64_t)done[i].res;   // bytes, or a negative errno; half of a request is an error
            int32_t status = moved < 0 ? (int32_t)moved : (uint64_t)moved == req->length ? 0 : -EIO;
            host->complete(queue->host_queue, req, status);
        }
    } while (n == BATCH);
}

static void queue_close(void *q) {                  // nothing is in flight
    struct queue *queue = q;
    if (queue->watch) host->watch_del(queue->watch);
    if (queue->event >= 0) close(queue->event);
    if (queue->context) io_destroy(queue->context);
    free(queue);
}

static int queue_open(void *dev, struct xbb_hqueue *hq, const struct xbb_queue_params *params, void **out,
                      struct xbb_error *err) {
    struct queue *queue = malloc(sizeof *queue);
    if (!queue) return xbb_set_error(err, -ENOMEM, "no memory for a queue");
    *queue = (struct queue){.disk = dev, .host_queue = hq, .event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
    int code = queue->event < 0 ? -errno : io_setup((int)params->depth, &queue->context);
    if (code == 0) code = host->watch_add(hq, queue->event, XBB_FD_READ, completions, queue, &queue->watch);
    if (code < 0) {
        queue_close(queue);
        return xbb_set_error(err, code, "asynchronous I/O cannot be set up; is fs.aio-max-nr large enough?");
    }
    *out = queue;
    return 0;
}

// Fills in the control block of a request; 0, or what to complete it with at once.
static int prepare(const struct queue *queue, struct xbb_req *req) {
    struct iocb *block = req->ctx;
    int known = req->op == XBB_OP_WRITE ? XBB_REQ_FUA : 0;
    if (req->op < XBB_OP_READ || req->op > XBB_OP_FLUSH) return -EOPNOTSUPP;
    if (req->flags & ~known) return -EINVAL;
    switch (req->op) {
    case XBB_OP_READ: io_prep_preadv(block, queue->disk->fd, req->iov, (int)req->iovcnt, (long long)req->offset); break;
    case XBB_OP_WRITE: io_prep_pwritev(block, queue->disk->fd, req->iov, (int)req->iovcnt, (long long)req->offset); break;
    case XBB_OP_FLUSH: io_prep_fdsync(block, queue->disk->fd); break;
    }
    if (req->flags & XBB_REQ_FUA) block->aio_rw_flags = RWF_DSYNC;
    block->data = req;
    io_set_eventfd(block, queue->event);
    return 0;
}

static uint32_t submit(void *q, struct xbb_req *const *reqs, uint32_t n) {
    struct queue *queue = q;
    struct iocb *blocks[BATCH];
    uint32_t ready = 0, sent = 0;
    int refusal = 0;
    // What is accepted is a prefix of the batch. It ends here before a request that is refused, which then comes first in
    // the next call: a request must not be completed while one before it may not be accepted.
    while (ready < n && ready < BATCH && !(refusal = prepare(queue, reqs[ready]))) {
        blocks[ready] = reqs[ready]->ctx;
        ready++;
    }
    if (ready == 0 && refusal) {
        host->complete(queue->host_queue, reqs[0], refusal);
        return 1;
    }
    while (sent < ready) {
        int result = io_submit(queue->context, ready - sent, blocks + sent);
        if (result == 0 || result == -EAGAIN) break;            // no room now: the rest is offered again
        if (result < 0) host->complete(queue->host_queue, reqs[sent], result);
        sent += result < 0 ? 1 : (uint32_t)result;
    }
    return sent;
}

static const struct xbb_plugin aio = {
    XBB_PLUGIN_HEADER, .name = "aio", .version = "1", .description = "Files and block devices through Linux AIO",
    .formats = (const char *const[]){"aio", NULL}, .thread_model = XBB_THREADS_QUEUE,
    .req_ctx_size = sizeof(struct iocb), .load = load, .open = open_disk, .close = close_disk, .get_info = get_info,
    .queue_open = queue_open, .queue_close = queue_close, .submit = submit};
XBB_PLUGIN_EXPORT(aio)
