// SPDX-License-Identifier: BSD-2-Clause
// A disk in memory, the smallest useful plugin:  gcc -std=c11 -shared -fPIC -Wl,-z,defs memory.c -o xbb-memory.so
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <xbb_plugin.h>

struct disk { uint64_t size, flags; char data[]; };     // both of 8 bytes: data stay aligned
struct queue { struct disk *disk; struct xbb_hqueue *host_queue; };
static const struct xbb_host *host;

static int load(const struct xbb_host *table) { host = table; return 0; }

static int open_disk(const struct xbb_open *open, void **out, struct xbb_error *err) {
    uint64_t size = open->options[0].num;
    struct disk *disk = size % 512 ? NULL : calloc(1, sizeof *disk + size);
    if (!disk) return xbb_set_error(err, -EINVAL, "size is no multiple of 512 bytes, or more than there is memory");
    disk->size = size, disk->flags = open->flags;
    *out = disk;
    return 0;
}

static int get_info(void *dev, struct xbb_info *info) {
    info->size = ((struct disk *)dev)->size;      // what is not said keeps its default: blocks of 512 bytes, one queue
    info->caps = ((struct disk *)dev)->flags & XBB_OPEN_RDONLY ? 0 : XBB_CAP_WRITE;    // no cache, therefore no flush
    return 0;
}

static int queue_open(void *dev, struct xbb_hqueue *hq, const struct xbb_queue_params *params, void **out,
                      struct xbb_error *err) {
    struct queue *queue = malloc(sizeof *queue);
    if (!queue) return xbb_set_error(err, -ENOMEM, "no memory for a queue");
    (void)params, *queue = (struct queue){dev, hq}, *out = queue;
    return 0;
}

static uint32_t submit(void *q, struct xbb_req *const *reqs, uint32_t n) {
    struct queue *queue = q;
    for (uint32_t i = 0; i < n; i++) {
        char *place = queue->disk->data + reqs[i]->offset;      // the host has checked offset and length
        for (uint32_t part = 0; part < reqs[i]->iovcnt; part++) {
            const struct iovec *v = &reqs[i]->iov[part];
            if (reqs[i]->op == XBB_OP_READ) memcpy(v->iov_base, place, v->iov_len);
            if (reqs[i]->op == XBB_OP_WRITE) memcpy(place, v->iov_base, v->iov_len);
            place += v->iov_len;
        }
        int known = reqs[i]->op == XBB_OP_READ || reqs[i]->op == XBB_OP_WRITE;
        host->complete(queue->host_queue, reqs[i], known ? 0 : -EOPNOTSUPP);
    }
    return n;
}

static const struct xbb_option size_option = {
    .name = "size", .help = "bytes", .def = "64M", .min = 512, .max = 1ull << 40, .type = XBB_OPT_SIZE};
static const struct xbb_plugin memory = {
    XBB_PLUGIN_HEADER, .name = "memory", .version = "1", .description = "A disk in memory",
    .formats = (const char *const[]){"memory", NULL}, .options = &size_option, .option_count = 1,
    .flags = XBB_PLUGIN_NO_FD, .thread_model = XBB_THREADS_QUEUE, .load = load, .open = open_disk, .close = free,
    .get_info = get_info, .queue_open = queue_open, .queue_close = free, .submit = submit};
XBB_PLUGIN_EXPORT(memory)
