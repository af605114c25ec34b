/* SPDX-License-Identifier: BSD-2-Clause
 *
 * xbb_plugin.h - storage plugin ABI of the Xen block backend host, major version 1.
 *
 * What is said here is the contract; docs/plugin-abi.md says the rest of it at length: phases, threads, what is called
 * when, what recovery asks of a plugin.  Numbers, fields and meanings are frozen (scripts/abi-check.sh).
 *
 * CONTRACT IN TEN RULES
 *  1. A plugin is one ELF shared object named xbb-<name>.so.  It exports exactly one symbol,
 *     xbb_plugin_v1(), and imports nothing from the host: link with -Wl,-z,defs.  Everything it may
 *     call is in struct xbb_host.  The same .so is loaded by the host, by its sandboxed workers and by
 *     the conformance tool.
 *  2. Every struct that can grow starts with struct_size, set by whoever fills it in.  Fields are only
 *     ever added at the end.  A reader must not touch a field that XBB_HAS() says is absent.
 *     struct xbb_req is the exception: it is exactly 64 bytes for the life of major version 1.
 *  3. Nothing is freed across the boundary.  Strings are UTF-8, NUL-terminated and borrowed: valid until
 *     the call returns, unless a comment says longer.
 *  4. Errors are negative errno values.  Control calls also fill struct xbb_error (caller's memory).
 *     The C variable errno is never looked at.
 *  5. One queue = one thread.  submit(), poll(), fd and timer callbacks and posted functions of a queue
 *     run on that queue's thread and never overlap.  Different queues run in parallel unless
 *     thread_model says otherwise.
 *  6. host->complete() may be called from any thread, also inside submit().  Exactly once per accepted
 *     request.  The host never calls back into the plugin from inside complete().
 *  7. A request, its iovec array and its buffers belong to the plugin from acceptance until complete().
 *     No timeout, cancel or shutdown takes them back earlier.
 *  8. Buffers can be memory that the guest is changing right now.  Look at each byte once, or set
 *     XBB_CAP_STABLE_BUFFERS and get private copies.
 *  9. The plugin opens nothing after open() returned, and never a name found inside an image: that goes
 *     to host->child_open().  It forks nothing, installs no signal handler, never calls exit(), and
 *     changes no process-wide state (cwd, umask, locale, rlimits).
 * 10. No C++ exception, Rust panic or Swift trap may leave a callback.
 */
#ifndef XBB_PLUGIN_H
#define XBB_PLUGIN_H

#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>                        /* struct iovec */

