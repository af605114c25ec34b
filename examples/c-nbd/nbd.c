// SPDX-License-Identifier: BSD-2-Clause
// A disk behind an NBD server on a Unix socket, over one connection that the host's event loop watches: the small brother of XBB's own
// NBD plugin. submit() sends what the socket takes and returns; replies arrive in a callback; nobody sleeps and nothing is allocated.
//
// A connection that breaks is not made anew here: XBB_NOTIFY_REOPEN ends the process, and the next one opens the disk again, with the
// requests that had no answer. What the server still does for the old connection must not come after those. So the connection is kept
// for the next process (host->keep), which says that nothing follows, and reads to the end, before it connects: nbdkit ends what it took
// before it closes.
#define _GNU_SOURCE
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>
#include <xbb_plugin.h>

enum { DEPTH = 64, MOST_PARTS = 256 };
enum { HAS_FLUSH = 1 << 2, HAS_FUA = 1 << 3, HAS_TRIM = 1 << 5, IS_READ_ONLY = 1 << 1 };
struct disk { struct xbb_hdev *host_disk; int fd; uint16_t flags; uint64_t size, caps; };
struct __attribute__((packed)) header { uint32_t magic; uint16_t flags, command; uint64_t cookie, offset; uint32_t length; };
struct __attribute__((packed)) reply { uint32_t magic, error; uint64_t cookie; };
struct queue {
    struct disk *disk;
    struct xbb_hqueue *host_queue;
    struct xbb_watch *watch;
    struct xbb_req *pending[DEPTH];             // what the server has or will get; the place is the cookie
    struct header headers[DEPTH];
    uint8_t order[DEPTH];                       // places that are to be sent, the first of them in part
    uint32_t first, waiting;
    size_t sent;
    struct reply reply;                         // what comes next: a reply, then the data of `reading`
    size_t received;
    struct xbb_req *reading;
    int is_lost, waits_for_room;
};
static const struct xbb_host *host;

static int load(const struct xbb_host *table) { host = table; return 0; }

// ------------------------------------------------------------------ open(): with all rights, before the process is confined

// All that the process before had asked for is done when the server closes its connection.
static void settle(int fd) {
    char bytes[65536];
    shutdown(fd, SHUT_WR);
    fcntl(fd, F_SETFL, 0);
    while (read(fd, bytes, sizeof bytes) > 0) {}
}

static int open_disk(const struct xbb_open *open, void **out, struct xbb_error *err) {
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    const char *path = open->options[0].str;
    if (strlen(path) >= sizeof name.sun_path) return xbb_set_error(err, -ENAMETOOLONG, "the path of the socket is too long");
    strcpy(name.sun_path, path);
    int before = XBB_HAS(host, kept) ? host->kept(open->hdev, 0) : -1;      // the host's: it closes it when this returns
    if (before >= 0) settle(before);
    struct disk *disk = calloc(1, sizeof *disk);
    if (!disk) return xbb_set_error(err, -ENOMEM, "no memory for a disk");
    disk->host_disk = open->hdev;
    disk->caps = open->flags & XBB_OPEN_RDONLY ? 0 : XBB_CAP_WRITE;
    disk->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int code = disk->fd < 0 || connect(disk->fd, (struct sockaddr *)&name, sizeof name) < 0 ? -errno : 0;
    if (code == 0 && XBB_HAS(host, keep)) {
        code = host->keep(open->hdev, 0, disk->fd);
        if (code == -EOPNOTSUPP) code = 0;                                  // nobody would follow, such as in a checker
    }
    if (code < 0) {
        if (disk->fd >= 0) close(disk->fd);
        free(disk);
        return xbb_set_error(err, code, "cannot connect to the socket of the NBD server");
    }
    *out = disk;
    return 0;
}

// ------------------------------------------------------------------ start(): confined, and it may block

static int take(int fd, void *bytes, size_t count) {
    for (size_t done = 0; done < count;) {
        ssize_t n = read(fd, (char *)bytes + done, count - done);
        if (n <= 0) return n == 0 ? -ECONNRESET : -errno;
        done += (size_t)n;
    }
    return 0;
}

// The handshake: NBD_OPT_GO for the export without a name.
static int negotiate(struct disk *disk) {
    struct __attribute__((packed)) { uint64_t magic, options; uint16_t flags; } greeting;
    struct __attribute__((packed)) { uint32_t flags; uint64_t magic; uint32_t option, length, name_length; uint16_t count; } go = {
        htobe32(3), htobe64(0x49484156454F5054), htobe32(7), htobe32(6), 0, 0};
    struct __attribute__((packed)) { uint64_t magic; uint32_t option, type, length; } answer;
    struct __attribute__((packed)) { uint16_t kind; uint64_t size; uint16_t flags; char more[1024]; } info;
    int code = take(disk->fd, &greeting, sizeof greeting);
    if (code < 0) return code;
    if (be64toh(greeting.magic) != 0x4e42444d41474943 || (be16toh(greeting.flags) & 3) != 3) return -EPROTO;
    if (send(disk->fd, &go, sizeof go, MSG_NOSIGNAL) != sizeof go) return -ECONNRESET;
    for (;;) {
        if ((code = take(disk->fd, &answer, sizeof answer)) < 0) return code;
        uint32_t type = be32toh(answer.type), length = be32toh(answer.length);
        if (be64toh(answer.magic) != 0x0003e889045565a9 || length > sizeof info) return -EPROTO;
        if (length && (code = take(disk->fd, &info, length)) < 0) return code;
        if (type >> 31) return -EACCES;
        if (type == 1) return disk->size >= 512 ? 0 : -EINVAL;
        if (type == 3 && length == 12 && be16toh(info.kind) == 0)
            disk->size = be64toh(info.size) & ~(uint64_t)511 & INT64_MAX, disk->flags = be16toh(info.flags);
    }
}

