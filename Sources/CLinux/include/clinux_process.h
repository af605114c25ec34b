/* SPDX-License-Identifier: BSD-2-Clause
 * Processes: starting one with nothing but what it needs, and following it by a descriptor. */
#ifndef CLINUX_PROCESS_H
#define CLINUX_PROCESS_H

#include <sys/types.h>

/* Starts `path` in a process group of its own with no signal blocked or ignored, standard input from /dev/null, standard
 * output to `output` (-1: as here), descriptor 3 a copy of `kept` (-1: none), 4 one of `second` (-1: none; only with
 * `kept`) and 5 one of `third` (-1: none), and no other descriptor than these; none of them is below 6 here. The environment is that of this process. 0 and *process,
 * or an errno, also that of a failed execve. */
int clinux_spawn(const char *path, char *const arguments[], int output, int kept, int second, int third,
                 pid_t *process);

/* 1 if the extended attribute of the file is "1". */
int clinux_has_mark(const char *path, const char *name);

/* fork(2), for a process with one thread: 0 in the child. */
pid_t clinux_fork(void);
/* Closes every descriptor from 3 on but these two. */
void clinux_close_all_but(int one, int other);

/* A close-on-exec descriptor of a process that is readable once it has ended; -1 and errno. */
int clinux_pidfd_open(pid_t process);
/* A close-on-exec copy of a descriptor of another process; -1 and errno. Takes the right to trace that process. */
int clinux_pidfd_getfd(int pidfd, int descriptor);
/* As kill(2), without the danger of a reused number. */
int clinux_pidfd_signal(int pidfd, int signal);
/* Takes the end of a child: 1 and either *code or a *signal other than 0, 0 while it runs, -1 and errno. *dumped: with a
 * core. */
int clinux_pidfd_wait(int pidfd, int *code, int *signal, int *dumped);

/* The group of that name: 1, 0 where there is none, -1 and errno. */
int clinux_group(const char *name, gid_t *group);

/* The most descriptors of one message. */
#define CLINUX_MOST_DESCRIPTORS 64

/* One message with descriptors (SCM_RIGHTS), without waiting: 0, or -1 and errno. `to` and `to_size` are NULL and 0 for a
 * connected socket. */
struct sockaddr_un;
int clinux_send_descriptors(int socket, const struct sockaddr_un *to, size_t to_size, const void *bytes, size_t count,
                            const int *descriptors, size_t descriptor_count);
/* The next message, without waiting: its bytes and descriptors, close-on-exec, of which `descriptors` has room for
 * CLINUX_MOST_DESCRIPTORS. -1 and errno; EMSGSIZE for a message that is larger than the room, whose descriptors are
 * closed. */
ssize_t clinux_receive_descriptors(int socket, void *bytes, size_t capacity, int *descriptors, size_t *descriptor_count);

/* One datagram, with descriptors if there are some, to the socket at `path`, '@' in front for an abstract one, as
 * sd_notify(3) sends it; -1 and errno. */
int clinux_notify(const char *path, const char *message, const int *descriptors, size_t descriptor_count);

/* Goes into the background, with standard input and output on /dev/null and standard error on the system log, where each
 * write is a message. Returns in the child alone; -1 and errno. Not to be called with threads running. */
int clinux_detach(void);

#endif
