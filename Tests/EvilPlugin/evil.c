// SPDX-License-Identifier: BSD-2-Clause
// xbb-evil: a plugin that does what a hijacked one might try. attempt=NAME is made while a read is served, on the
// queue's thread, and its outcome is logged as "attempt NAME: RESULT errno ERRNO".
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>

#include "xbb_plugin.h"

static long attempt_open(void) { return open("/etc/passwd", O_RDONLY); }
static long attempt_create(void) { return open("/tmp/xbb-evil", O_RDWR | O_CREAT, 0600); }
static long attempt_openat2(void) { uint64_t how[3] = {0}; return syscall(SYS_openat2, AT_FDCWD, "/etc/passwd", how, sizeof how); }
static long attempt_stat(void) { struct stat found; return stat("/etc/passwd", &found); }
// The flag lets the call through the filter; the name leads nowhere where the root directory is empty.
static long attempt_stat_by_flag(void) { struct stat found; return fstatat(AT_FDCWD, "/etc/passwd", &found, AT_EMPTY_PATH); }
static long attempt_unlink(void) { return unlink("/tmp/xbb-evil"); }
static long attempt_readlink(void) { char text[64]; return readlink("/proc/self/exe", text, sizeof text); }
static long attempt_rename(void) { return rename("/tmp/xbb-evil", "/tmp/xbb-evil-2"); }
static long attempt_socket(void) { return socket(AF_INET, SOCK_STREAM, 0); }
static long attempt_socketpair(void) { int both[2]; return socketpair(AF_UNIX, SOCK_STREAM, 0, both); }
static long attempt_netlink(void) { return socket(AF_NETLINK, SOCK_RAW, 0); }
static long attempt_execve(void)
{
    char *words[] = {"/bin/true", NULL};
    return execve(words[0], words, NULL);
}
static long attempt_fork(void) { return fork(); }
static long attempt_vfork(void) { return syscall(SYS_clone, CLONE_VM | SIGCHLD, 0, 0, 0, 0); }
static long attempt_ptrace(void) { return ptrace(PTRACE_ATTACH, getppid(), NULL, NULL); }
static long attempt_read_memory(void)
{
    char byte;
    struct iovec here = {&byte, 1}, there = {(void *)0x1000, 1};
    return process_vm_readv(getppid(), &here, 1, &there, 1, 0);
}
static long attempt_kill(void) { return kill(getppid(), SIGCONT); }
static long attempt_tgkill(void) { return syscall(SYS_tgkill, getppid(), getppid(), SIGCONT); }
static long attempt_setuid(void) { return setuid(0); }
static long attempt_capset(void) { return syscall(SYS_capset, NULL, NULL); }
static long attempt_chroot(void) { return chroot("/"); }
static long attempt_mount(void) { return mount("none", "/", "tmpfs", 0, NULL); }
static long attempt_unshare(void) { return unshare(CLONE_NEWUSER); }
static long attempt_bpf(void) { return syscall(SYS_bpf, 0, NULL, 0); }
static long attempt_io_uring(void) { char parameters[120] = {0}; return syscall(SYS_io_uring_setup, 4, parameters); }
static long attempt_prctl(void) { return prctl(PR_SET_DUMPABLE, 1, 0, 0, 0); }
static long attempt_personality(void) { return syscall(SYS_personality, 0x0400000); }
static long attempt_new_code(void)
{
    void *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return page == MAP_FAILED ? -1 : 0;
}
static long attempt_changed_code(void)
{
    void *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return page == MAP_FAILED ? -2 : mprotect(page, 4096, PROT_READ | PROT_EXEC);
}
static long attempt_terminal_input(void) { return ioctl(2, 0x5412 /* TIOCSTI */, ""); }
static long attempt_signal_owner(void) { return fcntl(2, F_SETOWN, getppid()); }
static long attempt_limit(void) { uint64_t limit[2] = {1024, 1024}; return syscall(SYS_prlimit64, 0, 7, limit, NULL); }
static long attempt_look_at_limit(void) { uint64_t limit[2]; return syscall(SYS_prlimit64, 0, 7, NULL, limit); }
static long attempt_send_elsewhere(void)
{
    struct sockaddr_un there = {.sun_family = AF_UNIX};
    return sendto(2, "", 0, 0, (struct sockaddr *)&there, sizeof there);
}
static long attempt_last_words(void)
{
    struct sigaction ignored = {.sa_handler = SIG_IGN};
    return sigaction(SIGSYS, &ignored, NULL);
}
// What is left, so that it is known to be left.
static long attempt_nothing(void) { return 0; }
static long attempt_data_memory(void)
{
    void *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return page == MAP_FAILED ? -1 : munmap(page, 4096);
}
static long attempt_user(void) { return getuid(); }
// What spams.
static const struct xbb_host *host;
static struct xbb_hdev *hdev;
static long attempt_print(void)
{
    for (int i = 0; i < 50000; i++) fprintf(i % 2 ? stdout : stderr, "line %d of a library that explains itself\n", i);
    return 0;
}
static long attempt_notify(void)
{
    for (int i = 0; i < 200000; i++) {
        uint32_t what = (uint32_t)(i % 7);
        /* That one ends the process. */
        host->notify(hdev, what == XBB_NOTIFY_REOPEN ? 7 : what);
        host->log(hdev, XBB_LOG_ERROR, "nothing happened");
    }
    return 0;
}
// What ends the process as if it were done.
static long attempt_exit(void) { exit(0); }
static long attempt_crash(void)
{
    fprintf(stderr, "the last words of a library\n");
    abort();
}
static long attempt_write_stderr(void) { return write(2, "forged line\n", 12); }