#ifdef __cplusplus
extern "C" {
#endif

#define XBB_ABI_MAJOR 1u
#define XBB_ABI_MINOR 3u

/* True if `field` exists in the version of *p that its producer was compiled with. */
#define XBB_HAS(p, field) \
    ((p)->struct_size >= offsetof(__typeof__(*(p)), field) + sizeof((p)->field))

/* Opaque objects owned by the host. */
struct xbb_hdev;                            /* one open disk */
struct xbb_hqueue;                          /* one submission queue of a disk, bound to one thread */
struct xbb_watch;                           /* one watched file descriptor */
struct xbb_timer;                           /* one timer */
struct xbb_child;                           /* backing or data file opened by the host */

/* Error out-parameter: never NULL, zeroed by the caller.  The callee may leave it untouched.  What a control call
 * returns is what counts: 0, or a negative errno; anything else is taken for -EIO. */
struct xbb_error {
    int32_t  code;                          /* negative errno */
    uint32_t reserved;
    char     message[248];                  /* for the operator; not parsed by anyone */
};

/* ---------------------------------------------------------------- requests (the hot path) */

enum {                                      /* xbb_req.op */
    XBB_OP_READ         = 1,
    XBB_OP_WRITE        = 2,                /* needs XBB_CAP_WRITE.  A completed one survives the death of
                                               this process, also before a flush; one that was in flight
                                               then may be there, in part, or not, and may come again */
    XBB_OP_FLUSH        = 3,                /* needs XBB_CAP_FLUSH; offset = length = iovcnt = 0.  Covers
                                               every write of the whole disk, on any queue, that was
                                               completed before this flush was submitted; none in flight */
    XBB_OP_DISCARD      = 4,                /* needs XBB_CAP_DISCARD; no iov */
    XBB_OP_WRITE_ZEROES = 5,                /* needs XBB_CAP_WRITE_ZEROES; no iov */
};

enum {                                      /* xbb_req.flags: must be honoured.  A bit is only ever set */
    XBB_REQ_FUA         = 1u << 0,          /*   if the matching capability was declared.              */
                                            /* FUA: WRITE, WRITE_ZEROES, DISCARD: durable before complete();
                                               this request only, no other one */
    XBB_REQ_SECURE      = 1u << 1,          /* DISCARD: erase (XBB_CAP_DISCARD_SECURE) */
    XBB_REQ_MAY_UNMAP   = 1u << 2,          /* WRITE_ZEROES: may deallocate */
    XBB_REQ_NO_FALLBACK = 1u << 3,          /* WRITE_ZEROES: fail with -EOPNOTSUPP rather than write */
};

/* One validated request.  The host guarantees: op allowed by xbb_info.caps; offset + length <= size;
 * offset, length multiples of logical_block; length > 0 except FLUSH; length <= max_transfer (or
 * max_discard / max_write_zeroes); iovcnt <= max_iov; sum of iov_len == length; every iov_base and
 * iov_len a multiple of mem_align; reserved fields and hints are 0.  Requests in flight together have no order,
 * overlapping or not.  Guest barriers never arrive here: the host drains, flushes, then writes with FUA.
 * Until complete() the plugin may change offset, length, iov and iovcnt of a request that it accepts (to keep account
 * of a part that is done); nothing else, and not the iovecs.
 * After the worker was killed, another one may be given requests again that were accepted before: see WRITE below. */
struct xbb_req {
    uint64_t            offset;             /* bytes, never sectors */
    uint64_t            length;             /* bytes */
    const struct iovec *iov;                /* may be handed to preadv2()/io_uring as is; without meaning
                                               when iovcnt is 0 */
    uint32_t            iovcnt;
    uint16_t            flags;              /* XBB_REQ_*: must be honoured */
    uint8_t             op;                 /* XBB_OP_* */
    uint8_t             reserved0;
    void               *ctx;                /* req_ctx_size bytes of scratch for the plugin, 16-byte
                                               aligned, contents undefined at submit(); the host's again
                                               after complete().  NULL where req_ctx_size is 0 */
    uint32_t            hints;              /* advisory bits, may be ignored; none defined yet */
    uint32_t            reserved1;
    uint64_t            reserved2[2];
};

/* ---------------------------------------------------------------- device description */

#define XBB_CAP_WRITE           (1ull << 0)
#define XBB_CAP_FLUSH           (1ull << 1) /* has a cache that a loss of power empties (not the end of this
                                               process: rule of WRITE).  Without this bit every
                                               completed write must already be durable */
#define XBB_CAP_FUA             (1ull << 2) /* else the host emulates FUA with write + flush */
#define XBB_CAP_DISCARD         (1ull << 3)
#define XBB_CAP_DISCARD_SECURE  (1ull << 4)
#define XBB_CAP_DISCARD_ZEROES  (1ull << 5) /* discarded blocks read back as zeroes */
#define XBB_CAP_WRITE_ZEROES    (1ull << 6) /* else zeroes are written as data */
#define XBB_CAP_STABLE_BUFFERS  (1ull << 7) /* plugin reads write buffers twice (checksum, compress,
                                               encrypt): host hands over private copies */
#define XBB_CAP_NEEDS_MEM_MAP   (1ull << 8) /* buffers must lie in regions given to mem_map() */
#define XBB_CAP_ROTATIONAL      (1ull << 9)

