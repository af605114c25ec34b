/* SPDX-License-Identifier: BSD-2-Clause
 * What storage plugins need of Linux and Swift's glibc module leaves out: flags made by casts, statx of direct I/O. */
#ifndef CLINUX_STORAGE_H
#define CLINUX_STORAGE_H

#include "clinux.h" /* first: it settles what _GNU_SOURCE changes */
#include <string.h>
#include <sys/sysmacros.h>

static const int clinux_O_DIRECT = O_DIRECT;
static const int clinux_RWF_DSYNC = RWF_DSYNC;
static const int clinux_F_OFD_SETLK = F_OFD_SETLK;
static const int clinux_F_OFD_GETLK = F_OFD_GETLK;
static const int clinux_F_GET_SEALS = F_GET_SEALS;
static const int clinux_SEEK_DATA = SEEK_DATA;
static const int clinux_SEEK_HOLE = SEEK_HOLE;

static inline unsigned clinux_major(uint64_t device) { return major((dev_t)device); }
static inline unsigned clinux_minor(uint64_t device) { return minor((dev_t)device); }

/* Empties a file but for its first `kept` bytes, then makes it `bytes` long with all of its blocks: 0 or an errno. A file
 * system that is full says so here, and not by a fault when the file is mapped and written. */
static inline int clinux_reserve_file(int fd, uint64_t kept, uint64_t bytes)
{
    struct stat status;
    if (fstat(fd, &status) != 0) return errno;
    if ((uint64_t)status.st_size > kept) status.st_size = (off_t)kept;
    if (ftruncate(fd, status.st_size) != 0) return errno;
    return posix_fallocate(fd, 0, (off_t)bytes);
}

/* What statx(2) says about O_DIRECT on `fd` (Linux 6.1; STATX_DIOALIGN is newer than some C libraries): 1 with the
 * alignment of memory and of file offsets, 0 if direct I/O is not possible, -1 if the kernel does not say. */
static inline int clinux_direct_alignment(int fd, uint32_t *memory, uint32_t *offset)
{
    enum { DIOALIGN = 0x2000, MASK_AT = 0, MEMORY_AT = 0x98, OFFSET_AT = 0x9c };
    union { uint64_t align; unsigned char bytes[256]; } answer;
    uint32_t mask;
    memset(&answer, 0, sizeof answer);
    if (syscall(SYS_statx, fd, "", AT_EMPTY_PATH, DIOALIGN, &answer) != 0) return -1;
    memcpy(&mask, answer.bytes + MASK_AT, sizeof mask);
    if (!(mask & DIOALIGN)) return -1;
    memcpy(memory, answer.bytes + MEMORY_AT, sizeof *memory);
    memcpy(offset, answer.bytes + OFFSET_AT, sizeof *offset);
    return *memory != 0 && *offset != 0;
}

/* Starts a thread that takes no signals, so that the host's signal handling stays with the host's threads.
 * The result of pthread_create. */
static inline int clinux_thread_start(pthread_t *thread, void *(*body)(void *), void *argument)
{
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int result = pthread_create(thread, NULL, body, argument);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return result;
}

#endif
