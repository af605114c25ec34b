// SPDX-License-Identifier: BSD-2-Clause
/* Lines of a log: written without waiting for who reads them, and standard error as a pipe of the process itself. */
#ifndef CLINUX_LOG_H
#define CLINUX_LOG_H

#include <stddef.h>
#include <stdint.h>

/* Where lines go. `own` is a further open file of the same pipe or terminal, which does not wait; -1 where there is none.
 * `device` and `inode` say of which. */
struct clinux_log {
    int fd;
    int own;
    uint64_t device;
    uint64_t inode;
};

/* Writes all of a line or nothing of it, and returns at once whoever reads or does not read it: 0, or -1 and errno, EAGAIN
 * where there is no room. The flags of `fd`, which other processes share, stay as they are. Regular files are written as
 * always. One thread at a time. */
int clinux_log_write(struct clinux_log *log, const void *bytes, size_t count);

/* Opens what clinux_log_write() needs, for a process that will not be allowed to. */
void clinux_log_prepare(struct clinux_log *log);

/* Standard output and error become a pipe that this process reads, so that what libraries print there can be counted and limited:
 * the descriptor to read, -1 and errno where there is none. *saved becomes the old standard error. Writing to the pipe
 * never waits. What is in the pipe when the process crashes goes to the old standard error. Once in a process. */
int clinux_capture_stderr(int *saved);

/* Writes to standard error, to the old one where it is captured, after what is in the pipe. For the end of the process:
 * may be called in a signal handler and never waits. 0, or -1 and errno. */
int clinux_last_words(const void *bytes, size_t count);

#endif
