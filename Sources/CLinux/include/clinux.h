/* SPDX-License-Identifier: BSD-2-Clause
 * What Swift's glibc module does not bring: headers that it leaves out, and macros that it cannot import. */
#ifndef CLINUX_H
#define CLINUX_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
/* With _GNU_SOURCE the member of fd_set has another name than in Swift's own glibc module, and a file that sees both
 * definitions does not compile. Give it the name that Swift knows. */
#include <features.h>
#define fds_bits __fds_bits
#include <sys/select.h>
#undef fds_bits
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <linux/openat2.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stdint.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "clinux_confine.h"
#include "clinux_log.h"
#include "clinux_process.h"

/* Request numbers made by macros that Swift cannot import. */
static const unsigned long clinux_BLKGETSIZE64 = BLKGETSIZE64;
static const unsigned long clinux_BLKSSZGET = BLKSSZGET;
static const unsigned long clinux_BLKPBSZGET = BLKPBSZGET;
static const unsigned long clinux_BLKIOOPT = BLKIOOPT;
static const unsigned long clinux_BLKROGET = BLKROGET;
static const unsigned long clinux_BLKDISCARD = BLKDISCARD;
static const unsigned long clinux_BLKSECDISCARD = BLKSECDISCARD;
static const unsigned long clinux_BLKZEROOUT = BLKZEROOUT;
static const unsigned long clinux_BLKFLSBUF = BLKFLSBUF;
static const unsigned long clinux_BLKROTATIONAL = BLKROTATIONAL;

/* "ENOSPC"; NULL for a number that is no errno. */
static inline const char *clinux_errno_name(int code) { return strerrorname_np(code); }

/* "SEGV"; NULL for a number that has no name. */
static inline const char *clinux_signal_name(int signal) { return sigabbrev_np(signal); }

/* Variadic in C, so each form that is used gets a name. */
static inline int clinux_ioctl_pointer(int fd, unsigned long request, void *argument)
{
    return ioctl(fd, request, argument);
}
static inline int clinux_open(const char *path, int flags, unsigned mode) { return open(path, flags, (mode_t)mode); }
/* openat2(2) for `path` below `directory`, over no link of any kind; ENOSYS before Linux 5.6. */
static inline int clinux_open_beneath(int directory, const char *path, int flags)
{
    struct open_how how = {
        .flags = (uint64_t)flags, .resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS,
    };
    return (int)syscall(SYS_openat2, directory, path, &how, sizeof how);
}
static inline int clinux_fcntl_pointer(int fd, int command, void *argument) { return fcntl(fd, command, argument); }
static inline int clinux_fcntl_int(int fd, int command, int argument) { return fcntl(fd, command, argument); }
/* The next client of a listening socket: close-on-exec, never blocks. */
static inline int clinux_accept(int listener) { return accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK); }
static inline int clinux_gettid(void) { return (int)syscall(SYS_gettid); }

/* NULL where mmap fails. */
static inline void *clinux_mmap(void *address, size_t length, int protection, int flags, int fd, int64_t offset)
{
    void *result = mmap(address, length, protection, flags, fd, offset);
    return result == MAP_FAILED ? NULL : result;
}

/* Nanoseconds of CLOCK_MONOTONIC. */
static inline uint64_t clinux_monotonic_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* One message of `length` bytes with at most `count` descriptors; the results of sendmsg and recvmsg.
 * clinux_recv_fds sets *count to the descriptors that came, all close-on-exec. */
ssize_t clinux_send_fds(int socket, const void *bytes, size_t length, const int *fds, int count);
ssize_t clinux_recv_fds(int socket, void *bytes, size_t length, int *fds, int *count);

/* Unix sockets of `type` (SOCK_STREAM, SOCK_SEQPACKET), close-on-exec; -1 and errno where a step fails, ENAMETOOLONG
 * where the path does not fit into sockaddr_un. The calls take a transparent union that Swift cannot pass. */
int clinux_unix_connect(const char *path, int type);
int clinux_unix_listen(const char *path, int type, int backlog);

/* The process at the other end of a connected Unix socket: of one that listens, the process that has called listen(2). -1 if
 * the kernel does not say. */
int clinux_peer_process(int socket);

/* A SOCK_STREAM that listens at `path` in the place of whatever is there, mode 0600 from the beginning. Changes the umask
 * for a moment: not beside threads that make files. */
int clinux_unix_listen_private(const char *path, int backlog);

#endif
