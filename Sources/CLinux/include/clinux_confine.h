/* SPDX-License-Identifier: BSD-2-Clause
 * Taking rights away from this process for ever. docs/confinement.md says in words what is left. */
#ifndef CLINUX_CONFINE_H
#define CLINUX_CONFINE_H

#include <stdint.h>

/* Makes `path`, an empty directory, the root of all names of this process; -1 and errno. Needs CAP_SYS_CHROOT. */
int clinux_confine_root(const char *path);

/* Becomes the user and the group in all threads, without supplementary groups and without a way back; -1 and errno. */
int clinux_confine_user(uint32_t user, uint32_t group);

/* At most `memory` bytes of address space beyond those that the process has, `seconds` of processor time beyond those that
 * it had, and no core file; -1 and errno. */
int clinux_limit_resources(uint64_t memory, uint64_t seconds);

/* For a process that goes on for long: at most `memory` bytes of data beyond those that it has, `descriptors` open files, no
 * core file and, with `tasks` other than 0, so many processes and threads of its user. What is less already stays. -1 and
 * errno. */
int clinux_limit_worker(uint64_t memory, uint64_t descriptors, uint64_t tasks);

/* Gives up a protection from the out-of-memory killer that this process was started with: 1, 0 where it has none, -1 and
 * errno. */
int clinux_unprotect(void);

/* No privileges by execve(2) any more: the calling thread, and all of them with the filter; -1 and errno. */
int clinux_no_new_privileges(void);

/* Faults end the process by their own signal: no handler of a library starts a program that the filter would not allow. */
void clinux_default_faults(void);

/* No capabilities of the calling thread; those of a user who is not root went with clinux_confine_user. -1 and errno. */
int clinux_no_capabilities(void);

/* Landlock: no file can be opened, made, removed or run any more and no TCP port bound, with `network` 0 none reached
 * either, and no abstract socket of processes outside. For the calling thread and those that it makes; all threads where
 * Linux can do that. The version of Landlock, 0 where the kernel has none, or -1 and errno. */
int clinux_confine_landlock(int network);

/* seccomp for all threads: the system calls of a process that serves a disk and no others. Calls that name files, and
 * some that libraries try out, fail with an errno; every other one ends the process by SIGSYS with a line on standard
 * error. With `network` other than 0 sockets of the Internet can be made and connected. 0, or -1 and errno. */
int clinux_confine_filter(int network);

/* The user of that name: 1, 0 where there is none, -1 and errno. */
int clinux_user(const char *name, uint32_t *user, uint32_t *group);

#endif
