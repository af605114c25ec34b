// SPDX-License-Identifier: BSD-2-Clause
#include "clinux.h"
#include "clinux_log.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

static int written(ssize_t result, size_t count)
{
    if (result == (ssize_t)count) return 0;
    if (result >= 0) errno = EAGAIN;
    return -1;
}

/* O_NONBLOCK belongs to an open file, which others share: so one of our own is opened. A pipe and a terminal have a name
 * for that in /proc, a socket has none and needs none. */
static int reopen(int fd)
{
    char path[32];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    return open(path, O_WRONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
}

static ssize_t write_if_ready(int fd, const void *bytes, size_t count)
{
    struct pollfd entry = {.fd = fd, .events = POLLOUT};
    if (poll(&entry, 1, 0) == 1 && (entry.revents & (POLLOUT | POLLERR))) return write(fd, bytes, count);
    errno = EAGAIN;
    return -1;
}

static void own(struct clinux_log *log, const struct stat *status)
{
    if (log->device == status->st_dev && log->inode == status->st_ino) return;
    if (log->own >= 0) close(log->own);
    log->own = reopen(log->fd);
    log->device = status->st_dev;
    log->inode = status->st_ino;
}

void clinux_log_prepare(struct clinux_log *log)
{
    struct stat status;
    if (fstat(log->fd, &status) == 0 && !S_ISSOCK(status.st_mode) && !S_ISREG(status.st_mode)) own(log, &status);
}

int clinux_log_write(struct clinux_log *log, const void *bytes, size_t count)
{
    struct stat status;
    if (fstat(log->fd, &status) != 0) return -1;
    if (S_ISSOCK(status.st_mode)) return written(send(log->fd, bytes, count, MSG_DONTWAIT | MSG_NOSIGNAL), count);
    if (S_ISREG(status.st_mode)) return written(write(log->fd, bytes, count), count);
    own(log, &status);
    /* Without a file of our own another process may take the room between the question and the write. */
    return written(log->own >= 0 ? write(log->own, bytes, count) : write_if_ready(log->fd, bytes, count), count);
}

static int captured = -1;
static int original = -1;
static const int crashes[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP, SIGABRT};
static struct sigaction before[sizeof crashes / sizeof crashes[0]];

/* Everything from here on may be called in a signal handler. */
static void drain(void)
{
    char bytes[4096];
    for (int turn = 0; captured >= 0 && turn < 4; turn++) {
        ssize_t count = read(captured, bytes, sizeof bytes);
        if (count <= 0 || write_if_ready(original, bytes, (size_t)count) < 0) break;
    }
}

int clinux_last_words(const void *bytes, size_t count)
{
    drain();
    return written(write_if_ready(original >= 0 ? original : 2, bytes, count), count);
}

static void on_crash(int signal, siginfo_t *info, void *context)
{
    (void)context;
    drain();
    for (size_t i = 0; i < sizeof crashes / sizeof crashes[0]; i++)
        if (crashes[i] == signal) sigaction(signal, &before[i], NULL);
    /* An instruction that trapped traps again; a signal that was sent is sent again. */
    if (info->si_code <= 0) raise(signal);
}

int clinux_capture_stderr(int *saved)
{
    int ends[2];
    int old = fcntl(2, F_DUPFD_CLOEXEC, 3);
    if (old < 0) return -1;
    if (pipe2(ends, O_CLOEXEC | O_NONBLOCK) != 0) { close(old); return -1; }
    captured = ends[0];
    original = old;
    if (dup2(ends[1], 1) < 0 || dup2(ends[1], 2) < 0) { close(old); close(ends[0]); close(ends[1]); return -1; }
    close(ends[1]);
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_sigaction = on_crash;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    for (size_t i = 0; i < sizeof crashes / sizeof crashes[0]; i++) sigaction(crashes[i], &action, &before[i]);
    *saved = old;
    return ends[0];
}