// A backend node that names a file of root's, for xbbd to start a worker for it: to each socket, as XenStore's own protocol says
// it (xs_wire.h, XS_WRITE), and as the process beside the worker expects it. The number of messages that went out.
static long attempt_make_node(void)
{
    static const char path[] = "/local/domain/0/backend/vbd/1/51760/physical-device-path", value[] = "/etc/shadow";
    long sent = 0;
    for (int fd = 3; fd < 256; fd++) {
        int type = 0;
        socklen_t size = sizeof type;
        if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &size) != 0) continue;
        char message[256] = {0};
        size_t used;
        if (type == SOCK_SEQPACKET) {
            message[0] = 2;
            used = 5;
        } else {
            uint32_t header[4] = {11, 1, 0, sizeof path + sizeof value - 1};
            memcpy(message, header, sizeof header);
            used = sizeof header;
        }
        memcpy(message + used, path, sizeof path);
        memcpy(message + used + sizeof path, value, sizeof value - 1);
        used += sizeof path + sizeof value - 1;
        if (send(fd, message, used, MSG_NOSIGNAL | MSG_DONTWAIT) == (ssize_t)used) sent++;
    }
    return sent;
}

static char argument[64];

// Files of others: how many open files it can write to. The image is none, as this plugin has none.
static long attempt_write_files(void)
{
    long written = 0;
    for (int fd = 3; fd < 256; fd++) {
        struct stat found;
        // Without a name: memory that stands for a guest's.
        if (fstat(fd, &found) != 0 || !S_ISREG(found.st_mode) || found.st_nlink == 0) continue;
        // The log: standard error is a file in tests.
        if (fcntl(fd, F_GETFL) & O_APPEND) continue;
        if (ftruncate(fd, found.st_size + 1) == 0 || fallocate(fd, 0, 0, found.st_size + 65536) == 0 ||
            pwrite(fd, "1 1\n", 4, 0) == 4)
            written++;
    }
    return written;
}

static void *sleeper(void *unused)
{
    for (;;) poll(NULL, 0, -1);
    return unused;
}

static long attempt_threads(void)
{
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, 64 << 10);
    long made = 0;
    for (pthread_t thread; made < 3000 && pthread_create(&thread, &attributes, sleeper, NULL) == 0;) made++;
    return made;
}

// In MiB, by chunks of one.
static long attempt_memory(void)
{
    long had = 0;
    while (had < 8192 && mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) != MAP_FAILED) had++;
    return had;
}

