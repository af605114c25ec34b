// SPDX-License-Identifier: BSD-2-Clause
// xbb-empty: a drive without a medium. A guest can connect to it; every read and write fails until a medium is inserted.
#include <errno.h>
#include <stddef.h>

#include "xbb_plugin.h"

// The least that a disk can have: frontends are not made for less than a block.
enum { SIZE = 512 };

static const struct xbb_host *host;
// What dev and queues are: there is nothing to keep.
static char nothing;

static int empty_load(const struct xbb_host *table)
{
    host = table;
    return 0;
}

static int empty_open(const struct xbb_open *open, void **dev, struct xbb_error *err)
{
    (void)open;
    (void)err;
    *dev = &nothing;
    return 0;
}

static void empty_close(void *dev)
{
    (void)dev;
}

static int empty_get_info(void *dev, struct xbb_info *info)
{
    (void)dev;
    info->caps = XBB_CAP_WRITE | XBB_CAP_FLUSH;
    info->size = SIZE;
    info->logical_block = 512;
    info->max_queues = 64;
    return 0;
}

static int empty_queue_open(void *dev, struct xbb_hqueue *hq, const struct xbb_queue_params *params, void **out,
                            struct xbb_error *err)
{
    (void)dev;
    (void)params;
    (void)err;
    *out = hq;
    return 0;
}

static void empty_queue_close(void *queue)
{
    (void)queue;
}

static uint32_t empty_submit(void *queue, struct xbb_req *const *reqs, uint32_t n)
{
    // What was never written is durable.
    for (uint32_t i = 0; i < n; i++) host->complete(queue, reqs[i], reqs[i]->op == XBB_OP_FLUSH ? 0 : -ENOMEDIUM);
    return n;
}

static const struct xbb_plugin empty_plugin = {
    XBB_PLUGIN_HEADER,
    .name = "empty",
    .version = "1.0",
    .description = "A drive without a medium",
    .formats = (const char *const[]){"empty", NULL},
    .flags = XBB_PLUGIN_NO_FD,
    .thread_model = XBB_THREADS_QUEUE,
    .load = empty_load,
    .open = empty_open,
    .close = empty_close,
    .get_info = empty_get_info,
    .queue_open = empty_queue_open,
    .queue_close = empty_queue_close,
    .submit = empty_submit,
};

XBB_PLUGIN_EXPORT(empty_plugin)
