// SPDX-License-Identifier: BSD-2-Clause
// The host side of the plugin ABI, as small as it can be and suspicious.
#define _GNU_SOURCE
#include "harness.h"

#include <dlfcn.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

enum { MAX_WATCHES = 8, MAX_TIMERS = 8, LOG_SIZE = 8192 };

struct harness_plugin { const struct xbb_plugin *table; };

struct xbb_hdev {
    pthread_mutex_t lock;
    uint32_t notified[8], breaches;
    char     log[LOG_SIZE];
    size_t   log_used;
};

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
    pthread_mutex_t lock;
    struct harness_request *done;       /* finished, newest first */
    struct post *posts;
    struct xbb_watch watches[MAX_WATCHES];
    struct xbb_timer timers[MAX_TIMERS];
};
struct harness_queue { struct xbb_hqueue hq; };

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void breach(struct xbb_hdev *hdev)
{
    pthread_mutex_lock(&hdev->lock);
    hdev->breaches++;
    pthread_mutex_unlock(&hdev->lock);
}

/* ------------------------------------------------------------------ host services */

static void host_log(struct xbb_hdev *hdev, uint32_t level, const char *line)
{
    if (!hdev) return;
    pthread_mutex_lock(&hdev->lock);
    int n = snprintf(hdev->log + hdev->log_used, LOG_SIZE - hdev->log_used, "%u %s\n", level, line);
    if (n > 0 && (size_t)n < LOG_SIZE - hdev->log_used) hdev->log_used += (size_t)n;
    pthread_mutex_unlock(&hdev->lock);
}

static void wake(struct xbb_hqueue *hq)
{
    uint64_t one = 1;
    if (write(hq->wake, &one, sizeof one) < 0) abort();
}

static void host_complete(struct xbb_hqueue *hq, struct xbb_req *req, int32_t status)
{
    struct harness_request *request = (struct harness_request *)req;
    bool own = pthread_equal(pthread_self(), hq->thread);
    pthread_mutex_lock(&hq->lock);
    bool wrong = status > 0 || request->state != HARNESS_OFFERED || request->completions != 0;
    if (request->completions++ == 0 && request->state == HARNESS_OFFERED) {
        request->status = status;
        request->foreign = !own;
        request->order = hq->completed++;
        request->next = hq->done;
        hq->done = request;
    }
    if (wrong) breach(&hq->disk->hdev);
    /* Under the lock: once it is free, the queue's thread may see the request, close the queue and free it. */
    if (!own) wake(hq);
    pthread_mutex_unlock(&hq->lock);
}

static int host_watch_add(struct xbb_hqueue *hq, int fd, uint32_t events, xbb_fd_fn fn, void *arg,
                          struct xbb_watch **out)
{
    if (!pthread_equal(pthread_self(), hq->thread)) breach(&hq->disk->hdev);
    for (int i = 0; i < MAX_WATCHES; i++)
        if (!hq->watches[i].used) {
            hq->watches[i] = (struct xbb_watch){.hq = hq, .fd = fd, .events = events, .fn = fn, .arg = arg, .used = true};
            *out = &hq->watches[i];
            return 0;
        }
    return -ENOSPC;
}

static void host_watch_set(struct xbb_watch *w, uint32_t events) { w->events = events; }
static void host_watch_del(struct xbb_watch *w) { w->used = false; }

static int host_timer_add(struct xbb_hqueue *hq, xbb_fn fn, void *arg, struct xbb_timer **out)
{
    if (!pthread_equal(pthread_self(), hq->thread)) breach(&hq->disk->hdev);
    for (int i = 0; i < MAX_TIMERS; i++)
        if (!hq->timers[i].used) {
            hq->timers[i] = (struct xbb_timer){.hq = hq, .fn = fn, .arg = arg, .used = true};
            *out = &hq->timers[i];
            return 0;
        }
    return -ENOSPC;
}

static void host_timer_set(struct xbb_timer *t, uint64_t delay) { t->due = delay ? now_ns() + delay : 0; }
static void host_timer_del(struct xbb_timer *t) { t->used = false; }

