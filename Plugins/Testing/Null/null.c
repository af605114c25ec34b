// SPDX-License-Identifier: BSD-2-Clause
// xbb-null: a disk without storage.  It measures the host, and shows that the header alone is enough to write a plugin.
//
// Every request is completed inside submit().  Writes are dropped; reads give zeroes, so that a guest never sees what
// was in the host's buffers before.  read-zeroes=off leaves the buffers as they are: for measurements only.
#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "xbb_plugin.h"

enum { OPTION_SIZE, OPTION_READ_ZEROES, OPTION_COUNT };

static const struct xbb_option options[OPTION_COUNT] = {
    [OPTION_SIZE] = {.name = "size", .help = "size of the disk, a multiple of 512", .def = "1G", .min = 512,
                     .max = 1ull << 60, .type = XBB_OPT_SIZE},
    [OPTION_READ_ZEROES] = {.name = "read-zeroes", .def = "on", .type = XBB_OPT_BOOL,
                            .help = "fill read buffers with zeroes; off only to measure, guests then see old memory"},
};

struct disk {
    uint64_t size;
    bool     read_zeroes;
    bool     read_only;
};

struct queue {
    void             (*complete)(struct xbb_hqueue *, struct xbb_req *, int32_t);
    struct xbb_hqueue *hq;
    bool               read_zeroes;
};

static const struct xbb_host *host;

static int null_load(const struct xbb_host *table)
{
    host = table;
    return 0;
}

static int null_open(const struct xbb_open *open, void **dev, struct xbb_error *err)
{
    if (open->option_count != OPTION_COUNT)
        return xbb_set_error(err, -EINVAL, "the host passed another number of options than the schema has");
    if (open->options[OPTION_SIZE].num == 0 || open->options[OPTION_SIZE].num % 512 != 0)
        return xbb_set_error(err, -EINVAL, "size must be a multiple of 512 and not 0");
    struct disk *disk = calloc(1, sizeof *disk);
    if (!disk) return xbb_set_error(err, -ENOMEM, "out of memory");
    disk->size = open->options[OPTION_SIZE].num;
    disk->read_zeroes = open->options[OPTION_READ_ZEROES].num != 0;
    disk->read_only = (open->flags & XBB_OPEN_RDONLY) != 0;
    *dev = disk;
    return 0;
}

static void null_close(void *dev)
{
    free(dev);
}

static int null_get_info(void *dev, struct xbb_info *info)
{
    const struct disk *disk = dev;
    if (!disk->read_only)
        info->caps = XBB_CAP_WRITE | XBB_CAP_FLUSH | XBB_CAP_FUA | XBB_CAP_DISCARD | XBB_CAP_WRITE_ZEROES;
    info->size = disk->size;
    info->logical_block = 512;
    info->physical_block = 4096;
    info->max_queues = 64;
    return 0;
}

static int null_queue_open(void *dev, struct xbb_hqueue *hq, const struct xbb_queue_params *params, void **out,
                           struct xbb_error *err)
{
    (void)params;
    struct queue *queue = malloc(sizeof *queue);
    if (!queue) return xbb_set_error(err, -ENOMEM, "out of memory");
    queue->complete = host->complete;
    queue->hq = hq;
    queue->read_zeroes = ((const struct disk *)dev)->read_zeroes;
    *out = queue;
    return 0;
}

static void null_queue_close(void *queue)
{
    free(queue);
}

// A bit that an operation does not know must not be passed over in silence.
static int32_t null_status(const struct xbb_req *req)
{
    static const uint16_t known[] = {
        [XBB_OP_READ] = 0,
        [XBB_OP_WRITE] = XBB_REQ_FUA,
        [XBB_OP_FLUSH] = 0,
        [XBB_OP_DISCARD] = XBB_REQ_FUA,
        [XBB_OP_WRITE_ZEROES] = XBB_REQ_FUA | XBB_REQ_MAY_UNMAP | XBB_REQ_NO_FALLBACK,
    };
    if (req->op < XBB_OP_READ || req->op > XBB_OP_WRITE_ZEROES) return -EOPNOTSUPP;
    return req->flags & ~known[req->op] ? -EINVAL : 0;
}

static uint32_t null_submit(void *q, struct xbb_req *const *reqs, uint32_t n)
{
    const struct queue *queue = q;
    for (uint32_t i = 0; i < n; i++) {
        struct xbb_req *req = reqs[i];
        int32_t status = null_status(req);
        if (status == 0 && req->op == XBB_OP_READ && queue->read_zeroes)
            for (uint32_t part = 0; part < req->iovcnt; part++) memset(req->iov[part].iov_base, 0, req->iov[part].iov_len);
        queue->complete(queue->hq, req, status);
    }
    return n;
}

static int null_extents(void *dev, uint64_t offset, uint64_t length, xbb_extent_fn fn, void *arg, struct xbb_error *err)
{
    const struct disk *disk = dev;
    (void)err;
    if (offset >= disk->size || length == 0) return 0;
    if (length > disk->size - offset) length = disk->size - offset;
    fn(arg, offset, length, XBB_EXTENT_HOLE | XBB_EXTENT_ZERO);
    return 0;
}

static const struct xbb_plugin null_plugin = {
    XBB_PLUGIN_HEADER,
    .name = "null",
    .version = "1.0",
    .description = "A disk that forgets everything, for measurements",
    .formats = (const char *const[]){"null", "raw", NULL},
    .options = options,
    .option_count = OPTION_COUNT,
    .flags = XBB_PLUGIN_NO_FD,
    .thread_model = XBB_THREADS_QUEUE,
    .load = null_load,
    .open = null_open,
    .close = null_close,
    .get_info = null_get_info,
    .queue_open = null_queue_open,
    .queue_close = null_queue_close,
    .submit = null_submit,
    .extents = null_extents,
};

XBB_PLUGIN_EXPORT(null_plugin)
