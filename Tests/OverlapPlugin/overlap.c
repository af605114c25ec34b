// SPDX-License-Identifier: BSD-2-Clause
// A plugin that bears one call at a time, and says so when two are made: a timer's function asks for get_info(), which
// comes on another thread, and takes its time.
#include <errno.h>
#include <stdatomic.h>
#include <unistd.h>
#include "xbb_plugin.h"

enum { ROUNDS = 5, PAUSE_NS = 50000000 };
static const struct xbb_host *host;
static struct xbb_hdev *disk;
static struct xbb_timer *timer;
static atomic_int inside;
static int rounds;

static void enter(void) {
    if (atomic_fetch_add(&inside, 1) != 0) host->log(disk, XBB_LOG_ERROR, "two calls at a time");
}
static void leave(void) { atomic_fetch_sub(&inside, 1); }

static int load(const struct xbb_host *table) { host = table; return 0; }
static int open_disk(const struct xbb_open *open, void **dev, struct xbb_error *err) {
    (void)err;
    disk = open->hdev;
    *dev = &inside;
    return 0;
}
static void close_disk(void *dev) { (void)dev; }
static int get_info(void *dev, struct xbb_info *info) {
    (void)dev;
    enter();
    usleep(20000);
    info->size = 1 << 20;
    leave();
    return 0;
}
static void fire(void *arg) {
    enter();
    host->notify(disk, XBB_NOTIFY_INFO);
    usleep(50000);
    leave();
    if (++rounds < ROUNDS) host->timer_set(timer, PAUSE_NS);
    else host->log(disk, XBB_LOG_INFO, "all rounds are over");
    (void)arg;
}
static int queue_open(void *dev, struct xbb_hqueue *hq, const struct xbb_queue_params *params, void **q,
                      struct xbb_error *err) {
    (void)dev, (void)params, (void)err;
    *q = hq;
    int result = host->timer_add(hq, fire, NULL, &timer);
    if (result == 0) host->timer_set(timer, PAUSE_NS);
    return result;
}
static void queue_close(void *q) { (void)q; host->timer_del(timer); }
static uint32_t submit(void *q, struct xbb_req *const *reqs, uint32_t n) {
    for (uint32_t i = 0; i < n; i++) host->complete(q, reqs[i], -EIO);
    return n;
}

static const struct xbb_plugin overlap = {
    XBB_PLUGIN_HEADER, .name = "overlap", .version = "1", .description = "Bears one call at a time",
    .formats = (const char *const[]){"overlap", NULL}, .flags = XBB_PLUGIN_NO_FD, .thread_model = XBB_THREADS_DEVICE,
    .load = load, .open = open_disk, .close = close_disk, .get_info = get_info, .queue_open = queue_open,
    .queue_close = queue_close, .submit = submit};
XBB_PLUGIN_EXPORT(overlap)