static int start(void *dev, struct xbb_error *err) {
    struct disk *disk = dev;
    struct timeval limit = {.tv_sec = 10};
    setsockopt(disk->fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    int code = negotiate(disk);
    if (code == 0 && disk->caps && disk->flags & IS_READ_ONLY) code = -EROFS;
    if (code == 0 && fcntl(disk->fd, F_SETFL, O_NONBLOCK) < 0) code = -errno;
    if (code < 0) return xbb_set_error(err, code == -ECONNRESET || code == -EAGAIN ? -ENOTCONN : code, "the NBD server does not give the disk");
    if (disk->caps) {
        if (disk->flags & HAS_FLUSH) disk->caps |= XBB_CAP_FLUSH;
        if (disk->flags & HAS_FUA) disk->caps |= XBB_CAP_FUA;
        if (disk->flags & HAS_TRIM) disk->caps |= XBB_CAP_DISCARD;
    }
    return 0;
}

static void close_disk(void *dev) {
    struct disk *disk = dev;
    struct header farewell = {htobe32(0x25609513), 0, htobe16(2), 0, 0, 0};
    if (disk->size) send(disk->fd, &farewell, sizeof farewell, MSG_NOSIGNAL | MSG_DONTWAIT);
    shutdown(disk->fd, SHUT_RDWR);              // the host may have a copy of the descriptor
    close(disk->fd);
    free(disk);
}

static int get_info(void *dev, struct xbb_info *info) {
    const struct disk *disk = dev;
    info->size = disk->size ? disk->size : 512; // before start() nobody has asked; the host asks again after it
    info->caps = disk->caps;
    info->queue_depth = DEPTH, info->max_iov = MOST_PARTS, info->max_transfer = 1 << 20, info->max_discard = 1 << 30;
    return 0;
}

// ------------------------------------------------------------------ the queue

// The connection is of no use any more: the next process gets what has no answer.
static void lose(struct queue *queue, const char *why) {
    if (queue->is_lost) return;
    queue->is_lost = 1;
    host->watch_del(queue->watch);
    queue->watch = NULL;
    host->log(queue->disk->host_disk, XBB_LOG_ERROR, why);
    host->notify(queue->disk->host_disk, XBB_NOTIFY_REOPEN);
}

// `parts` without their first `skip` bytes, as many as there is room for; how many that are.
static int without(const struct iovec *parts, uint32_t count, size_t skip, struct iovec *room) {
    int n = 0;
    for (uint32_t i = 0; i < count; i++) {
        if (skip >= parts[i].iov_len) { skip -= parts[i].iov_len; continue; }
        room[n++] = (struct iovec){(char *)parts[i].iov_base + skip, parts[i].iov_len - skip};
        skip = 0;
    }
    return n;
}

static void send_some(struct queue *queue) {
    while (queue->waiting && !queue->is_lost) {
        struct iovec parts[1 + MOST_PARTS], rest[1 + MOST_PARTS];
        uint32_t place = queue->order[queue->first];
        const struct xbb_req *req = queue->pending[place];
        size_t whole = sizeof(struct header) + (req->op == XBB_OP_WRITE ? req->length : 0);
        uint32_t count = req->op == XBB_OP_WRITE ? req->iovcnt : 0;
        parts[0] = (struct iovec){&queue->headers[place], sizeof(struct header)};
        memcpy(parts + 1, req->iov, count * sizeof *parts);
        struct msghdr message = {.msg_iov = rest, .msg_iovlen = (size_t)without(parts, count + 1, queue->sent, rest)};
        ssize_t n = sendmsg(queue->disk->fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0 && errno != EAGAIN) return lose(queue, "the connection to the NBD server broke while it was sent to");
        if (n < 0) break;
        queue->sent += (size_t)n;
        if (queue->sent < whole) continue;
        queue->sent = 0, queue->first = (queue->first + 1) % DEPTH, queue->waiting--;
    }
    // Asked for only while there is something to send: a socket with room calls at once, again and again.
    if (!queue->is_lost && queue->waits_for_room != (queue->waiting > 0)) {
        queue->waits_for_room = queue->waiting > 0;
        host->watch_set(queue->watch, XBB_FD_READ | (queue->waits_for_room ? XBB_FD_WRITE : 0));
    }
}

static void finish(struct queue *queue, uint64_t place, int32_t status) {
    struct xbb_req *req = queue->pending[place];
    queue->pending[place] = NULL;
    host->complete(queue->host_queue, req, status);
}

// What the protocol knows are numbers of Linux; any other one is an I/O error.
static int32_t status_of(uint32_t error) {
    return error == 0 ? 0 : error == EPERM || error == ENOMEM || error == EINVAL || error == ENOSPC || error == EOPNOTSUPP
        ? -(int32_t)error : -EIO;
}

static void receive(struct queue *queue) {
    while (!queue->is_lost) {
        struct iovec rest[MOST_PARTS];
        struct xbb_req *req = queue->reading;
        int count = req ? without(req->iov, req->iovcnt, queue->received, rest) : 1;
        if (!req) rest[0] = (struct iovec){(char *)&queue->reply + queue->received, sizeof queue->reply - queue->received};
        ssize_t n = readv(queue->disk->fd, rest, count);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0 && errno == EAGAIN) return;
        if (n <= 0) return lose(queue, n == 0 ? "the NBD server closed the connection" : "the connection to the NBD server broke");
        queue->received += (size_t)n;
        if (queue->received < (req ? req->length : sizeof queue->reply)) continue;
        queue->received = 0;
        uint64_t place = be64toh(queue->reply.cookie);
        if (req) {
            queue->reading = NULL;
            finish(queue, place, 0);
            continue;
        }
        // The server may be broken, or not the one it should be: what it says is checked.
        if (be32toh(queue->reply.magic) != 0x67446698 || place >= DEPTH || !queue->pending[place])
            return lose(queue, "the NBD server answers what it was not asked");
        req = queue->pending[place];
        if (req->op == XBB_OP_READ && queue->reply.error == 0) queue->reading = req;
        else finish(queue, place, status_of(be32toh(queue->reply.error)));
    }
}

