// SPDX-License-Identifier: BSD-2-Clause
// A plugin without a file, for tests: a disk in memory, 1 MiB, that begins with what its location is.
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <xbb_plugin.h>

enum { SIZE = 1 << 20 };
struct queue { struct xbb_hqueue *host_queue; char *memory; };
static const struct xbb_host *host;

static int load(const struct xbb_host *table) { host = table; return 0; }

static int open_disk(const struct xbb_open *open, void **out, struct xbb_error *err)
{
    if (!XBB_HAS(open, location)) return xbb_set_error(err, -ENOTSUP, "this version of XBB tells no locations");
    if (open->fd != -1 || !open->location) return xbb_set_error(err, -EINVAL, "expected a location and no file");
    if (!open->location[0]) return xbb_set_error(err, -EINVAL, "expected a name behind the format");
    if (!strcmp(open->location, "unknown")) return xbb_set_error(err, -ENOENT, "nobody knows this name");
    char *memory = calloc(1, SIZE);
    if (!memory) return -ENOMEM;
    strncpy(memory, open->location, SIZE - 1);
    *out = memory;
    return 0;
}

static int get_info(void *dev, struct xbb_info *info)
{
    (void)dev, info->size = SIZE, info->caps = XBB_CAP_WRITE;
    return 0;
}

static int queue_open(void *dev, struct xbb_hqueue *hq, const struct xbb_queue_params *params, void **out,
                      struct xbb_error *err)
{
    struct queue *queue = malloc(sizeof *queue);
    (void)params, (void)err;
    if (queue) queue->host_queue = hq, queue->memory = dev, *out = queue;
    return queue ? 0 : -ENOMEM;
}

static int move(char *memory, const struct xbb_req *req)
{
    if (req->op != XBB_OP_READ && req->op != XBB_OP_WRITE) return -EOPNOTSUPP;
    for (uint32_t i = 0; i < req->iovcnt; memory += req->iov[i++].iov_len) {
        if (req->op == XBB_OP_READ) memcpy(req->iov[i].iov_base, memory, req->iov[i].iov_len);
        else memcpy(memory, req->iov[i].iov_base, req->iov[i].iov_len);
    }
    return 0;
}

static uint32_t submit(void *q, struct xbb_req *const *reqs, uint32_t n)
{
    struct queue *queue = q;
    for (uint32_t i = 0; i < n; i++)
        host->complete(queue->host_queue, reqs[i], move(queue->memory + reqs[i]->offset, reqs[i]));
    return n;
}

static const struct xbb_plugin named = {
    XBB_PLUGIN_HEADER, .name = "named", .version = "1", .description = "A disk in memory that is called by a name",
    .formats = (const char *const[]){"named", NULL}, .flags = XBB_PLUGIN_NO_FD, .thread_model = XBB_THREADS_QUEUE,
    .load = load, .open = open_disk, .close = free, .get_info = get_info, .queue_open = queue_open,
    .queue_close = free, .submit = submit};
XBB_PLUGIN_EXPORT(named)