static long attempt_descriptors(void)
{
    long had = 0;
    while (had < 100000 && dup(2) >= 0) had++;
    return had;
}

// An event channel of another guest, "DOMID PORT", as the hypervisor's protocol says it (XenLoopback), over every socket. The
// errno of the refusal; whether it was bound, the other guest sees.
static long attempt_bind_other(void)
{
    enum { BIND_INTERDOMAIN = 15 };
    unsigned message[3] = {BIND_INTERDOMAIN, 0, 0};
    int refusal = EINVAL;
    if (sscanf(argument, "%u %u", &message[1], &message[2]) != 2) return -2;
    for (int fd = 3; fd < 256; fd++) {
        int type = 0;
        socklen_t size = sizeof type;
        if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &size) != 0 || type != SOCK_SEQPACKET) continue;
        // Those that this process made lead to the process beside it, which another thread asks at the same time.
        struct ucred peer = {0};
        size = sizeof peer;
        if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0 || peer.pid == getpid()) continue;
        if (send(fd, message, sizeof message, MSG_NOSIGNAL | MSG_DONTWAIT) < 0) continue;
        struct pollfd entry = {.fd = fd, .events = POLLIN};
        unsigned answer[8] = {0};
        if (poll(&entry, 1, 300) != 1) continue;
        ssize_t got = recv(fd, answer, sizeof answer, MSG_DONTWAIT);
        // A refusal is its number alone.
        if (got == 4 && answer[0] == EACCES) refusal = EACCES;
    }
    errno = refusal;
    return -1;
}

static const struct { const char *name; long (*make)(void); } attempts[] = {
#define ATTEMPT(name) {#name, attempt_##name}
    ATTEMPT(open), ATTEMPT(create), ATTEMPT(openat2), ATTEMPT(stat), ATTEMPT(stat_by_flag), ATTEMPT(unlink),
    ATTEMPT(readlink), ATTEMPT(rename), ATTEMPT(socket), ATTEMPT(socketpair), ATTEMPT(netlink), ATTEMPT(execve),
    ATTEMPT(fork), ATTEMPT(vfork), ATTEMPT(ptrace), ATTEMPT(read_memory), ATTEMPT(kill), ATTEMPT(tgkill),
    ATTEMPT(setuid), ATTEMPT(capset), ATTEMPT(chroot), ATTEMPT(mount), ATTEMPT(unshare), ATTEMPT(bpf),
    ATTEMPT(io_uring), ATTEMPT(prctl), ATTEMPT(personality), ATTEMPT(new_code), ATTEMPT(changed_code),
    ATTEMPT(terminal_input), ATTEMPT(signal_owner), ATTEMPT(limit), ATTEMPT(look_at_limit),
    ATTEMPT(send_elsewhere), ATTEMPT(last_words), ATTEMPT(nothing),
    ATTEMPT(write_files), ATTEMPT(threads), ATTEMPT(memory), ATTEMPT(descriptors), ATTEMPT(bind_other),
    ATTEMPT(make_node), ATTEMPT(data_memory), ATTEMPT(user), ATTEMPT(write_stderr), ATTEMPT(print), ATTEMPT(notify),
    ATTEMPT(exit), ATTEMPT(crash),
};

static const struct xbb_option options[] = {
    {.name = "attempt", .help = "what to try", .def = "nothing", .type = XBB_OPT_STRING},
    {.name = "argument", .help = "of what", .def = "", .type = XBB_OPT_STRING},
};

static char attempt[64];
static volatile int must_hang;

// A server far away that never answers.
static void hang(void)
{
    for (;;) sleep(1000);
}

static int evil_load(const struct xbb_host *table)
{
    host = table;
    return 0;
}

static int evil_open(const struct xbb_open *open, void **dev, struct xbb_error *err)
{
    (void)err;
    hdev = open->hdev;
    // A server far away that does not answer.
    if (strcmp(open->options[0].str, "slow_open") == 0) sleep(4);
    if (strcmp(open->options[0].str, "hang_open") == 0) hang();
    snprintf(attempt, sizeof attempt, "%s", open->options[0].str);
    snprintf(argument, sizeof argument, "%s", open->options[1].str);
    *dev = attempt;
    return 0;
}

