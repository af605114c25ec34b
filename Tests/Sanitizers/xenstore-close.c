/* SPDX-License-Identifier: BSD-2-Clause
 * Lets ThreadSanitizer live through xs_close(3). libxenstore cancels the thread that reads from its socket; one that is cancelled within a
 * call that the sanitizer watches is to it a broken program ("finished with ignores enabled"), and it ends the process. Preloaded, this
 * lets that thread end by itself instead: its socket is shut down, and read(2) returns.
 * libxenstore of Xen 4.17, tools/libs/store/xs.c: struct xs_handle begins with the descriptor; nothing else here cancels threads. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <sys/socket.h>

struct xs_handle;

void xs_close(struct xs_handle *handle)
{
    void (*next)(struct xs_handle *) = (void (*)(struct xs_handle *))dlsym(RTLD_NEXT, "xs_close");
    if (handle) shutdown(*(int *)handle, SHUT_RDWR);
    next(handle);
}

int pthread_cancel(pthread_t thread)
{
    (void)thread;
    return 0;
}