struct xbb_info {                           /* filled in by get_info(); host zeroes it first */
    uint32_t struct_size;                   /* IN: size of the host's struct */
    uint32_t reserved0;
    uint64_t caps;                          /* XBB_CAP_* */
    uint64_t size;                          /* bytes, multiple of logical_block */
    uint32_t logical_block;                 /* 512 to 4096, a power of two; 0 means 512 */
    uint32_t physical_block;                /* 0 means logical_block */
    uint32_t optimal_io;                    /* bytes; 0 unknown */
    uint32_t mem_align;                     /* buffer address and length, a power of two up to 4096; 0 means
                                               1.  More than logical_block raises the disk's blocks to it */
    uint64_t max_transfer;                  /* bytes per read/write; 0 no limit; host splits */
    uint32_t max_iov;                       /* 0 no limit; host splits or bounces */
    uint32_t max_queues;                    /* 0 means 1 */
    uint32_t queue_depth;                   /* requests in flight per queue; 0 no limit */
    uint32_t discard_granularity;           /* 0 means logical_block.  For the guest to know: discards need
                                               not be aligned to it */
    uint32_t discard_offset;                /* first discardable byte, modulo granularity */
    uint32_t reserved1;
    uint64_t max_discard;                   /* bytes; 0 no limit */
    uint64_t max_write_zeroes;              /* bytes; 0 no limit */
};

/* ---------------------------------------------------------------- options */

enum {                                      /* xbb_option.type */
    XBB_OPT_BOOL = 1, XBB_OPT_UINT = 2, XBB_OPT_SIZE = 3 /* "64K" */, XBB_OPT_STRING = 4,
    XBB_OPT_ENUM = 5, XBB_OPT_SECRET = 6 /* string, never logged or shown */,
};

struct xbb_option {                         /* the schema; static const in the plugin; stride is fixed */
    const char        *name;                /* [a-z][a-z0-9-]* */
    const char        *help;                /* one line */
    const char        *def;                 /* default in text form; NULL: required */
    const char *const *choices;             /* ENUM: NULL-terminated list */
    uint64_t           min, max;            /* UINT, SIZE; no upper bound where max <= min */
    uint32_t           type;                /* XBB_OPT_* */
    uint32_t           flags;               /* must be 0 */
    uint64_t           reserved;
};

struct xbb_value {                          /* host parsed and checked it; index = index in options[] */
    uint64_t    num;                        /* BOOL 0/1, UINT, SIZE, ENUM: index in choices */
    const char *str;                        /* STRING, SECRET, ENUM; valid until close() returns */
};

/* ---------------------------------------------------------------- open, probe, inspect */

#define XBB_OPEN_RDONLY   (1u << 0)
#define XBB_OPEN_DIRECT   (1u << 1)         /* fd was opened with O_DIRECT */
#define XBB_OPEN_BACKING  (1u << 2)         /* this is a lower layer of a chain: always with RDONLY.  Within open() of the
                                               disk above it come open() and get_info(); its start() comes before the
                                               start() of that disk, its close() after the close() of that disk.  It
                                               has queues if the plugin is XBB_PLUGIN_BLOCKING, else none: the same
                                               plugin reads it, see child_device() */
#define XBB_OPEN_SUCCESSOR (1u << 3)        /* since 1.1.  fd is the open file of the process that served the disk before:
                                               locks that belong to the open file (F_OFD_SETLK) have been held all the
                                               time, so nobody else's lock is a reason to refuse.  Since 1.2 also with
                                               XBB_PLUGIN_NO_FD: a guest has the disk and waits.  Where the storage
                                               cannot be reached, start() waits for it: a failure takes the disk away */
#define XBB_OPEN_WRITES_LOST (1u << 4)      /* since 1.2, with SUCCESSOR.  Writing back has failed while that process died, and
                                               the kernel may have told nobody who lives: the next flush fails, and so does
                                               each write to an image whose tables may be among what is lost */