static void host_post(struct xbb_hqueue *hq, xbb_fn fn, void *arg)
{
    struct post *post = malloc(sizeof *post);
    if (!post) abort();
    *post = (struct post){.fn = fn, .arg = arg};
    pthread_mutex_lock(&hq->lock);
    post->next = hq->posts;
    hq->posts = post;
    wake(hq);
    pthread_mutex_unlock(&hq->lock);
}

static void host_notify(struct xbb_hdev *hdev, uint32_t what)
{
    pthread_mutex_lock(&hdev->lock);
    if (what < 8) hdev->notified[what]++; else hdev->breaches++;
    pthread_mutex_unlock(&hdev->lock);
}

static const void *host_extension(const char *id) { (void)id; return NULL; }
static int host_child_open(struct xbb_hdev *h, const struct xbb_ref *r, struct xbb_child **c, struct xbb_error *e)
{
    (void)h; (void)r; (void)c;
    return xbb_set_error(e, -EPERM, "this host opens no children");
}
static int host_child_fd(struct xbb_child *c) { (void)c; return -1; }
static int host_child_info(struct xbb_child *c, struct xbb_info *i) { (void)c; (void)i; return -ENOSYS; }
static int host_child_submit(struct xbb_hqueue *h, struct xbb_child *c, struct xbb_req *r, xbb_child_fn f, void *a)
{
    (void)h; (void)c; (void)r; (void)f; (void)a;
    return -ENOSYS;
}

static const struct xbb_host host = {
    .struct_size = sizeof host, .abi_major = XBB_ABI_MAJOR, .abi_minor = XBB_ABI_MINOR,
    .log = host_log, .complete = host_complete,
    .watch_add = host_watch_add, .watch_set = host_watch_set, .watch_del = host_watch_del,
    .timer_add = host_timer_add, .timer_set = host_timer_set, .timer_del = host_timer_del,
    .post = host_post, .notify = host_notify, .extension = host_extension,
    .child_open = host_child_open, .child_fd = host_child_fd, .child_info = host_child_info,
    .child_submit = host_child_submit,
};

/* ------------------------------------------------------------------ loading */

static const char *table_fault(const struct xbb_plugin *p, const char *name)
{
    if (!p) return "no table";
    if (p->abi_major != XBB_ABI_MAJOR) return "another ABI major";
    if (p->struct_size < sizeof *p) return "a table shorter than that of 1.0";
    if (!p->name || strcmp(p->name, name)) return "the name is not that of the file";
    if (!p->version || !p->description || !p->formats || !p->formats[0]) return "a missing text";
    if (!p->open || !p->close || !p->get_info || !p->queue_open || !p->queue_close || !p->submit)
        return "a required function is missing";
    if (p->req_ctx_size > 4096) return "req_ctx_size above 4096";
    if (p->thread_model < XBB_THREADS_PROCESS) return "no thread model";
    for (uint32_t i = 0; i < p->option_count; i++) {
        const struct xbb_option *o = &p->options[i];
        if (!o->name || !o->help || o->flags || o->type < XBB_OPT_BOOL || o->type > XBB_OPT_SECRET) return "a bad option";
        if (o->type == XBB_OPT_ENUM && (!o->choices || !o->choices[0])) return "an ENUM without choices";
    }
    return NULL;
}

struct harness_plugin *harness_load(const char *path, const char *name, char *error)
{
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
    if (!library) { snprintf(error, 256, "%s", dlerror()); return NULL; }
    const struct xbb_plugin *(*entry)(void);
    *(void **)&entry = dlsym(library, XBB_PLUGIN_ENTRY);
    const struct xbb_plugin *table = entry ? entry() : NULL;
    const char *fault = entry ? table_fault(table, name) : "no entry point";
    if (!fault && entry() != table) fault = "another table at the second call";
    if (!fault && table->load && table->load(&host) != 0) fault = "load() failed";
    struct harness_plugin *plugin = fault ? NULL : malloc(sizeof *plugin);
    if (!plugin) { snprintf(error, 256, "%s", fault ? fault : "no memory"); return NULL; }
    plugin->table = table;
    return plugin;
}

const struct xbb_plugin *harness_table(const struct harness_plugin *plugin) { return plugin->table; }

