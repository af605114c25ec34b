/* SPDX-License-Identifier: BSD-2-Clause
 * A small host for storage plugins: gives a plugin a host table, runs queues on the caller's thread, and notes every
 * breach of the ABI's rules that it sees. */
#ifndef PLUGIN_HARNESS_H
#define PLUGIN_HARNESS_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "xbb_plugin.h"

enum { HARNESS_MAX_IOV = 256 };
enum { HARNESS_FREE, HARNESS_OFFERED, HARNESS_DONE };

/* One request. What the plugin gets of it lies in pages of their own, its data between pages that nobody may touch. */
struct harness_request {
    struct xbb_req         *req;
    struct iovec           *iov;        /* HARNESS_MAX_IOV */
    int32_t                status;      /* of the first completion */
    uint32_t               state;       /* HARNESS_* */
    uint32_t               completions;
    bool                   foreign;     /* completed by another thread than the queue's */
    bool                   guarded;     /* the plugin's pages cannot be touched from complete() on */
    bool                   parked;      /* ... as they are now */
    uint64_t               order;       /* the how-many-th completion of its queue this was */
    struct harness_request *next;
    uint8_t                *data;       /* mapping with the segments and the pages between them */
    uint64_t               data_size;
    uint64_t               serial;      /* of this process, for messages */
    struct xbb_req         shown;       /* as it was offered */
};

struct harness_plugin;                  /* a loaded .so */
struct harness_disk;                    /* an open disk */
struct harness_queue;                   /* an open queue, run by the thread that opened it */

/* The table for load(). */
const struct xbb_host *harness_host(void);
/* A plugin by its checked table, of which load() was called; the table must stay. */
struct harness_plugin *harness_plugin(const struct xbb_plugin *table);

/* The plugin `name` from a file, for programs without the host's own loader; NULL with a message (256 bytes). */
struct harness_plugin *harness_load(const char *path, const char *name, char *error);
const struct xbb_plugin *harness_table(const struct harness_plugin *plugin);

/* Called with each breach beside counting it, on any thread; it may end the process. */
void harness_on_breach(void (*report)(const char *what));

/* 0 or a negative errno.  `values` has plugin->option_count entries; `format` NULL is the plugin's first one, `location` NULL none.
 * harness_open() calls open() and start(); harness_prepare() only open(), and harness_start() the rest. */
int harness_open(struct harness_plugin *plugin, int fd, uint32_t flags, const struct xbb_value *values,
                 struct harness_disk **disk, struct xbb_error *error);
int harness_prepare(struct harness_plugin *plugin, int fd, uint32_t flags, const struct xbb_value *values,
                    const char *format, const char *location, struct harness_disk **disk, struct xbb_error *error);
int harness_start(struct harness_disk *disk, struct xbb_error *error);
void harness_close(struct harness_disk *disk);
/* From now on what plugins keep, in this process and those that it forks, is there for harness_kept_files(), which makes it what
 * was kept for this process and those that it forks: how many files. 0 or a negative errno. */
int harness_keep_files(void);
int harness_kept_files(void);
/* From now on images may name a file so: the raw file at `fd`, or else the open disk of the same plugin. Both must stay. */
void harness_offer_child(const char *name, int fd, struct harness_disk *disk);
int harness_info(struct harness_disk *disk, struct xbb_info *info);
int harness_resize(struct harness_disk *disk, uint64_t size, struct xbb_error *error);
int harness_drain_begin(struct harness_disk *disk);
void harness_drain_end(struct harness_disk *disk);
/* The value of a statistic, or UINT64_MAX. */
uint64_t harness_stat(struct harness_disk *disk, const char *name);
/* Notifications of kind XBB_NOTIFY_* so far. */
uint32_t harness_notified(struct harness_disk *disk, uint32_t what);
/* Breaches so far: completed twice, unknown request, positive status; lines of log text, newest last, in `text`. */
uint32_t harness_breaches(struct harness_disk *disk);
/* From now on they are printed, too. */
void harness_log_aloud(void);
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
/* Gives the request segments of the lengths, each up against a page that nobody may touch. */
void harness_shape(struct harness_request *request, const uint32_t *lengths, uint32_t count);
/* Copies between the segments and `bytes`; the shape's length at most. */
void harness_put(struct harness_request *request, const void *bytes, uint64_t length);
void harness_fetch(struct harness_request *request, void *bytes, uint64_t length);
/* Makes the plugin's pages usable again; what harness_submit() and the two above do by themselves. */
void harness_unpark(struct harness_request *request);

/* Offers a batch of at most 256; the accepted count.  Requests beyond it are HARNESS_FREE again. */
uint32_t harness_submit(struct harness_queue *queue, struct harness_request *const *requests, uint32_t count);
/* Runs the queue until at most `target` requests are in flight or the time is over; what is in flight then. */
uint32_t harness_run(struct harness_queue *queue, uint32_t target, int milliseconds, bool busy);
void harness_cancel(struct harness_queue *queue, struct harness_request *request);

/* Reads of 4 KiB at random places, `depth` in flight, for the time given; requests per second. */
double harness_measure(struct harness_queue *queue, uint32_t op, uint64_t size, uint32_t depth, int milliseconds);
/* The same for a number of requests, without a system call of the harness that harness_own_calls() does not count. */
uint64_t harness_perform_many(struct harness_queue *queue, uint32_t op, uint64_t size, uint32_t depth, uint64_t count);
uint64_t harness_own_calls(void);

/* Asks probe() with copies that can be read and no more, between pages that nobody may touch.  The score. */
int harness_probe(struct harness_plugin *plugin, const void *head, uint64_t head_length, const void *tail,
                  uint64_t tail_length, uint64_t file_size, const char *format);
/* inspect() of `fd`; 0 or a negative errno, and what it said. */
int harness_inspect(struct harness_plugin *plugin, int fd, const struct xbb_value *values, const char *format,
                    struct xbb_image *image, struct xbb_error *error);
/* From now on only system calls for memory: another one is written to `report` as "fail TEXT\n" and ends the process.
 * False where the kernel does not let this be watched. */
bool harness_forbid_calls(int report);

/* A copy of this process whose end of a pipe is *progress, as the parent's is.  0 in the child, -1 and errno. */
int harness_fork(int *progress);
/* The same; the parent returns when the child has ended, with its exit status, and with the system calls that the child's
 * threads made between two harness_mark(). -1 where that cannot be watched. */
int harness_fork_counted(uint64_t *calls);
void harness_mark(void);

/* Changes every 64th byte of a request's buffers again and again, between these two, until harness_mutate_end(), which
 * says how often all of them were changed. */
enum { HARNESS_MUTATION_A = 0x11, HARNESS_MUTATION_B = 0x22 };
bool harness_mutate(struct harness_request *request);
uint64_t harness_mutate_end(void);

/* Lines "PROPERTY=VALUE" of what the process has one of and plugins must not change. */
void harness_process_state(char *text, uint64_t size);

/* Writes "fail TEXT\n" to `report` and ends the process where it would die of a fault: with what was touched. */
void harness_name_faults(int report);

#endif