#define XBB_OPEN_AFTER_DEATH (1u << 5)      /* since 1.3, with SUCCESSOR and XBB_PLUGIN_NO_FD: the process before did not end in order.
                                               What it had under way may still reach the storage, and the plugin waits
                                               until it cannot before it does anything else: see kept() */

struct xbb_open {                           /* borrowed for the call, with format and label */
    uint32_t                struct_size;
    uint32_t                flags;          /* XBB_OPEN_* */
    struct xbb_hdev        *hdev;           /* until close() returns; NULL for inspect() */
    int32_t                 fd;             /* the image or device; -1 for network plugins.  Borrowed:
                                               stays open until close() returns, dup() it to keep it.
                                               Until then its file position, its status flags (O_DIRECT)
                                               and locks on it are the plugin's.  A lock that is not given
                                               back in close() ends when the disk is detached: until then
                                               the host keeps the file open for a successor */
    uint32_t                option_count;
    const struct xbb_value *options;        /* option_count == plugin->option_count; until close() returns */
    const char             *format;         /* the entry of plugin->formats that was configured */
    const char             *label;          /* for messages only; not necessarily a path */
    const char             *location;       /* since 1.1.  For XBB_PLUGIN_NO_FD, what the disk's configuration names,
                                               such as nbd://host/export: the host does not interpret it.
                                               At most 1024 bytes, no control characters; "" where it names nothing.
                                               NULL for other plugins, which have the fd, and for inspect() */
};

struct xbb_probe {
    uint32_t       struct_size;
    uint32_t       flags;                   /* must be 0 */
    const uint8_t *head;                    /* first head_len bytes, min(file_size, 64 KiB) */
    uint64_t       head_len;
    const uint8_t *tail;                    /* last tail_len bytes, min(file_size, 4 KiB) */
    uint64_t       tail_len;
    uint64_t       file_size;
    const char    *format;                  /* the entry of plugin->formats that is asked about */
};

enum { XBB_REF_BACKING = 1, XBB_REF_DATA = 2 };

struct xbb_ref {                            /* a name found INSIDE an image: attacker-controlled */
    uint32_t kind;                          /* XBB_REF_* */
    uint32_t flags;                         /* must be 0 */
    char     format[32];                    /* "" if the image does not say; the host then refuses */
    char     name[1024];                    /* verbatim; only the host interprets it */
};

#define XBB_IMG_ENCRYPTED     (1u << 0)
#define XBB_IMG_COMPRESSED    (1u << 1)
#define XBB_IMG_DIRTY         (1u << 2)
#define XBB_IMG_CORRUPT       (1u << 3)
#define XBB_IMG_UNKNOWN_FEAT  (1u << 4)     /* a must-understand feature bit is not known: host refuses */

struct xbb_image {                          /* result of inspect() */
    uint32_t       struct_size;             /* IN: size of the host's struct */
    uint32_t       flags;                   /* XBB_IMG_* */
    uint64_t       virtual_size;
    uint64_t       metadata_memory;         /* bytes of RAM open() would need: image-bomb check */
    uint32_t       ref_count;
    uint32_t       reserved;
    struct xbb_ref refs[4];
};

struct xbb_queue_params {
    uint32_t struct_size;
    uint32_t index;                         /* 0 .. number of queues - 1 */
    uint32_t depth;                         /* the host never has more in flight on this queue */
    uint32_t flags;                         /* must be 0 */
};

struct xbb_mem {                            /* a region that will hold I/O buffers */
    uint32_t struct_size;
    int32_t  fd;                            /* memfd behind it, or -1 */
    void    *addr;
    uint64_t length;
    uint64_t fd_offset;
};

/* ---------------------------------------------------------------- host services */

