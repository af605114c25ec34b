// SPDX-License-Identifier: BSD-2-Clause
// An image format for tests: 8 bytes say what it is, or what the parser is to do wrong with it. The disk is full of 'T'.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <xbb_plugin.h>

struct queue { struct xbb_hqueue *host_queue; };
static const struct xbb_host *host;

static int load(const struct xbb_host *table) { host = table; return 0; }
static int is(const uint8_t *head, uint64_t length, const char *word) { return length >= 8 && !memcmp(head, word, 8); }

static void misbehave(const uint8_t *head, uint64_t length)
{
    if (is(head, length, "TOYCRASH")) __builtin_trap();
    while (is(head, length, "TOYSPINS")) __asm__ volatile("");
    if (is(head, length, "TOYHUNGR")) {
        char *block;
        while ((block = malloc(1 << 20))) memset(block, 1, 1 << 20);
        __builtin_trap();
    }
}

static int probe(const struct xbb_probe *p)
{
    misbehave(p->head, p->head_len);
    if (!strcmp(p->format, "toy-two")) return p->head_len >= 520 && is(p->head + 512, 8, "TOYSECND") ? 20 : 0;
    return is(p->head, p->head_len, "TOYIMAGE") ? 90 : 0;
}

// Behind the magic: flags, the length of the backing file's format, that, and the backing file's name to the sector's end.
static int inspect(const struct xbb_open *o, struct xbb_image *out, struct xbb_error *err)
{
    uint8_t head[512];
    if (pread(o->fd, head, sizeof head, 0) != sizeof head) return xbb_set_error(err, -EINVAL, "there is no header");
    misbehave(head, sizeof head);
    if (is(head, sizeof head, "TOYOPENS") && open("/etc/passwd", O_RDONLY) < 0)
        return xbb_set_error(err, -errno, "cannot open another file");
    out->virtual_size = 1 << 20, out->flags = head[8], out->metadata_memory = 4096;
    if (head[10]) {
        out->ref_count = 1, out->refs[0].kind = XBB_REF_BACKING;
        memcpy(out->refs[0].format, head + 10, head[9] < 31 ? head[9] : 31);
        memcpy(out->refs[0].name, head + 64, 448);
    }
    return 0;
}

static int open_disk(const struct xbb_open *open, void **out, struct xbb_error *err)
{
    (void)err, (void)open, *out = malloc(1);
    return *out ? 0 : -ENOMEM;
}

static int get_info(void *dev, struct xbb_info *info) { (void)dev, info->size = 1 << 20; return 0; }

static int queue_open(void *dev, struct xbb_hqueue *hq, const struct xbb_queue_params *params, void **out,
                      struct xbb_error *err)
{
    struct queue *queue = malloc(sizeof *queue);
    (void)dev, (void)params, (void)err;
    if (queue) queue->host_queue = hq, *out = queue;
    return queue ? 0 : -ENOMEM;
}

static uint32_t submit(void *q, struct xbb_req *const *reqs, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        for (uint32_t part = 0; part < reqs[i]->iovcnt; part++)
            memset(reqs[i]->iov[part].iov_base, 'T', reqs[i]->iov[part].iov_len);
        host->complete(((struct queue *)q)->host_queue, reqs[i], reqs[i]->op == XBB_OP_READ ? 0 : -EOPNOTSUPP);
    }
    return n;
}

static const struct xbb_plugin toy = {
    XBB_PLUGIN_HEADER, .name = "toy", .version = "1", .description = "An image format for tests",
    .formats = (const char *const[]){"toy", "toy-two", NULL}, .flags = XBB_PLUGIN_RDONLY,
    .thread_model = XBB_THREADS_QUEUE, .load = load, .probe = probe, .inspect = inspect, .open = open_disk, .close = free,
    .get_info = get_info, .queue_open = queue_open, .queue_close = free, .submit = submit};
XBB_PLUGIN_EXPORT(toy)
