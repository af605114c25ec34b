// SPDX-License-Identifier: BSD-2-Clause
// A plugin that works, and with one macro at a time one that does not. NAME is its name.
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "xbb_plugin.h"

#define TEXT(x) TEXT_(x)
#define TEXT_(x) #x
#ifndef STRUCT_SIZE
#define STRUCT_SIZE sizeof(struct xbb_plugin)
#endif
#ifndef MAJOR
#define MAJOR XBB_ABI_MAJOR
#endif
#ifndef CAPS
#define CAPS XBB_CAP_WRITE
#endif
#ifndef INFO
#define INFO
#endif
#ifndef CHANGE
#define CHANGE
#endif
#ifndef LOAD_RESULT
#define LOAD_RESULT 0
#endif

#define SIZE (1u << 20)
static char disk[SIZE];
static const struct xbb_host *host;

#ifdef UNDEFINED
extern int no_such_function(void);
int (*use)(void) = no_such_function;
#endif

static int load(const struct xbb_host *table) { host = table; return LOAD_RESULT; }

static int open_disk(const struct xbb_open *open, void **out, struct xbb_error *err)
{
    (void)open, (void)err, *out = disk;
    return 0;
}

static void close_disk(void *dev) { (void)dev; }

static int get_info(void *dev, struct xbb_info *info)
{
    (void)dev, info->size = SIZE, info->caps = CAPS;
    INFO;
    return 0;
}

static int queue_open(void *dev, struct xbb_hqueue *hq, const struct xbb_queue_params *params, void **out,
                      struct xbb_error *err)
{
    (void)dev, (void)params, (void)err, *out = hq;
    return 0;
}

static uint32_t submit(void *q, struct xbb_req *const *reqs, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        char *place = disk + reqs[i]->offset;
        for (uint32_t part = 0; part < reqs[i]->iovcnt; part++) {
            const struct iovec *v = &reqs[i]->iov[part];
            if (reqs[i]->op == XBB_OP_READ) memcpy(v->iov_base, place, v->iov_len);
            if (reqs[i]->op == XBB_OP_WRITE) memcpy(place, v->iov_base, v->iov_len);
            place += v->iov_len;
        }
        host->complete(q, reqs[i], reqs[i]->op <= XBB_OP_WRITE ? 0 : -EOPNOTSUPP);
    }
    return n;
}

// What is behind the table is what a newer host would read there.
static struct { struct xbb_plugin table; char more[1 << 17]; } description = {.table = {
    .struct_size = STRUCT_SIZE, .abi_major = MAJOR, .abi_minor = 99, .name = TEXT(NAME), .version = "1",
    .description = "For tests", .formats = (const char *const[]){TEXT(NAME), NULL}, .flags = XBB_PLUGIN_NO_FD,
    .thread_model = XBB_THREADS_QUEUE, .load = load, .open = open_disk, .close = close_disk, .get_info = get_info,
    .queue_open = queue_open, .queue_close = close_disk, .submit = submit}};

#ifndef ENTRY
#define ENTRY xbb_plugin_v1
#endif
__attribute__((visibility("default"))) const struct xbb_plugin *ENTRY(void);
const struct xbb_plugin *ENTRY(void)
{
    struct xbb_plugin *table = &description.table;
    CHANGE;
    return table;
}
