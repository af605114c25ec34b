/* SPDX-License-Identifier: BSD-2-Clause
 * A small host for storage plugins: loads a .so, gives it a host table, runs queues on the caller's thread, and notes
 * every breach of the ABI's rules that it sees. */
#ifndef PLUGIN_HARNESS_H
#define PLUGIN_HARNESS_H

#include <stdbool.h>
#include <stdint.h>

#include "xbb_plugin.h"

enum { HARNESS_MAX_IOV = 64 };
enum { HARNESS_FREE, HARNESS_OFFERED, HARNESS_DONE };

/* One request with its scratch memory and iovec. */
struct harness_request {
    struct xbb_req         req;         /* first: complete() finds the rest by it */
    struct iovec           iov[HARNESS_MAX_IOV];
    int32_t                status;      /* of the first completion */
    uint32_t               state;       /* HARNESS_* */
    uint32_t               completions;
    bool                   foreign;     /* completed by another thread than the queue's */
    uint64_t               order;       /* the how-many-th completion of its queue this was */
    struct harness_request *next;
};

struct harness_plugin;                  /* a loaded .so */
struct harness_disk;                    /* an open disk */
struct harness_queue;                   /* an open queue, run by the thread that opened it */

/* NULL with a message in `error` (256 bytes).  The table is checked for what a host must check. */
struct harness_plugin *harness_load(const char *path, const char *name, char *error);
const struct xbb_plugin *harness_table(const struct harness_plugin *plugin);

/* 0 or a negative errno; calls open() and start().  `values` has plugin->option_count entries. */
int harness_open(struct harness_plugin *plugin, int fd, uint32_t flags, const struct xbb_value *values,
                 struct harness_disk **disk, struct xbb_error *error);
/* The same for one of several formats. */
int harness_open_format(struct harness_plugin *plugin, int fd, uint32_t flags, const char *format,
                        const struct xbb_value *values, struct harness_disk **disk, struct xbb_error *error);
void harness_close(struct harness_disk *disk);
int harness_info(struct harness_disk *disk, struct xbb_info *info);
int harness_resize(struct harness_disk *disk, uint64_t size, struct xbb_error *error);
/* The value of a statistic, or UINT64_MAX. */
uint64_t harness_stat(struct harness_disk *disk, const char *name);
/* Notifications of kind XBB_NOTIFY_* so far. */
uint32_t harness_notified(struct harness_disk *disk, uint32_t what);
/* Breaches so far: completed twice, unknown request, positive status; lines of log text, newest last, in `text`. */
uint32_t harness_breaches(struct harness_disk *disk);
void harness_log(struct harness_disk *disk, char *text, uint64_t size);

/* Up to `room` extents as triples (offset, length, flags); the count, or a negative errno. */
int harness_extents(struct harness_disk *disk, uint64_t offset, uint64_t length, uint64_t *triples, int room);

int harness_queue_open(struct harness_disk *disk, uint32_t index, uint32_t depth, struct harness_queue **queue,
                       struct xbb_error *error);
/* The plugin's own pointer, for calls past the harness. */
void *harness_queue_pointer(struct harness_queue *queue);
void harness_queue_close(struct harness_queue *queue);

struct harness_request *harness_request_new(void);
void harness_request_free(struct harness_request *request);

/* Offers a batch; the accepted count.  Requests beyond it are HARNESS_FREE again. */
uint32_t harness_submit(struct harness_queue *queue, struct harness_request *const *requests, uint32_t count);
/* Runs the queue until at most `target` requests are in flight or the time is over; what is in flight then. */
uint32_t harness_run(struct harness_queue *queue, uint32_t target, int milliseconds, bool busy);
void harness_cancel(struct harness_queue *queue, struct harness_request *request);

/* Reads of 4 KiB at random places, `depth` in flight, for the time given; requests per second. */
double harness_measure(struct harness_queue *queue, uint32_t op, uint64_t size, uint32_t depth, int milliseconds);

#endif
