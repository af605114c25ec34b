/* SPDX-License-Identifier: BSD-2-Clause
 * GnuTLS, and what of the system's sockets and memory Swift does not import. */
#ifndef CGNUTLS_SHIM_H
#define CGNUTLS_SHIM_H

#include <fcntl.h>
#include <gnutls/gnutls.h>
#include <gnutls/x509.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <linux/vm_sockets.h>

/* Of fcntl(2) and linux/fcntl.h, which cannot be included beside fcntl.h. */
enum { CGNUTLS_ADD_SEALS = 1033, CGNUTLS_GET_SEALS = 1034, CGNUTLS_SEALS = 1 | 2 | 4 /* SEAL, SHRINK, GROW */ };

/* Memory whose size can be fixed: memfd_create(2), of which the C library shows nothing to who did not define _GNU_SOURCE. */
static inline int cgnutls_memory(const char *name)
{
    return (int)syscall(SYS_memfd_create, name, 1u | 2u /* MFD_CLOEXEC, MFD_ALLOW_SEALING */);
}

/* Fixes the size of memory for ever. */
static inline int cgnutls_seal(int file) { return fcntl(file, CGNUTLS_ADD_SEALS, CGNUTLS_SEALS); }

/* True if nobody can change the size of the memory any more. */
static inline int cgnutls_is_sealed(int file)
{
    int seals = fcntl(file, CGNUTLS_GET_SEALS);
    return seals >= 0 && (seals & CGNUTLS_SEALS) == CGNUTLS_SEALS;
}

/* Of socket.h, whose enumerations two modules of C would bring to Swift. */
static const int cgnutls_now = MSG_DONTWAIT, cgnutls_now_silently = MSG_DONTWAIT | MSG_NOSIGNAL;

/* POLLRDHUP of poll(2), which the C library shows to who defined _GNU_SOURCE only. */
enum { cgnutls_hang_up = 0x2000 };

/* Tells the other end that nothing follows. */
static inline int cgnutls_end_sending(int socket) { return shutdown(socket, SHUT_WR); }

/* Ends a connection for all who have a descriptor of it. */
static inline int cgnutls_end(int socket) { return shutdown(socket, SHUT_RDWR); }

/* gnutls_free() is a variable, which Swift does not read. */
static inline void cgnutls_free(void *memory) { gnutls_free(memory); }

#endif