/* ------------------------------------------------------------------ disks */

int harness_open(struct harness_plugin *plugin, int fd, uint32_t flags, const struct xbb_value *values,
                 struct harness_disk **out, struct xbb_error *error)
{
    return harness_open_format(plugin, fd, flags, plugin->table->formats[0], values, out, error);
}

int harness_open_format(struct harness_plugin *plugin, int fd, uint32_t flags, const char *format,
                        const struct xbb_value *values, struct harness_disk **out, struct xbb_error *error)
{
    struct harness_disk *disk = calloc(1, sizeof *disk);
    if (!disk) return -ENOMEM;
    disk->plugin = plugin->table;
    pthread_mutex_init(&disk->hdev.lock, NULL);
    struct xbb_open o = {
        .struct_size = sizeof o, .flags = flags, .hdev = &disk->hdev, .fd = fd,
        .option_count = plugin->table->option_count, .options = values, .format = format,
        .label = "disk under test",
    };
    int status = disk->plugin->open(&o, &disk->dev, error);
    if (status == 0 && disk->plugin->start && (status = disk->plugin->start(disk->dev, error)) != 0)
        disk->plugin->close(disk->dev);
    if (status != 0) { free(disk); return status; }
    *out = disk;
    return 0;
}

void harness_close(struct harness_disk *disk)
{
    disk->plugin->close(disk->dev);
    pthread_mutex_destroy(&disk->hdev.lock);
    free(disk);
}

int harness_info(struct harness_disk *disk, struct xbb_info *info)
{
    memset(info, 0, sizeof *info);
    info->struct_size = sizeof *info;
    return disk->plugin->get_info(disk->dev, info);
}

int harness_resize(struct harness_disk *disk, uint64_t size, struct xbb_error *error)
{
    return XBB_CAN(disk->plugin, resize) ? disk->plugin->resize(disk->dev, size, error) : -ENOSYS;
}

struct wanted { const char *name; uint64_t value; };
static void take_stat(void *arg, const char *name, uint64_t value)
{
    struct wanted *wanted = arg;
    if (!strcmp(name, wanted->name)) wanted->value = value;
}

uint64_t harness_stat(struct harness_disk *disk, const char *name)
{
    struct wanted wanted = {name, UINT64_MAX};
    if (XBB_CAN(disk->plugin, stats)) disk->plugin->stats(disk->dev, take_stat, &wanted);
    return wanted.value;
}

uint32_t harness_notified(struct harness_disk *disk, uint32_t what)
{
    pthread_mutex_lock(&disk->hdev.lock);
    uint32_t count = what < 8 ? disk->hdev.notified[what] : 0;
    pthread_mutex_unlock(&disk->hdev.lock);
    return count;
}

uint32_t harness_breaches(struct harness_disk *disk)
{
    pthread_mutex_lock(&disk->hdev.lock);
    uint32_t count = disk->hdev.breaches;
    pthread_mutex_unlock(&disk->hdev.lock);
    return count;
}

void harness_log(struct harness_disk *disk, char *text, uint64_t size)
{
    pthread_mutex_lock(&disk->hdev.lock);
    snprintf(text, size, "%s", disk->hdev.log);
    pthread_mutex_unlock(&disk->hdev.lock);
}

struct extents { uint64_t *triples; int room, count; };
static int take_extent(void *arg, uint64_t offset, uint64_t length, uint32_t flags)
{
    struct extents *e = arg;
    if (e->count == e->room) return 1;
    uint64_t *triple = e->triples + 3 * e->count++;
    triple[0] = offset, triple[1] = length, triple[2] = flags;
    return 0;
}

int harness_extents(struct harness_disk *disk, uint64_t offset, uint64_t length, uint64_t *triples, int room)
{
    struct extents e = {triples, room, 0};
    if (!XBB_CAN(disk->plugin, extents)) return -ENOSYS;
    int status = disk->plugin->extents(disk->dev, offset, length, take_extent, &e, NULL);
    return status < 0 ? status : e.count;
}

/* ------------------------------------------------------------------ queues */

