// SPDX-License-Identifier: BSD-2-Clause
// The services that a plugin may call, as small as they can be and suspicious.
#include "internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

uint64_t harness_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

void *harness_immortal(size_t size)
{
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    static uint8_t *place, *end;
    enum { CHUNK = 4 << 20 };
    size = (size + 63) & ~(size_t)63;
    pthread_mutex_lock(&lock);
    if (!place || (size_t)(end - place) < size) {
        place = mmap(NULL, CHUNK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (place == MAP_FAILED) abort();
        end = place + CHUNK;
    }
    void *result = place;
    place += size;
    pthread_mutex_unlock(&lock);
    return result;
}

static void (*report_breach)(const char *);
void harness_on_breach(void (*report)(const char *what)) { report_breach = report; }

void harness_breach(struct xbb_hdev *hdev, const char *format, ...)
{
    char text[256];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    pthread_mutex_lock(&hdev->lock);
    hdev->breaches++;
    pthread_mutex_unlock(&hdev->lock);
    if (report_breach) report_breach(text);
}

static bool is_closed(struct xbb_hdev *hdev, const char *call)
{
    if (hdev->phase != CLOSED) return false;
    harness_breach(hdev, "called host->%s() after close() had returned: stop and join what calls it before", call);
    return true;
}

// True on the queue's own thread while the queue is there; anything else is a breach.
static bool may_watch(struct xbb_hqueue *hq, const char *call)
{
    if (hq->phase == CLOSED)
        harness_breach(&hq->disk->hdev, "called host->%s() after queue_close() had returned", call);
    else if (hq->disk->plugin->flags & XBB_PLUGIN_BLOCKING)
        harness_breach(&hq->disk->hdev, "called host->%s() and is XBB_PLUGIN_BLOCKING, whose queues sleep in submit() and "
                       "serve no events", call);
    else if (!pthread_equal(pthread_self(), hq->thread))
        harness_breach(&hq->disk->hdev, "called host->%s() from another thread than the queue's: use host->post()", call);
    else return true;
    return false;
}

static bool log_aloud;
static const char *const level_names[] = {
    [XBB_LOG_ERROR] = "error", [XBB_LOG_WARN] = "warning", [XBB_LOG_INFO] = "info", [XBB_LOG_DEBUG] = "debug"};
void harness_log_aloud(void) { log_aloud = true; }

static void host_log(struct xbb_hdev *hdev, uint32_t level, const char *line)
{
    if (!hdev || is_closed(hdev, "log")) return;
    pthread_mutex_lock(&hdev->lock);
    int n = snprintf(hdev->log + hdev->log_used, LOG_SIZE - hdev->log_used, "%u %s\n", level, line);
    if (n > 0 && (size_t)n < LOG_SIZE - hdev->log_used) hdev->log_used += (size_t)n;
    pthread_mutex_unlock(&hdev->lock);
    if (log_aloud) dprintf(2, "%s: %s\n", level >= XBB_LOG_ERROR && level <= XBB_LOG_DEBUG ? level_names[level] : "log", line);
}

static void wake(struct xbb_hqueue *hq)
{
    uint64_t one = 1;
    harness_own_call();
    if (write(hq->wake, &one, sizeof one) < 0) abort();
}

static void host_complete(struct xbb_hqueue *hq, struct xbb_req *req, int32_t status)
{
    struct xbb_hdev *hdev = &hq->disk->hdev;
    if (hq->phase == CLOSED) {
        harness_breach(hdev, "called complete() after queue_close() had returned");
        return;
    }
    struct harness_request *request = harness_request_of(req);
    if (!request) {
        harness_breach(hdev, "called complete() with a request that the host never gave");
        return;
    }
    bool own = pthread_equal(pthread_self(), hq->thread);
    pthread_mutex_lock(&hq->lock);
    bool first = request->state == HARNESS_OFFERED && request->completions == 0;
    bool taken = request->state != HARNESS_FREE;
    const char *op = harness_op_name(request->shown.op);
    request->completions++;
    if (first) {
        if (request->guarded && memcmp(request->req, &request->shown, offsetof(struct xbb_req, ctx)) != 0)
            harness_breach(hdev, "changed the struct xbb_req of a %s: complete() returns it as it was given", op);
        harness_park(request);
        request->status = status;
        request->foreign = !own;
        request->order = hq->completed++;
        request->next = hq->done;
        hq->done = request;
    }
    if (!taken) harness_breach(hdev, "completed a %s that it had not accepted", op);
    else if (!first) harness_breach(hdev, "completed a %s twice: exactly once for each accepted request", op);
    else if (status > 0)
        harness_breach(hdev, "completed a %s with status %d: 0 or a negative errno is expected", op, status);
    /* Under the lock: once it is free, the queue's thread may see the request, close the queue and free it. */
    if (!own) wake(hq);
    pthread_mutex_unlock(&hq->lock);
}

static int host_watch_add(struct xbb_hqueue *hq, int fd, uint32_t events, xbb_fd_fn fn, void *arg,
                          struct xbb_watch **out)
{
    if (!may_watch(hq, "watch_add")) return -EINVAL;
    for (int i = 0; i < MAX_WATCHES; i++)
        if (!hq->watches[i].used) {
            hq->watches[i] = (struct xbb_watch){.hq = hq, .fd = fd, .events = events, .fn = fn, .arg = arg, .used = true};
            *out = &hq->watches[i];
            return 0;
        }
    return -ENOSPC;
}

static void host_watch_set(struct xbb_watch *w, uint32_t events) { if (may_watch(w->hq, "watch_set")) w->events = events; }
static void host_watch_del(struct xbb_watch *w) { if (may_watch(w->hq, "watch_del")) w->used = false; }

static int host_timer_add(struct xbb_hqueue *hq, xbb_fn fn, void *arg, struct xbb_timer **out)
{
    if (!may_watch(hq, "timer_add")) return -EINVAL;
    for (int i = 0; i < MAX_TIMERS; i++)
        if (!hq->timers[i].used) {
            hq->timers[i] = (struct xbb_timer){.hq = hq, .fn = fn, .arg = arg, .used = true};
            *out = &hq->timers[i];
            return 0;
        }
    return -ENOSPC;
}

static void host_timer_set(struct xbb_timer *t, uint64_t delay)
{
    if (may_watch(t->hq, "timer_set")) t->due = delay ? harness_now() + delay : 0;
}
static void host_timer_del(struct xbb_timer *t) { if (may_watch(t->hq, "timer_del")) t->used = false; }

static void host_post(struct xbb_hqueue *hq, xbb_fn fn, void *arg)
{
    if (hq->phase == CLOSED) {
        harness_breach(&hq->disk->hdev, "called host->post() after queue_close() had returned");
        return;
    }
    if (hq->disk->plugin->flags & XBB_PLUGIN_BLOCKING)
        harness_breach(&hq->disk->hdev, "called host->post() and is XBB_PLUGIN_BLOCKING, whose queues serve no events");
    pthread_mutex_lock(&hq->lock);
    // Used again, so that a plugin's allocations can be counted beside them.
    struct post *post = hq->spare;
    if (post) hq->spare = post->next;
    else post = harness_immortal(sizeof *post);
    *post = (struct post){.fn = fn, .arg = arg};
    post->next = hq->posts;
    hq->posts = post;
    wake(hq);
    pthread_mutex_unlock(&hq->lock);
}

static void host_notify(struct xbb_hdev *hdev, uint32_t what)
{
    if (is_closed(hdev, "notify")) return;
    if (what == 0 || what > XBB_NOTIFY_REOPEN) harness_breach(hdev, "called host->notify() with %u", what);
    pthread_mutex_lock(&hdev->lock);
    if (what < 8) hdev->notified[what]++;
    pthread_mutex_unlock(&hdev->lock);
}

static const void *host_extension(const char *id) { (void)id; return NULL; }
/* Files that images may name. They stay, as disks do. */
struct xbb_child { struct xbb_child *next; char name[1024]; int fd; void *dev; };
static struct xbb_child *children;
static pthread_mutex_t children_lock = PTHREAD_MUTEX_INITIALIZER;

void harness_offer_child(const char *name, int fd, struct harness_disk *disk)
{
    struct xbb_child *child = harness_immortal(sizeof *child);
    *child = (struct xbb_child){.fd = fd, .dev = disk ? disk->dev : NULL};
    snprintf(child->name, sizeof child->name, "%s", name);
    pthread_mutex_lock(&children_lock);
    child->next = children;
    children = child;
    pthread_mutex_unlock(&children_lock);
}

static int host_child_open(struct xbb_hdev *h, const struct xbb_ref *r, struct xbb_child **c, struct xbb_error *e)
{
    if (h->phase != OPENING) harness_breach(h, "called host->child_open() outside open()");
    pthread_mutex_lock(&children_lock);
    struct xbb_child *child = children;
    while (child && strcmp(child->name, r->name) != 0) child = child->next;
    pthread_mutex_unlock(&children_lock);
    *c = child;
    return child ? 0 : xbb_set_error(e, -EPERM, "this host opens no children");
}
static int host_child_fd(struct xbb_child *c) { return c->dev ? -1 : c->fd; }
static int host_child_info(struct xbb_child *c, struct xbb_info *i) { (void)c; (void)i; return -ENOSYS; }
static int host_child_submit(struct xbb_hqueue *h, struct xbb_child *c, struct xbb_req *r, xbb_child_fn f, void *a)
{
    (void)h; (void)c; (void)r; (void)f; (void)a;
    return -ENOSYS;
}

static void *host_child_device(struct xbb_child *c) { return c->dev; }

static int host_keep(struct xbb_hdev *h, uint32_t key, int fd)
{
    struct stat status;
    if (is_closed(h, "keep")) return -EINVAL;
    if (h->phase != OPENING) harness_breach(h, "called host->keep() outside open()");
    if (key >= HARNESS_KEYS) harness_breach(h, "called host->keep() with key %u: 0 to 31", key);
    if (fstat(fd, &status) != 0) harness_breach(h, "called host->keep() with a descriptor that is not open");
    else if (!S_ISSOCK(status.st_mode) && (!S_ISREG(status.st_mode) || fcntl(fd, F_GET_SEALS) < 0))
        harness_breach(h, "called host->keep() with what is neither a socket nor memory (memfd_create)");
    return key < HARNESS_KEYS ? harness_keep(key, fd) : -EINVAL;
}

static int host_kept(struct xbb_hdev *h, uint32_t key)
{
    if (is_closed(h, "kept")) return -EINVAL;
    if (h->phase != OPENING) harness_breach(h, "called host->kept() outside open()");
    if (key >= HARNESS_KEYS) harness_breach(h, "called host->kept() with key %u: 0 to 31", key);
    return key < HARNESS_KEYS ? harness_kept(key) : -ENOENT;
}

static const struct xbb_host host = {
    .struct_size = sizeof host, .abi_major = XBB_ABI_MAJOR, .abi_minor = XBB_ABI_MINOR,
    .log = host_log, .complete = host_complete,
    .watch_add = host_watch_add, .watch_set = host_watch_set, .watch_del = host_watch_del,
    .timer_add = host_timer_add, .timer_set = host_timer_set, .timer_del = host_timer_del,
    .post = host_post, .notify = host_notify, .extension = host_extension,
    .child_open = host_child_open, .child_fd = host_child_fd, .child_info = host_child_info,
    .child_submit = host_child_submit, .child_device = host_child_device,
    .keep = host_keep, .kept = host_kept,
};

const struct xbb_host *harness_host(void) { return &host; }