static void evil_close(void *dev)
{
    (void)dev;
    if (strcmp(attempt, "hang_close") == 0) hang();
}

static int evil_get_info(void *dev, struct xbb_info *info)
{
    (void)dev;
    if (must_hang) hang();
    info->size = 1 << 20;
    info->logical_block = 512;
    info->physical_block = 512;
    info->max_queues = 1;
    return 0;
}

static int evil_queue_open(void *dev, struct xbb_hqueue *hq, const struct xbb_queue_params *params, void **out,
                           struct xbb_error *err)
{
    (void)dev, (void)params, (void)err;
    if (strcmp(attempt, "hang_queue_open") == 0) hang();
    *out = hq;
    return 0;
}

static void evil_queue_close(void *queue)
{
    (void)queue;
    if (strcmp(attempt, "hang_queue_close") == 0) hang();
}

static void make_attempt(void)
{
    char line[160];
    for (size_t i = 0; i < sizeof attempts / sizeof attempts[0]; i++) {
        if (strcmp(attempts[i].name, attempt) != 0) continue;
        errno = 0;
        long result = attempts[i].make();
        snprintf(line, sizeof line, "attempt %s: %ld errno %d", attempt, result, errno);
        host->log(hdev, XBB_LOG_INFO, line);
    }
}

/* Tries what stats() must not do: names without end, names of any bytes, calls when it has returned, no return. */
static xbb_stat_fn kept_fn;
static void *kept_arg;

static int evil_stats(void *dev, xbb_stat_fn fn, void *arg)
{
    (void)dev;
    if (kept_fn) kept_fn(kept_arg, "too-late", 1);
    if (strcmp(attempt, "stats_late") == 0) {
        kept_fn = fn;
        kept_arg = arg;
        fn(arg, "in-time", 2);
    } else if (strcmp(attempt, "stats_many") == 0) {
        char name[4096];
        for (unsigned i = 0; i < 100000; i++) {
            snprintf(name, sizeof name, "counter-%u", i);
            fn(arg, name, UINT64_MAX - i);
        }
    } else if (strcmp(attempt, "stats_names") == 0) {
        char name[100001];
        memset(name, 'x', sizeof name - 1);
        name[sizeof name - 1] = 0;
        fn(arg, name, 1);
        fn(arg, NULL, 2);
        fn(arg, "", 3);
        fn(arg, "\x1b[31m\n\"\xff", 4);
    } else if (strcmp(attempt, "stats_hang") == 0) {
        for (;;) sleep(1000);
    } else if (strcmp(attempt, "stats_error") == 0) {
        fn(arg, "half", 1);
        return -EIO;
    }
    return 0;
}

static uint32_t evil_submit(void *queue, struct xbb_req *const *reqs, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        if (reqs[i]->op == XBB_OP_READ && strcmp(attempt, "hang_submit") == 0) hang();
        if (reqs[i]->op == XBB_OP_READ && strcmp(attempt, "hang_get_info") == 0) {
            must_hang = 1;
            host->notify(hdev, XBB_NOTIFY_INFO);
        }
        if (reqs[i]->op == XBB_OP_READ) make_attempt();
        host->complete(queue, reqs[i], reqs[i]->op == XBB_OP_READ ? 0 : -EOPNOTSUPP);
    }
    return n;
}

static const struct xbb_plugin evil_plugin = {
    XBB_PLUGIN_HEADER,
    .name = "evil",
    .version = "1.0",
    .description = "Tries what it must not do, for tests",
    .formats = (const char *const[]){"evil", NULL},
    .options = options,
    .option_count = 2,
    .flags = XBB_PLUGIN_NO_FD,
    .thread_model = XBB_THREADS_QUEUE,
    .load = evil_load,
    .open = evil_open,
    .close = evil_close,
    .get_info = evil_get_info,
    .queue_open = evil_queue_open,
    .queue_close = evil_queue_close,
    .submit = evil_submit,
    .stats = evil_stats,
};

XBB_PLUGIN_EXPORT(evil_plugin)