int harness_queue_open(struct harness_disk *disk, uint32_t index, uint32_t depth, struct harness_queue **out,
                       struct xbb_error *error)
{
    struct harness_queue *queue = calloc(1, sizeof *queue);
    if (!queue) return -ENOMEM;
    struct xbb_hqueue *hq = &queue->hq;
    hq->disk = disk;
    hq->thread = pthread_self();
    hq->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    hq->depth = depth;
    pthread_mutex_init(&hq->lock, NULL);
    struct xbb_queue_params params = {.struct_size = sizeof params, .index = index, .depth = depth};
    int status = disk->plugin->queue_open(disk->dev, hq, &params, &hq->q, error);
    if (status != 0) { close(hq->wake); free(queue); return status; }
    *out = queue;
    return 0;
}

void *harness_queue_pointer(struct harness_queue *queue) { return queue->hq.q; }

void harness_queue_close(struct harness_queue *queue)
{
    struct xbb_hqueue *hq = &queue->hq;
    if (hq->in_flight) breach(&hq->disk->hdev);
    hq->disk->plugin->queue_close(hq->q);
    for (int i = 0; i < MAX_WATCHES; i++) if (hq->watches[i].used) breach(&hq->disk->hdev);
    for (int i = 0; i < MAX_TIMERS; i++) if (hq->timers[i].used) breach(&hq->disk->hdev);
    close(hq->wake);
    pthread_mutex_destroy(&hq->lock);
    free(queue);
}

struct harness_request *harness_request_new(void)
{
    struct harness_request *request = calloc(1, sizeof *request);
    void *ctx = NULL;
    if (!request || posix_memalign(&ctx, 16, 4096) != 0) abort();
    memset(ctx, 0xa5, 4096);
    request->req.ctx = ctx;
    request->req.iov = request->iov;
    return request;
}

void harness_request_free(struct harness_request *request)
{
    free(request->req.ctx);
    free(request);
}

static void take_done(struct xbb_hqueue *hq)
{
    pthread_mutex_lock(&hq->lock);
    struct harness_request *done = hq->done;
    hq->done = NULL;
    pthread_mutex_unlock(&hq->lock);
    for (; done; done = done->next) {
        done->state = HARNESS_DONE;
        hq->in_flight--;
    }
}

uint32_t harness_submit(struct harness_queue *queue, struct harness_request *const *requests, uint32_t count)
{
    struct xbb_hqueue *hq = &queue->hq;
    struct xbb_req *reqs[256];
    if (count > 256) count = 256;
    for (uint32_t i = 0; i < count; i++) {
        requests[i]->state = HARNESS_OFFERED;
        requests[i]->completions = 0;
        requests[i]->status = 1;
        reqs[i] = &requests[i]->req;
    }
    hq->in_flight += count;
    uint32_t accepted = hq->disk->plugin->submit(hq->q, reqs, count);
    if (accepted > count) { breach(&hq->disk->hdev); accepted = count; }
    pthread_mutex_lock(&hq->lock);
    for (uint32_t i = accepted; i < count; i++) {
        if (requests[i]->completions) { /* completed, but not accepted */
            pthread_mutex_unlock(&hq->lock);
            breach(&hq->disk->hdev);
            pthread_mutex_lock(&hq->lock);
            continue;
        }
        requests[i]->state = HARNESS_FREE;
        hq->in_flight--;
    }
    pthread_mutex_unlock(&hq->lock);
    take_done(hq);
    return accepted;
}

static void run_posts(struct xbb_hqueue *hq)
{
    pthread_mutex_lock(&hq->lock);
    struct post *posts = hq->posts, *first = NULL;
    hq->posts = NULL;
    pthread_mutex_unlock(&hq->lock);
    while (posts) { struct post *next = posts->next; posts->next = first; first = posts; posts = next; }
    while (first) {
        struct post *next = first->next;
        first->fn(first->arg);
        free(first);
        first = next;
    }
}