enum { XBB_LOG_ERROR = 1, XBB_LOG_WARN = 2, XBB_LOG_INFO = 3, XBB_LOG_DEBUG = 4 };
enum { XBB_FD_READ = 1u, XBB_FD_WRITE = 2u };
enum {                                      /* host->notify() */
    XBB_NOTIFY_INFO    = 1,                 /* size or limits changed: host calls get_info() again */
    XBB_NOTIFY_LOST    = 2,                 /* storage is gone: the plugin fails requests until FOUND; the
                                               host tells the operator */
    XBB_NOTIFY_FOUND   = 3,
    XBB_NOTIFY_CORRUPT = 4,                 /* image damage seen: the plugin itself fails what would add to
                                               it (-EIO); the host tells the operator and may stop writes */
    XBB_NOTIFY_REOPEN  = 5,                 /* since 1.3: this process cannot reach the storage any more, such as over a
                                               connection that broke; the plugin has logged why.  The host ends this
                                               process at once; its successor gets the requests that are not completed,
                                               and opens the storage anew with the rights of open().  The guest waits */
};

typedef void (*xbb_fd_fn)(void *arg, int fd, uint32_t events);
typedef void (*xbb_fn)(void *arg);
typedef void (*xbb_child_fn)(void *arg, struct xbb_req *req, int32_t status);

#define XBB_HOST_F_STACKING   (1ull << 0)   /* child_* functions work for other formats than raw */
#define XBB_HOST_F_MEM_MAP    (1ull << 1)

struct xbb_host {
    uint32_t struct_size;
    uint16_t abi_major, abi_minor;
    uint64_t features;                      /* XBB_HOST_F_* */

    /* Any thread.  Rate-limited per disk by the host.  hdev may be NULL.  One line, no newline; nothing that a guest
     * wrote. */
    void (*log)(struct xbb_hdev *hdev, uint32_t level, const char *line);

    /* Any thread.  status: 0 or negative errno; above 0 is taken for -EIO.  Cheap on the queue's own thread: no lock, no syscall;
     * the host batches responses until the current callback returns.  From other threads: lock-free
     * push and at most one eventfd write per batch.  Such a call may still be returning when the queue's
     * thread sees the request, so hq stays valid until the plugin's close() has returned.  A queue that is opened later
     * may have the same hq. */
    void (*complete)(struct xbb_hqueue *hq, struct xbb_req *req, int32_t status);

    /* Queue thread only (inside queue_open() and queue_close() counts); a function may remove its own watch.
     * Level-triggered; errors and hang-ups are told as READ and WRITE, asked for or not.  One watch for each fd of a
     * queue; watch_del() comes before close(2) of the fd.  All watches and timers of a queue are deleted when
     * queue_close() returns.  -EOPNOTSUPP for XBB_PLUGIN_BLOCKING, whose threads sleep in submit(). */
    int  (*watch_add)(struct xbb_hqueue *hq, int fd, uint32_t events, xbb_fd_fn fn, void *arg,
                      struct xbb_watch **out);
    void (*watch_set)(struct xbb_watch *w, uint32_t events);
    void (*watch_del)(struct xbb_watch *w);

    int  (*timer_add)(struct xbb_hqueue *hq, xbb_fn fn, void *arg, struct xbb_timer **out);
    /* One shot, never early, some ms late; 0 disarms. */
    void (*timer_set)(struct xbb_timer *t, uint64_t delay_ns);
    void (*timer_del)(struct xbb_timer *t);

    /* Any thread: run fn(arg) on the queue's thread, soon and in the order of the calls.  Nothing runs after
     * queue_close() began; what was not run by then is dropped.  Does nothing for XBB_PLUGIN_BLOCKING. */
    void (*post)(struct xbb_hqueue *hq, xbb_fn fn, void *arg);

    /* Any thread, from the return of open() to close().  Returns at once: the host acts on it later. */
    void (*notify)(struct xbb_hdev *hdev, uint32_t what);

    /* Draft and third-party additions, by versioned name ("xbb.draft.zoned/1"); NULL if unknown. */
    const void *(*extension)(const char *id);

