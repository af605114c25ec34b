// SPDX-License-Identifier: BSD-2-Clause
// xbb-faulty: a raw disk in a file that is right in all but one thing. fault=NAME, or XBB_FAULT in the environment for
// what comes before open(), says which rule of the ABI it breaks; xbb-plugin-check must find it and name it.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <locale.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include "xbb_plugin.h"

enum { CTX_SIZE = 32, QUEUES = 4, HELD = 256 };

struct disk {
    int fd;
    struct xbb_hdev *hdev;
    uint64_t size;
    uint32_t flags;
    uint8_t *cache;                     // faults that forget have the whole disk here
    pthread_t thread;
    bool has_thread, closing;
    struct xbb_hqueue *last_queue;
    struct xbb_req *last_request;
};

struct queue {
    struct disk *disk;
    struct xbb_hqueue *hq;
    struct xbb_req *held[HELD];
    uint32_t count;
    int wake;
    struct xbb_watch *watch;
};

static const struct xbb_host *host;
static char fault[32];
static uint8_t bounce[1 << 20];
// A sector of the cache is written back whole, or not.
static pthread_mutex_t cache_lock = PTHREAD_MUTEX_INITIALIZER;
static unsigned requests_seen, probes;

static bool is(const char *name) { return strcmp(fault, name) == 0; }
static bool is_early(const char *name)
{
    const char *early = getenv("XBB_FAULT");
    return early && strcmp(early, name) == 0;
}

static void *sleep_long(void *disk)
{
    while (!((volatile struct disk *)disk)->closing) usleep(1000);
    return NULL;
}
static void *sleep_for_ever(void *nothing) { for (;;) pause(); return nothing; }
static void *log_late(void *hdev)
{
    usleep(20000);
    host->log(hdev, XBB_LOG_INFO, "still here");
    return NULL;
}
static void nothing(void *arg) { (void)arg; }
static void *add_timer(void *hq)
{
    struct xbb_timer *timer;
    host->timer_add(hq, nothing, NULL, &timer);
    return NULL;
}
static void detached(void *(*body)(void *), void *arg)
{
    pthread_t thread;
    if (pthread_create(&thread, NULL, body, arg) == 0) pthread_detach(thread);
}

static int load(const struct xbb_host *table)
{
    host = table;
    if (is_early("thread-in-load")) detached(sleep_for_ever, NULL);
    if (is_early("load-fails")) return -EPERM;
    return 0;
}

static int probe(const struct xbb_probe *p)
{
    static const char magic[] = "FAULTY DISK 1";
    if (strcmp(p->format, "raw") == 0) return 0;
    if (is_early("probe-changes-its-mind")) return (int)(probes++ % 3);
    if (is_early("probe-opens-files")) close(open("/dev/null", O_RDONLY));
    if (is_early("probe-reads-too-far")) return p->head[511] == 0x55 ? 50 : 0;
    if (is_early("probe-score")) return 101;
    if (is_early("probe-takes-all")) return 10;
    return p->head_len >= sizeof magic && memcmp(p->head, magic, sizeof magic) == 0 ? 90 : 0;
}

static int open_disk(const struct xbb_open *open, void **out, struct xbb_error *err)
{
    strncpy(fault, open->options[0].str, sizeof fault - 1);
    struct stat status;
    if (fstat(open->fd, &status) != 0) {
        if (is("no-message")) return -EBADF;
        if (is("positive-error")) return EBADF;
        return xbb_set_error(err, -EBADF, "the descriptor is not open");
    }
    if (status.st_size < 512) return xbb_set_error(err, -EINVAL, "the image is smaller than a sector");
    if (is("refuses-after-death") && status.st_mode & S_ISVTX)
        return xbb_set_error(err, -EUCLEAN, "the disk was not closed");
    struct disk *disk = calloc(1, sizeof *disk);
    if (!disk) return xbb_set_error(err, -ENOMEM, "no memory");
    disk->fd = open->fd, disk->hdev = open->hdev, disk->flags = open->flags;
    disk->size = (uint64_t)status.st_size & ~511ull;
    if (is("refuses-after-death")) fchmod(disk->fd, status.st_mode | S_ISVTX);
    if (is("forgets-flushed") || is("ignores-fua") || is("forgets-unflushed")) {
        disk->cache = aligned_alloc(4096, (disk->size + 4095) & ~4095ull);
        if (!disk->cache || pread(disk->fd, disk->cache, disk->size, 0) < 0) abort();
    }
    if (is("keeps-too-much")) {
        int pair = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        host->keep(disk->hdev, 32, pair);
        close(pair);
    }
    if (is("leaks-descriptors")) fcntl(disk->fd, F_DUPFD_CLOEXEC, 3);
    if (is("leaks-memory")) { volatile char *lost = malloc(100); (void)lost; }
    if (is("thread-in-open"))
        disk->has_thread = pthread_create(&disk->thread, NULL, sleep_long, disk) == 0;
    if (is("changes-directory") && chdir("/") != 0) abort();
    if (is("changes-locale")) setlocale(LC_ALL, "C.UTF-8");
    if (is("forks") && fork() == 0) { for (;;) pause(); }
    if (is("closes-the-report")) for (int fd = 3; fd < 300; fd++) if (fd != disk->fd) close(fd);
    *out = disk;
    return 0;
}

