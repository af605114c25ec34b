/* SPDX-License-Identifier: BSD-2-Clause
 * The nbdkit plugin API, version 2, and what of it Swift cannot call. The functions are in the nbdkit program. */
#ifndef CNBDKIT_SHIM_H
#define CNBDKIT_SHIM_H

/* As in clinux.h: types of the C library must look the same to all modules, and to Swift's glibc module. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <features.h>
#define fds_bits __fds_bits
#include <sys/select.h>
#undef fds_bits
#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

/* Variadic in C. */
static inline void cnbdkit_error(const char *message) { nbdkit_error("%s", message); }
static inline void cnbdkit_debug(const char *message) { nbdkit_debug("%s", message); }

#endif