    /* Only inside open().  The host decides: confinement of the name, explicit format, chain depth,
     * loops.  On success, a child that stays valid until close() returns. */
    int  (*child_open)(struct xbb_hdev *hdev, const struct xbb_ref *ref, struct xbb_child **out,
                       struct xbb_error *err);
    int  (*child_fd)(struct xbb_child *c);              /* raw child: read-only fd; else -1 */
    int  (*child_info)(struct xbb_child *c, struct xbb_info *out);
    /* Queue thread.  req is the plugin's memory (embed it in ctx); done runs on the same thread.  -EOPNOTSUPP for a
     * child without queues: one of a plugin that is not XBB_PLUGIN_BLOCKING. */
    int  (*child_submit)(struct xbb_hqueue *hq, struct xbb_child *c, struct xbb_req *req,
                         xbb_child_fn done, void *arg);

    /* Since 1.2.  Any thread.  The dev that this same plugin's open() gave for a child of one of its own formats, until
     * close() of the disk above returns; NULL for all other children.  The plugin reads from it by its own means and
     * with its own locks, on any of its threads: no thread_model covers that.
     * A plugin that is not XBB_PLUGIN_BLOCKING has children that are raw or of its own formats, no others (before 1.2:
     * none at all), and reads them by child_fd() and child_device(). */
    void *(*child_device)(struct xbb_child *c);

    /* Since 1.3.  Only inside open(), for XBB_PLUGIN_NO_FD.  Leaves an open file for the process that serves the disk after
     * this one, however this one ends: a socket, or memory (memfd_create) in which both find what was under way.  key: 0 to
     * 31; a key that is used again replaces the file.  What is not kept anew is gone for the one after that.  The plugin
     * keeps its own descriptor, and closes it.  The host never reads or writes such a file, and passes none on when the disk
     * was closed in order.  -EINVAL for another kind of file or key, -EOPNOTSUPP where nobody would get it. */
    int  (*keep)(struct xbb_hdev *hdev, uint32_t key, int fd);
    /* Since 1.3.  Only inside open().  What the process before has kept, borrowed until open() returns: dup() it to use it
     * longer.  -ENOENT: nothing.  A file that another process has used may contain anything. */
    int  (*kept)(struct xbb_hdev *hdev, uint32_t key);
};

/* ---------------------------------------------------------------- the plugin */

/* What is called at the same time: callbacks of watches, timers and post() count as calls.  Gaps are for models not
 * thought of yet; an unknown one counts as the next smaller number.  The host may always use a stricter one. */
enum {
    XBB_THREADS_PROCESS = 1000,             /* one call into the plugin at a time, in the whole process */
    XBB_THREADS_DEVICE  = 2000,             /* one call at a time per disk; max_queues counts as 1 */
    XBB_THREADS_QUEUE   = 3000,             /* one call at a time per queue; get_info() and other control calls
                                               of an open disk may run beside them */
};

#define XBB_PLUGIN_BLOCKING   (1u << 0)     /* submit() may sleep: host gives each queue its own thread
                                               and never runs the ring on it.  A queue's depth is 1 then,
                                               poll() and watches, timers, post() are not used */
#define XBB_PLUGIN_NETWORK    (1u << 1)     /* makes sockets after start(), e.g. to reconnect */
#define XBB_PLUGIN_RDONLY     (1u << 2)     /* never writes: host attaches disks read-only */
#define XBB_PLUGIN_NO_FD      (1u << 3)     /* no file behind it (network, memory): xbb_open.fd is -1, and
                                               xbb_open.location says what the disk is */

typedef int  (*xbb_extent_fn)(void *arg, uint64_t offset, uint64_t length, uint32_t flags);
typedef void (*xbb_stat_fn)(void *arg, const char *name, uint64_t value);
/* A fact about an image: a name as in stats(), and a number or, where text is not NULL, words of one line.  Non-zero: stop. */
typedef int  (*xbb_fact_fn)(void *arg, const char *name, uint64_t value, const char *text);
#define XBB_EXTENT_HOLE (1u << 0)           /* not allocated in this layer */
#define XBB_EXTENT_ZERO (1u << 1)           /* reads as zeroes */