static int start(void *dev, struct xbb_error *err)
{
    (void)err;
    struct disk *disk = dev;
    if (is("changes-umask")) umask(0777);
    if (is("handles-signals")) signal(SIGUSR1, SIG_IGN);
    if (is("changes-limits")) setrlimit(RLIMIT_NOFILE, &(struct rlimit){512, 512});
    if (is("leaks-threads")) detached(sleep_for_ever, NULL);
    for (uint32_t level = 0; is("logs") && level <= XBB_LOG_DEBUG + 1; level++) {
        char line[] = "at level 0";
        line[sizeof line - 2] += (char)level;
        host->log(disk->hdev, level, line);
    }
    return 0;
}

static void write_back(struct disk *disk)
{
    if (!disk->cache || disk->flags & XBB_OPEN_RDONLY) return;
    pthread_mutex_lock(&cache_lock);
    if (pwrite(disk->fd, disk->cache, disk->size, 0) < 0) abort();
    pthread_mutex_unlock(&cache_lock);
}

static void close_disk(void *dev)
{
    struct disk *disk = dev;
    if (is("completes-after-close") && disk->last_request) host->complete(disk->last_queue, disk->last_request, 0);
    if (is("logs-after-close")) detached(log_late, disk->hdev);
    disk->closing = true;
    if (disk->has_thread) pthread_join(disk->thread, NULL);
    write_back(disk);
    if (is("refuses-after-death")) fchmod(disk->fd, 0600);
    free(disk->cache);
    if (is("closes-descriptor")) close(disk->fd);
    free(disk);
}

static int get_info(void *dev, struct xbb_info *info)
{
    struct disk *disk = dev;
    info->size = disk->size;
    if (is("size-too-large")) info->size += 1 << 20;
    if (is("size-odd")) info->size += 1;
    info->max_queues = QUEUES;
    info->max_iov = 64;
    if (disk->flags & XBB_OPEN_RDONLY && !is("writes-read-only")) return 0;
    info->caps = XBB_CAP_WRITE | XBB_CAP_FLUSH | XBB_CAP_FUA | XBB_CAP_DISCARD | XBB_CAP_DISCARD_ZEROES |
                 XBB_CAP_WRITE_ZEROES;
    return 0;
}

static ssize_t move(struct disk *disk, bool in, void *bytes, uint64_t length, uint64_t offset)
{
    if (offset + length > disk->size) { errno = EIO; return -1; }
    if (disk->cache) {
        pthread_mutex_lock(&cache_lock);
        if (in) memcpy(bytes, disk->cache + offset, length);
        else memcpy(disk->cache + offset, bytes, length);
        pthread_mutex_unlock(&cache_lock);
        return (ssize_t)length;
    }
    return in ? pread(disk->fd, bytes, length, (off_t)offset) : pwrite(disk->fd, bytes, length, (off_t)offset);
}

static int32_t clear(struct disk *disk, const struct xbb_req *req)
{
    static const uint8_t zeroes[4096];
    for (uint64_t done = 0; done < req->length; done += sizeof zeroes) {
        uint64_t part = req->length - done < sizeof zeroes ? req->length - done : sizeof zeroes;
        if (move(disk, false, (void *)zeroes, part, req->offset + done) < 0) return -EIO;
    }
    return 0;
}

