// SPDX-License-Identifier: BSD-2-Clause
// What a process keeps for the one after it: on a socket that outlives it.
#include "internal.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static int ends[2] = {-1, -1};
static int kept[HARNESS_KEYS] = {[0 ... HARNESS_KEYS - 1] = -1};

int harness_keep_files(void)
{
    return ends[0] >= 0 || socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) == 0 ? 0 : -errno;
}

int harness_kept_files(void)
{
    int count = 0;
    for (int key = 0; key < HARNESS_KEYS; key++) {
        if (kept[key] >= 0) close(kept[key]);
        kept[key] = -1;
    }
    for (;;) {
        uint32_t key;
        union { struct cmsghdr header; char bytes[CMSG_SPACE(sizeof(int))]; } control;
        struct iovec part = {.iov_base = &key, .iov_len = sizeof key};
        struct msghdr message = {
            .msg_iov = &part, .msg_iovlen = 1, .msg_control = control.bytes, .msg_controllen = sizeof control.bytes};
        if (recvmsg(ends[1], &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC) != sizeof key) return count;
        struct cmsghdr *header = CMSG_FIRSTHDR(&message);
        if (!header || header->cmsg_type != SCM_RIGHTS || key >= HARNESS_KEYS) continue;
        if (kept[key] >= 0) close(kept[key]);
        else count++;
        memcpy(&kept[key], CMSG_DATA(header), sizeof(int));
    }
}

int harness_keep(uint32_t key, int fd)
{
    if (ends[0] < 0) return -EOPNOTSUPP;
    union { struct cmsghdr header; char bytes[CMSG_SPACE(sizeof(int))]; } control = {
        .header = {.cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS, .cmsg_len = CMSG_LEN(sizeof(int))}};
    struct iovec part = {.iov_base = &key, .iov_len = sizeof key};
    struct msghdr message = {
        .msg_iov = &part, .msg_iovlen = 1, .msg_control = control.bytes, .msg_controllen = sizeof control.bytes};
    memcpy(CMSG_DATA(&control.header), &fd, sizeof fd);
    return sendmsg(ends[0], &message, MSG_DONTWAIT) == sizeof key ? 0 : -errno;
}

int harness_kept(uint32_t key) { return kept[key] >= 0 ? kept[key] : -ENOENT; }