struct xbb_plugin {
    uint32_t                 struct_size;
    uint16_t                 abi_major, abi_minor;
    uint64_t                 need_features; /* XBB_HOST_F_*: a host that lacks one refuses the plugin */
    const char              *name;          /* [a-z][a-z0-9-]*, equals <name> in the file name */
    const char              *version;
    const char              *description;
    const char *const       *formats;       /* NULL-terminated, e.g. { "qcow2", "qcow", NULL } */
    const struct xbb_option *options;
    uint32_t                 option_count;
    uint32_t                 flags;         /* XBB_PLUGIN_* */
    uint32_t                 thread_model;  /* XBB_THREADS_* */
    uint32_t                 req_ctx_size;  /* per-request scratch, at most 4096 */

    /* Required: open, close, get_info, queue_open, queue_close, submit.  The rest may be NULL.
     * Control calls (all but submit, poll and cancel) may block.  The host makes them off the I/O threads, except for
     * queue_open, queue_close, mem_map and mem_unmap, which run on the thread of the queue that they are for. */

    /* Once in a process, before everything else; also where nobody opens a disk (to describe the plugin, to probe an
     * image): keep the pointer, check what is needed, no more.  host is valid for ever.  No threads yet. */
    int  (*load)(const struct xbb_host *host);

    /* Is the image of p->format?  Asked once for each of formats.  Pure function of its argument: no I/O,
     * no allocation kept, may run in another process.
     * 0 = no .. 100 = certain.  "raw" plugins have no probe. */
    int  (*probe)(const struct xbb_probe *p);

    /* Read the header of o->fd and say what is in it; follow no reference.  In a process of its own with limits of
     * memory and time, without hdev, and without open(). */
    int  (*inspect)(const struct xbb_open *o, struct xbb_image *out, struct xbb_error *err);

    /* Before privileges drop.  Everything that needs a path, a socket connect or a device ioctl
     * happens here.  No threads yet.  On failure nothing is kept, and close() is not called. */
    int  (*open)(const struct xbb_open *o, void **dev, struct xbb_error *err);

    /* After privileges drop and seccomp; threads may be created from here on. */
    int  (*start)(void *dev, struct xbb_error *err);
    void (*close)(void *dev);                           /* all queues closed before; join threads.  Once for each
                                                           open() that succeeded, also if start() did not */

    /* First between open() and start(), then again whenever the plugin asked for it with notify(INFO).  What may change
     * then is size (a whole number of logical blocks); the rest stays as it was first.  XBB_PLUGIN_NETWORK: asked again
     * after start(), before there is a queue, and all of it may be new then. */
    int  (*get_info)(void *dev, struct xbb_info *out);

    /* After start(), on the thread that the queue will belong to.  Queues come and go with the guest's driver while the
     * disk stays open; there may be none for any time. */
    int  (*queue_open)(void *dev, struct xbb_hqueue *hq, const struct xbb_queue_params *p, void **q,
                       struct xbb_error *err);
    void (*queue_close)(void *q);                       /* nothing in flight */

    /* Accept reqs[0 .. k-1] and return k <= n; one that is completed in submit() is accepted.  The rest is offered
     * again, at the latest after the next completion on this queue; with nothing in flight some ms later, and it fails
     * with -EIO when nothing was accepted for seconds.  The array itself is borrowed for the call.
     * When submit() returns, accepted requests must be on their way (this is the "kick").
     * Unknown op: accept it and complete with -EOPNOTSUPP.  Unknown flag: -EINVAL. */
    uint32_t (*submit)(void *q, struct xbb_req *const *reqs, uint32_t n);

    /* Reap without sleeping; return completions done.  Called while requests are in flight, in busy-poll mode and
     * before sleeping.  A plugin that has it is not asked through its watches while the queue is busy. */
    uint32_t (*poll)(void *q);