static unsigned sum(const uint8_t *bytes, size_t length)
{
    unsigned total = 1;
    for (size_t i = 0; i < length; i++) total = total * 31 + ((const volatile uint8_t *)bytes)[i];
    return total;
}

// One segment of a write.
static ssize_t write_part(struct disk *disk, const struct iovec *v, uint64_t offset)
{
    if (is("reads-past-iov")) sum(v->iov_base, v->iov_len + 1);
    if (is("writes-short") && v->iov_len > 512) return move(disk, false, v->iov_base, v->iov_len - 512, offset) + 512;
    if (is("reads-twice")) {
        // Data whose checksum does not hold is thought to be broken.
        unsigned first = sum(v->iov_base, v->iov_len);
        ssize_t moved = move(disk, false, v->iov_base, v->iov_len, offset);
        if (sum(v->iov_base, v->iov_len) == first) return moved;
        memset(bounce, 0xee, v->iov_len);
        return move(disk, false, bounce, v->iov_len, offset);
    }
    if (is("shares-state")) {
        size_t length = v->iov_len < sizeof bounce ? v->iov_len : sizeof bounce;
        memcpy(bounce, v->iov_base, length);
        usleep(50);
        return move(disk, false, bounce, length, offset);
    }
    ssize_t moved = move(disk, false, v->iov_base, v->iov_len, offset);
    if (is("corrupts") && offset <= 12345 && offset + v->iov_len > 12345) {
        uint8_t wrong = (uint8_t)~((uint8_t *)v->iov_base)[12345 - offset];
        move(disk, false, &wrong, 1, 12345);
    }
    return moved;
}

// As one that appends to a log might do, and refuse what is in there already.
static bool is_known(struct disk *disk, const struct xbb_req *req)
{
    uint64_t offset = req->offset;
    for (uint32_t i = 0; i < req->iovcnt; offset += req->iov[i++].iov_len) {
        const struct iovec *v = &req->iov[i];
        if (v->iov_len > sizeof bounce || pread(disk->fd, bounce, v->iov_len, (off_t)offset) != (ssize_t)v->iov_len ||
            memcmp(bounce, v->iov_base, v->iov_len) != 0) return false;
    }
    return true;
}

static int32_t transfer(struct disk *disk, const struct xbb_req *req)
{
    if (is("writes-once") && req->op == XBB_OP_WRITE && is_known(disk, req)) return -EEXIST;
    uint64_t offset = req->offset;
    for (uint32_t i = 0; i < req->iovcnt; i++) {
        const struct iovec *v = &req->iov[i];
        ssize_t moved = req->op == XBB_OP_READ ? move(disk, true, v->iov_base, v->iov_len, offset)
                                               : write_part(disk, v, offset);
        if (moved != (ssize_t)v->iov_len) return -EIO;
        if (is("writes-past-iov") && req->op == XBB_OP_READ) ((uint8_t *)v->iov_base)[v->iov_len] = 0;
        offset += v->iov_len;
    }
    if (req->flags & XBB_REQ_FUA && !is("ignores-fua")) { write_back(disk); fdatasync(disk->fd); }
    return 0;
}

static int32_t perform(struct disk *disk, struct xbb_req *req)
{
    if (is("writes-iovec") && req->iovcnt) ((struct iovec *)req->iov)->iov_len -= 0;
    if (is("writes-request")) req->length -= 1;
    if (is("overruns-ctx")) memset(req->ctx, 0, CTX_SIZE + 1);
    switch (req->op) {
    case XBB_OP_READ: return req->flags ? -EINVAL : transfer(disk, req);
    case XBB_OP_WRITE: return req->flags & ~XBB_REQ_FUA ? -EINVAL : transfer(disk, req);
    case XBB_OP_FLUSH:
        if (is("hangs")) for (;;) usleep(1000);
        if (is("forgets-flushed")) return 0;
        write_back(disk);
        return fdatasync(disk->fd) == 0 ? 0 : -errno;
    case XBB_OP_DISCARD: return is("discards-nothing") ? 0 : clear(disk, req);
    case XBB_OP_WRITE_ZEROES: return is("zeroes-nothing") ? 0 : clear(disk, req);
    }
    return is("takes-unknown") ? 0 : -EOPNOTSUPP;
}