// Errors and hang-ups are told as READ and WRITE.
static void ready(void *q, int fd, uint32_t events) {
    (void)fd;
    if (events & XBB_FD_WRITE) send_some(q);
    if (events & XBB_FD_READ) receive(q);
}

static int queue_open(void *dev, struct xbb_hqueue *hq, const struct xbb_queue_params *params, void **out,
                      struct xbb_error *err) {
    struct queue *queue = calloc(1, sizeof *queue);
    (void)params;
    if (!queue) return xbb_set_error(err, -ENOMEM, "no memory for a queue");
    queue->disk = dev, queue->host_queue = hq;
    int code = host->watch_add(hq, queue->disk->fd, XBB_FD_READ, ready, queue, &queue->watch);
    if (code < 0) {
        free(queue);
        return xbb_set_error(err, code, "the socket cannot be watched");
    }
    *out = queue;
    return 0;
}

static void queue_close(void *q) {              // nothing is in flight, unless the connection is lost
    struct queue *queue = q;
    if (queue->watch) host->watch_del(queue->watch);
    free(queue);
}

static uint32_t submit(void *q, struct xbb_req *const *reqs, uint32_t n) {
    static const uint16_t commands[] = {[XBB_OP_READ] = 0, [XBB_OP_WRITE] = 1, [XBB_OP_FLUSH] = 3, [XBB_OP_DISCARD] = 4};
    struct queue *queue = q;
    uint32_t taken = 0, place = 0;
    for (; taken < n && !queue->is_lost; taken++) {
        struct xbb_req *req = reqs[taken];
        int may_force = req->op == XBB_OP_WRITE || req->op == XBB_OP_DISCARD;
        if (req->op < XBB_OP_READ || req->op > XBB_OP_DISCARD) { host->complete(queue->host_queue, req, -EOPNOTSUPP); continue; }
        if (req->flags & ~(may_force ? XBB_REQ_FUA : 0u)) { host->complete(queue->host_queue, req, -EINVAL); continue; }
        while (place < DEPTH && queue->pending[place]) place++;
        if (place == DEPTH) break;              // the rest is offered again
        queue->pending[place] = req;
        queue->headers[place] = (struct header){
            htobe32(0x25609513), htobe16(req->flags & XBB_REQ_FUA ? 1 : 0), htobe16(commands[req->op]), htobe64(place),
            htobe64(req->offset), htobe32((uint32_t)req->length)};
        queue->order[(queue->first + queue->waiting++) % DEPTH] = (uint8_t)place;
    }
    send_some(queue);
    return taken;
}

static const struct xbb_option options[] = {
    {.name = "socket", .help = "Unix socket of the NBD server", .type = XBB_OPT_STRING},
};
static const struct xbb_plugin nbd = {
    XBB_PLUGIN_HEADER, .name = "c-nbd", .version = "1", .description = "Disk of an NBD server on a Unix socket",
    .formats = (const char *const[]){"c-nbd", NULL}, .options = options, .option_count = 1,
    .flags = XBB_PLUGIN_NO_FD | XBB_PLUGIN_NETWORK, .thread_model = XBB_THREADS_QUEUE, .load = load, .open = open_disk,
    .start = start, .close = close_disk, .get_info = get_info, .queue_open = queue_open, .queue_close = queue_close,
    .submit = submit};
XBB_PLUGIN_EXPORT(nbd)
