/* SPDX-License-Identifier: BSD-2-Clause
 * What the harness's parts share. */
#ifndef PLUGIN_HARNESS_INTERNAL_H
#define PLUGIN_HARNESS_INTERNAL_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "harness.h"

#include <pthread.h>

enum { MAX_WATCHES = 8, MAX_TIMERS = 8, LOG_SIZE = 8192 };

struct harness_plugin { const struct xbb_plugin *table; };

enum phase { OPENING, OPEN, CLOSING, CLOSED };

struct xbb_hdev {
    pthread_mutex_t lock;
    uint32_t notified[8], breaches;
    _Atomic enum phase phase;
    char     log[LOG_SIZE];
    size_t   log_used;
};

/* Disks and queues are never freed: a plugin that breaks the rules may use them at any time. */
enum { HARNESS_KEYS = 32 };
/* 0 or a negative errno; an open file or -ENOENT. */
int harness_keep(uint32_t key, int fd);
int harness_kept(uint32_t key);

struct harness_disk {
    struct xbb_hdev hdev;
    const struct xbb_plugin *plugin;
    void *dev;
};

struct xbb_watch { struct xbb_hqueue *hq; int fd; uint32_t events; xbb_fd_fn fn; void *arg; bool used; };
struct xbb_timer { struct xbb_hqueue *hq; uint64_t due; xbb_fn fn; void *arg; bool used; };
struct post { struct post *next; xbb_fn fn; void *arg; };

struct xbb_hqueue {
    struct harness_disk *disk;
    void *q;
    pthread_t thread;
    int wake;
    uint32_t in_flight, depth;
    uint64_t completed;
    _Atomic enum phase phase;
    pthread_mutex_t lock;
    struct harness_request *done;       /* finished, newest first */
    struct post *posts, *spare;
    struct xbb_watch watches[MAX_WATCHES];
    struct xbb_timer timers[MAX_TIMERS];
};
struct harness_queue { struct xbb_hqueue hq; };

uint64_t harness_now(void);
void harness_breach(struct xbb_hdev *hdev, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Zeroed memory that stays. */
void *harness_immortal(size_t size);
/* Counts a system call that the harness is about to make. */
void harness_own_call(void);

/* The request that a plugin's pointer is of; NULL for what the host never gave. */
struct harness_request *harness_request_of(const struct xbb_req *req);
/* Takes the plugin's pages away. */
void harness_park(struct harness_request *request);
/* Scratch of the size up against a guard page, with nothing of before in it. */
void harness_scratch(struct harness_request *request, uint32_t size);
const char *harness_op_name(unsigned op);

#endif