// Performs what was held back.
static void finish(void *q)
{
    struct queue *queue = q;
    for (uint32_t i = 0; i < queue->count; i++)
        host->complete(queue->hq, queue->held[i], perform(queue->disk, queue->held[i]));
    queue->count = 0;
}

static int queue_open(void *dev, struct xbb_hqueue *hq, const struct xbb_queue_params *params, void **out,
                      struct xbb_error *err)
{
    struct queue *queue = calloc(1, sizeof *queue);
    if (!queue) return xbb_set_error(err, -ENOMEM, "no memory");
    (void)params;
    queue->disk = dev, queue->hq = hq;
    if (is("leaves-watches")) host->watch_add(hq, queue->disk->fd, 0, NULL, NULL, &queue->watch);
    *out = queue;
    return 0;
}

static void queue_close(void *q) { free(q); }

static void one(struct queue *queue, struct xbb_req *req)
{
    struct disk *disk = queue->disk;
    unsigned turn = __atomic_add_fetch(&requests_seen, 1, __ATOMIC_RELAXED);
    if (is("loses-requests") && turn % 50 == 0) return;
    if (is("exits") && req->op == XBB_OP_WRITE) exit(0);
    if (is("crashes") && req->iovcnt > 10) *(volatile int *)8 = 1;
    if (is("keeps-later")) host->keep(queue->disk->hdev, 0, queue->disk->fd);
    if (is("socket-later") || is("socketpair-later")) {
        static int made[2] = {-1, -1};
        if (made[0] < 0 && is("socket-later")) made[0] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        else if (made[0] < 0 && socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, made) != 0) abort();
    }
    if (is("opens-later")) {
        static int kept = -1;
        if (kept < 0) kept = open("/etc/hostname", O_RDONLY | O_CLOEXEC);
    }
    if (is("wrong-thread")) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, add_timer, queue->hq) == 0) pthread_join(thread, NULL);
    }
    void *buffer = req->iovcnt ? req->iov[0].iov_base : NULL;
    int32_t status = perform(disk, req);
    if (is("positive-status") && status == 0) status = (int32_t)req->length;
    disk->last_queue = queue->hq, disk->last_request = req;
    host->complete(queue->hq, req, status);
    if (is("completes-twice")) host->complete(queue->hq, req, status);
    if (is("touches-buffer-late") && buffer) *(volatile char *)buffer = 0;
    if (is("touches-request-late") && req->op == 0) abort();
}

static uint32_t submit(void *q, struct xbb_req *const *reqs, uint32_t n)
{
    struct queue *queue = q;
    if (is("accepts-nothing")) return 0;
    if (is("drops-on-cancel") || is("holds")) {
        uint32_t i = 0;
        while (i < n && queue->count < HELD) queue->held[queue->count++] = reqs[i++];
        host->post(queue->hq, finish, queue);
        return i;
    }
    for (uint32_t i = 0; i < n; i++) one(queue, reqs[i]);
    if (is("accepts-too-many")) return n + 1;
    if (is("completes-unaccepted")) return n - 1;
    return n;
}

static void cancel(void *q, struct xbb_req *req)
{
    struct queue *queue = q;
    (void)req;
    if (is("drops-on-cancel")) queue->count = 0;
}

static const struct xbb_option options[] = {
    {.name = "fault", .help = "the rule that is broken", .def = "none", .type = XBB_OPT_STRING},
};

static const struct xbb_plugin faulty = {
    XBB_PLUGIN_HEADER, .name = "faulty", .version = "1.0", .description = "Breaks one rule of the ABI, for tests",
    .formats = (const char *const[]){"raw", "faulty", NULL}, .options = options, .option_count = 1,
    .thread_model = XBB_THREADS_QUEUE, .req_ctx_size = CTX_SIZE, .load = load,
    .probe = probe, .open = open_disk, .start = start, .close = close_disk, .get_info = get_info,
    .queue_open = queue_open, .queue_close = queue_close, .submit = submit, .cancel = cancel};

XBB_PLUGIN_EXPORT(faulty)
