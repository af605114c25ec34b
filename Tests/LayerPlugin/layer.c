// SPDX-License-Identifier: BSD-2-Clause
// Layers for tests: 4 KiB that may name a file below (its format at 64, its name at 128), then 64 KiB of data, of which
// sectors that begin with 0 are those of the file below. -DNAME is the plugin and its format; -DFLAGS may make it block;
// -DABI makes it one that was built for an earlier ABI. It says what is called, and how it reads what is below.
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "xbb_plugin.h"

#ifdef ABI
#undef XBB_ABI_MINOR
#define XBB_ABI_MINOR ABI
#endif
#ifndef FLAGS
#define FLAGS 0
#endif

enum { HEADER = 4096, SIZE = 65536, MAGIC = 0x1a7e12 };
struct disk { int magic, fd, started; char label[64]; struct xbb_hdev *hdev; struct xbb_child *child; struct disk *below; };
struct queue { struct xbb_hqueue *host_queue; struct disk *disk; };
static const struct xbb_host *host;

static int load(const struct xbb_host *table) { host = table; return 0; }

static void say(struct disk *disk, const char *what)
{
    char line[128];
    snprintf(line, sizeof line, "%s %s", what, disk->label);
    host->log(disk->hdev, XBB_LOG_INFO, line);
}

static int open_below(struct disk *disk, const char *header, struct xbb_error *err)
{
    struct xbb_ref ref = {.kind = XBB_REF_BACKING};
    struct xbb_info info = {.struct_size = sizeof info};
    memcpy(ref.format, header + 64, sizeof ref.format - 1);
    memcpy(ref.name, header + 128, sizeof ref.name - 1);
    if (!ref.name[0]) return 0;
    int result = host->child_open(disk->hdev, &ref, &disk->child, err);
    if (result) return result;
    if (XBB_HAS(host, child_device)) disk->below = host->child_device(disk->child);
    if (disk->below && disk->below->magic != MAGIC) return xbb_set_error(err, -EIO, "this is no disk of mine");
    result = host->child_info(disk->child, &info);
    return result ? result : info.size == SIZE ? 0 : xbb_set_error(err, -EINVAL, "expected 64 KiB below");
}

static int open_disk(const struct xbb_open *open, void **out, struct xbb_error *err)
{
    _Alignas(HEADER) char header[HEADER];
    if (pread(open->fd, header, sizeof header, 0) != sizeof header) return xbb_set_error(err, -EIO, "no header");
    struct disk *disk = calloc(1, sizeof *disk);
    if (!disk) return -ENOMEM;
    disk->magic = MAGIC, disk->fd = open->fd, disk->hdev = open->hdev;
    const char *slash = strrchr(open->label, '/');
    snprintf(disk->label, sizeof disk->label, "%s", slash ? slash + 1 : open->label);
    int result = open_below(disk, header, err);
    if (result) free(disk);
    else *out = disk;
    return result;
}

static int start(void *dev, struct xbb_error *err)
{
    struct disk *disk = dev;
    if (disk->below && !disk->below->started) return xbb_set_error(err, -EINVAL, "the disk below was not started");
    disk->started = 1;
    say(disk, "started");
    return 0;
}

// The disk below is still there.
static void close_disk(void *dev)
{
    struct disk *disk = dev;
    say(disk, disk->below && disk->below->magic != MAGIC ? "too late" : "closed");
    disk->magic = 0;
    free(disk);
}

static int get_info(void *dev, struct xbb_info *info) { (void)dev, info->size = SIZE, info->max_queues = 8; return 0; }

static int queue_open(void *dev, struct xbb_hqueue *hq, const struct xbb_queue_params *params, void **out,
                      struct xbb_error *err)
{
    struct queue *queue = malloc(sizeof *queue);
    (void)err;
    if (!queue) return -ENOMEM;
    queue->host_queue = hq, queue->disk = dev, *out = queue;
    if (params->index == 0) say(dev, "queue of");
    return 0;
}

static void done(void *arg, struct xbb_req *req, int32_t status) { (void)req, *(int32_t *)arg = status; }

static int read_sector(struct disk *disk, struct xbb_hqueue *hq, char *buffer, uint64_t offset)
{
    // The descriptor may be in O_DIRECT mode.
    _Alignas(HEADER) char block[HEADER];
    if (pread(disk->fd, block, HEADER, (off_t)(HEADER + offset / HEADER * HEADER)) != HEADER) return -EIO;
    memcpy(buffer, block + offset % HEADER, 512);
    if (buffer[0] || !disk->child) return 0;
    int raw = host->child_fd(disk->child);
    if (raw >= 0) return pread(raw, buffer, 512, (off_t)offset) == 512 ? 0 : -EIO;
    struct iovec part = {buffer, 512};
    struct xbb_req req = {.op = XBB_OP_READ, .offset = offset, .length = 512, .iov = &part, .iovcnt = 1};
    int32_t status = -EINPROGRESS;
    int result = host->child_submit(hq, disk->child, &req, done, &status);
    // Whoever has no queues is read as the plugin can.
    if (result == -EOPNOTSUPP && disk->below) return read_sector(disk->below, hq, buffer, offset);
    return result ? result : status;
}

static uint32_t submit(void *q, struct xbb_req *const *reqs, uint32_t n)
{
    struct queue *queue = q;
    for (uint32_t i = 0; i < n; i++) {
        int status = reqs[i]->op == XBB_OP_READ ? 0 : -EOPNOTSUPP;
        uint64_t offset = reqs[i]->offset;
        for (uint32_t part = 0; !status && part < reqs[i]->iovcnt; part++)
            for (size_t at = 0; !status && at < reqs[i]->iov[part].iov_len; at += 512, offset += 512)
                status = read_sector(queue->disk, queue->host_queue, (char *)reqs[i]->iov[part].iov_base + at, offset);
        host->complete(queue->host_queue, reqs[i], status);
    }
    return n;
}

static const struct xbb_plugin layer = {
    XBB_PLUGIN_HEADER, .name = NAME, .version = "1", .description = "Layers for tests",
    .formats = (const char *const[]){NAME, NULL}, .flags = XBB_PLUGIN_RDONLY | FLAGS, .thread_model = XBB_THREADS_QUEUE,
    .load = load, .open = open_disk, .start = start, .close = close_disk, .get_info = get_info,
    .queue_open = queue_open, .queue_close = free, .submit = submit};
XBB_PLUGIN_EXPORT(layer)
