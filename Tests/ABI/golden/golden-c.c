// SPDX-License-Identifier: BSD-2-Clause
// A disk in memory that completes through every service of the host: reads from a posted function, writes from a watched
// eventfd, flushes from a timer, the rest in submit().
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>
#include "xbb_plugin.h"

struct disk { uint64_t size; struct xbb_hdev *hdev; int read_only; char *data; };
struct link { struct xbb_req *next; };
struct queue {
    struct disk *disk;
    struct xbb_hqueue *hq;
    struct xbb_req *reads, *writes, *flushes;
    struct xbb_watch *watch;
    struct xbb_timer *timer;
    int event;
};
static const struct xbb_host *host;

static int load(const struct xbb_host *table) {
    host = table;
    return XBB_HAS(table, extension) && !table->extension("xbb.unknown/1") ? 0 : -EINVAL;
}

static int open_disk(const struct xbb_open *open, void **out, struct xbb_error *err) {
    if (open->option_count != 3 || strcmp(open->format, "golden-c") || !XBB_HAS(open, label))
        return xbb_set_error(err, -EINVAL, "not what ABI 1.0 promises");
    if (strcmp(open->options[1].str, "two") || open->options[1].num != 1 || open->options[2].num != 1)
        return xbb_set_error(err, -EINVAL, "the defaults of the options are not there");
    struct disk *disk = calloc(1, sizeof *disk);
    if (disk) disk->data = calloc(1, open->options[0].num);
    if (!disk || !disk->data) { free(disk); return xbb_set_error(err, -ENOMEM, "no memory"); }
    disk->size = open->options[0].num, disk->hdev = open->hdev, disk->read_only = open->flags & XBB_OPEN_RDONLY;
    *out = disk;
    return 0;
}

static int start(void *dev, struct xbb_error *err) {
    (void)err;
    host->log(((struct disk *)dev)->hdev, XBB_LOG_INFO, "golden-c starts");
    return 0;
}

static void close_disk(void *dev) { free(((struct disk *)dev)->data); free(dev); }

static int get_info(void *dev, struct xbb_info *info) {
    struct disk *disk = dev;
    if (!XBB_HAS(info, max_write_zeroes)) return -EINVAL;
    info->size = disk->size, info->max_transfer = 65536, info->queue_depth = 64, info->max_queues = 4;
    if (!disk->read_only) info->caps = XBB_CAP_WRITE | XBB_CAP_FLUSH | XBB_CAP_DISCARD | XBB_CAP_DISCARD_ZEROES;
    return 0;
}

static void finish(struct queue *queue, struct xbb_req **list) {
    while (*list) {
        struct xbb_req *req = *list;
        *list = ((struct link *)req->ctx)->next;
        host->complete(queue->hq, req, 0);
    }
}
static void posted(void *queue) { finish(queue, &((struct queue *)queue)->reads); }
static void fired(void *queue) { finish(queue, &((struct queue *)queue)->flushes); }
static void readable(void *queue, int fd, uint32_t events) {
    uint64_t count;
    if (events & XBB_FD_READ && read(fd, &count, 8) == 8) finish(queue, &((struct queue *)queue)->writes);
}

static void queue_close(void *q) {
    struct queue *queue = q;
    if (queue->watch) host->watch_del(queue->watch);
    if (queue->timer) host->timer_del(queue->timer);
    close(queue->event);
    free(queue);
}

static int queue_open(void *dev, struct xbb_hqueue *hq, const struct xbb_queue_params *params, void **out,
                      struct xbb_error *err) {
    struct queue *queue = calloc(1, sizeof *queue);
    if (!queue || params->depth == 0 || params->depth > 64) return free(queue), xbb_set_error(err, -EINVAL, "queue");
    queue->disk = dev, queue->hq = hq, queue->event = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (host->watch_add(hq, queue->event, XBB_FD_READ, readable, queue, &queue->watch) ||
        host->timer_add(hq, fired, queue, &queue->timer))
        return queue_close(queue), xbb_set_error(err, -EIO, "no watch or timer");
    *out = queue;
    return 0;
}

static void move(struct disk *disk, const struct xbb_req *req) {
    char *place = disk->data + req->offset;
    for (uint32_t part = 0; part < req->iovcnt; place += req->iov[part++].iov_len)
        if (req->op == XBB_OP_READ) memcpy(req->iov[part].iov_base, place, req->iov[part].iov_len);
        else memcpy(place, req->iov[part].iov_base, req->iov[part].iov_len);
}

static void put(struct xbb_req **list, struct xbb_req *req) {
    ((struct link *)req->ctx)->next = *list;
    *list = req;
}

static uint32_t submit(void *q, struct xbb_req *const *reqs, uint32_t n) {
    struct queue *queue = q;
    uint64_t one = 1;
    if (n > 5) n = 5;                                   // the host offers the rest again
    for (uint32_t i = 0; i < n; i++) {
        move(queue->disk, reqs[i]);
        if (reqs[i]->op == XBB_OP_READ) put(&queue->reads, reqs[i]);
        else if (reqs[i]->op == XBB_OP_WRITE) put(&queue->writes, reqs[i]);
        else if (reqs[i]->op == XBB_OP_FLUSH) put(&queue->flushes, reqs[i]);
        else {
            if (reqs[i]->op == XBB_OP_DISCARD) memset(queue->disk->data + reqs[i]->offset, 0, reqs[i]->length);
            host->complete(queue->hq, reqs[i], reqs[i]->op == XBB_OP_DISCARD ? 0 : -EOPNOTSUPP);
        }
    }
    if (queue->reads) host->post(queue->hq, posted, queue);
    if (queue->writes && write(queue->event, &one, 8) != 8) abort();
    if (queue->flushes) host->timer_set(queue->timer, 100000);
    return n;
}

static const char *const choices[] = {"one", "two", NULL};
static const struct xbb_option options[] = {
    {.name = "size", .help = "bytes", .def = "64M", .min = 512, .max = 1ull << 30, .type = XBB_OPT_SIZE},
    {.name = "choice", .help = "a choice", .def = "two", .choices = choices, .type = XBB_OPT_ENUM},
    {.name = "flag", .help = "a flag", .def = "on", .type = XBB_OPT_BOOL},
};
static const struct xbb_plugin golden = {
    XBB_PLUGIN_HEADER, .name = "golden-c", .version = "1", .description = "Kept as it was built for ABI 1.0, from C",
    .formats = (const char *const[]){"golden-c", NULL}, .options = options, .option_count = 3,
    .flags = XBB_PLUGIN_NO_FD, .thread_model = XBB_THREADS_QUEUE, .req_ctx_size = sizeof(struct link), .load = load,
    .open = open_disk, .start = start, .close = close_disk, .get_info = get_info, .queue_open = queue_open,
    .queue_close = queue_close, .submit = submit};
XBB_PLUGIN_EXPORT(golden)
