/* SPDX-License-Identifier: BSD-2-Clause */
/* A guest's configuration as xl reads it: Xen's own parser (libxlutil). */
#ifndef XLCONFIG_H
#define XLCONFIG_H
#include <stddef.h>

struct xlconfig_disk {
    char format[16];  /* "raw", "qcow2" */
    char backend[16]; /* backendtype: "unknown" where the configuration does not say */
    char script[64];  /* "" for none */
    char vdev[32];
    char target[512];
    char backend_domain[64]; /* "" for none */
    int writable, is_cdrom;
};

/* Parses a configuration. Returns the number of its disks, of which the first `most` are described; -1 where it is wrong,
 * and xl's message is on standard error. */
int xlconfig_disks(const char *text, size_t length, struct xlconfig_disk *disks, int most);

#endif