    /* Please hurry: finish req (NULL: all of this queue) now, with -ECANCELED if need be.  Queue thread; a hint. */
    void (*cancel)(void *q, struct xbb_req *req);

    /* Between the two the host submits nothing; stop internal requests (prefetch, cleaning) too. */
    int  (*drain_begin)(void *dev);
    void (*drain_end)(void *dev);

    /* Before queue_open() of the queue that will use the region, and after its queue_close().  A failure matters only
     * with XBB_CAP_NEEDS_MEM_MAP. */
    int  (*mem_map)(void *dev, const struct xbb_mem *m);
    void (*mem_unmap)(void *dev, const struct xbb_mem *m);

    int  (*resize)(void *dev, uint64_t new_size, struct xbb_error *err);

    /* Ascending, contiguous, first one contains offset; fn returns non-zero to stop. */
    int  (*extents)(void *dev, uint64_t offset, uint64_t length, xbb_extent_fn fn, void *arg,
                    struct xbb_error *err);
    int  (*stats)(void *dev, xbb_stat_fn fn, void *arg);

    /* The plugin's side of host->extension(). */
    const void *(*extension)(const char *id);

    /* Since 1.2.  What an administrator may want to know of the image o->fd and inspect() has no field for: what is allocated,
     * what has no owner, snapshots.  flags: none are defined yet; an unknown one is -EINVAL.  Follow no reference.  In a
     * process of its own with limits of memory and time, without hdev, and without open(). */
    int  (*examine)(const struct xbb_open *o, uint32_t flags, xbb_fact_fn fn, void *arg, struct xbb_error *err);
};

/* The one exported symbol.  Returns a static const description, the same at each call; no side effects. */
#define XBB_PLUGIN_ENTRY "xbb_plugin_v1"
const struct xbb_plugin *xbb_plugin_v1(void);

#define XBB_PLUGIN_HEADER \
    .struct_size = sizeof(struct xbb_plugin), .abi_major = XBB_ABI_MAJOR, .abi_minor = XBB_ABI_MINOR
#define XBB_PLUGIN_EXPORT(desc) \
    __attribute__((visibility("default"))) const struct xbb_plugin *xbb_plugin_v1(void) { return &(desc); }

/* ---------------------------------------------------------------- helpers: source only, not ABI */

/* For Swift and Rust, where filling a char array by hand is clumsy.  Returns code. */
static inline int xbb_set_error(struct xbb_error *err, int32_t code, const char *message)
{
    size_t i = 0;
    if (err) {
        err->code = code;
        for (; message && message[i] && i + 1 < sizeof err->message; i++) err->message[i] = message[i];
        err->message[i] = 0;
    }
    return code;
}

/* Optional function pointers: present in this plugin's version and not NULL. */
#define XBB_CAN(p, fn) (XBB_HAS(p, fn) && (p)->fn)

#ifdef __cplusplus
}
#define XBB_STATIC_ASSERT static_assert
#else
#define XBB_STATIC_ASSERT _Static_assert
#endif

#if UINTPTR_MAX == UINT64_MAX
XBB_STATIC_ASSERT(sizeof(struct xbb_req) == 64, "frozen for major 1");
XBB_STATIC_ASSERT(offsetof(struct xbb_req, ctx) == 32, "frozen for major 1");
XBB_STATIC_ASSERT(sizeof(struct xbb_error) == 256, "frozen for major 1");
XBB_STATIC_ASSERT(sizeof(struct xbb_option) == 64, "frozen for major 1");
XBB_STATIC_ASSERT(sizeof(struct xbb_value) == 16, "frozen for major 1");
XBB_STATIC_ASSERT(offsetof(struct xbb_plugin, load) == 72, "minor versions only append");
XBB_STATIC_ASSERT(offsetof(struct xbb_host, complete) == 24, "minor versions only append");
#endif
#endif /* XBB_PLUGIN_H */