uint32_t harness_run(struct harness_queue *queue, uint32_t target, int milliseconds, bool busy)
{
    struct xbb_hqueue *hq = &queue->hq;
    uint64_t end = now_ns() + (uint64_t)milliseconds * 1000000u;
    for (;;) {
        if (XBB_CAN(hq->disk->plugin, poll)) hq->disk->plugin->poll(hq->q);
        take_done(hq);
        uint64_t now = now_ns();
        if ((target != UINT32_MAX && hq->in_flight <= target) || now >= end) return hq->in_flight;

        struct pollfd fds[MAX_WATCHES + 1];
        struct xbb_watch *watched[MAX_WATCHES + 1];
        nfds_t count = 0;
        uint64_t due = end;
        for (int i = 0; i < MAX_TIMERS; i++)
            if (hq->timers[i].used && hq->timers[i].due && hq->timers[i].due < due) due = hq->timers[i].due;
        for (int i = 0; i < MAX_WATCHES; i++)
            if (hq->watches[i].used && hq->watches[i].events) {
                fds[count] = (struct pollfd){.fd = hq->watches[i].fd, .events =
                    (short)((hq->watches[i].events & XBB_FD_READ ? POLLIN : 0) | (hq->watches[i].events & XBB_FD_WRITE ? POLLOUT : 0))};
                watched[count++] = &hq->watches[i];
            }
        fds[count] = (struct pollfd){.fd = hq->wake, .events = POLLIN};
        uint64_t wait = due > now && !busy ? due - now : 0;
        struct timespec timeout = {.tv_sec = (time_t)(wait / 1000000000u), .tv_nsec = (long)(wait % 1000000000u)};
        ppoll(fds, count + 1, &timeout, NULL);

        uint64_t drained;
        if (fds[count].revents && read(hq->wake, &drained, sizeof drained) < 0 && errno != EAGAIN) abort();
        for (nfds_t i = 0; i < count; i++)
            if (fds[i].revents && watched[i]->used) watched[i]->fn(watched[i]->arg, watched[i]->fd, XBB_FD_READ);
        now = now_ns();
        for (int i = 0; i < MAX_TIMERS; i++)
            if (hq->timers[i].used && hq->timers[i].due && hq->timers[i].due <= now) {
                hq->timers[i].due = 0;
                hq->timers[i].fn(hq->timers[i].arg);
            }
        run_posts(hq);
    }
}

void harness_cancel(struct harness_queue *queue, struct harness_request *request)
{
    struct xbb_hqueue *hq = &queue->hq;
    if (XBB_CAN(hq->disk->plugin, cancel)) hq->disk->plugin->cancel(hq->q, request ? &request->req : NULL);
}

double harness_measure(struct harness_queue *queue, uint32_t op, uint64_t size, uint32_t depth, int milliseconds)
{
    struct harness_request *requests[256], *batch[256];
    uint64_t finished = 0, seed = 88172645463325252u, start = now_ns();
    if (depth > 256) depth = 256;
    char *memory = aligned_alloc(4096, (size_t)depth * 4096);
    if (!memory) return 0;
    memset(memory, 0x5a, (size_t)depth * 4096);
    for (uint32_t i = 0; i < depth; i++) {
        requests[i] = harness_request_new();
        requests[i]->iov[0] = (struct iovec){memory + (size_t)i * 4096, 4096};
        requests[i]->req.iovcnt = 1;
        requests[i]->req.length = 4096;
        requests[i]->req.op = (uint8_t)op;
    }
    while (now_ns() - start < (uint64_t)milliseconds * 1000000u) {
        uint32_t ready = 0;
        for (uint32_t i = 0; i < depth; i++) {
            if (requests[i]->state == HARNESS_OFFERED) continue;
            if (requests[i]->state == HARNESS_DONE) finished++;
            requests[i]->state = HARNESS_FREE;
            seed ^= seed << 13, seed ^= seed >> 7, seed ^= seed << 17;
            requests[i]->req.offset = seed % (size / 4096) * 4096;
            batch[ready++] = requests[i];
        }
        if (ready) harness_submit(queue, batch, ready);
        if (queue->hq.in_flight) harness_run(queue, queue->hq.in_flight - 1, 1000, false);
    }
    harness_run(queue, 0, 10000, false);
    double seconds = (double)(now_ns() - start) / 1e9;
    for (uint32_t i = 0; i < depth; i++) harness_request_free(requests[i]);
    free(memory);
    return (double)finished / seconds;
}
