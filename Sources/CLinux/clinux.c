/* SPDX-License-Identifier: BSD-2-Clause */
#include "clinux.h"
#include <string.h>

enum { MAX_FDS = 16 };

ssize_t clinux_send_fds(int socket, const void *bytes, size_t length, const int *fds, int count)
{
    union { char space[CMSG_SPACE(sizeof(int) * MAX_FDS)]; struct cmsghdr align; } control;
    struct iovec part = {.iov_base = (void *)bytes, .iov_len = length};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    if (count < 0 || count > MAX_FDS) { errno = EINVAL; return -1; }
    if (count > 0) {
        memset(&control, 0, sizeof control);
        message.msg_control = control.space;
        message.msg_controllen = CMSG_SPACE(sizeof(int) * (size_t)count);
        struct cmsghdr *header = CMSG_FIRSTHDR(&message);
        header->cmsg_level = SOL_SOCKET;
        header->cmsg_type = SCM_RIGHTS;
        header->cmsg_len = CMSG_LEN(sizeof(int) * (size_t)count);
        memcpy(CMSG_DATA(header), fds, sizeof(int) * (size_t)count);
    }
    ssize_t sent;
    do sent = sendmsg(socket, &message, MSG_NOSIGNAL); while (sent < 0 && errno == EINTR);
    return sent;
}

ssize_t clinux_recv_fds(int socket, void *bytes, size_t length, int *fds, int *count)
{
    union { char space[CMSG_SPACE(sizeof(int) * MAX_FDS)]; struct cmsghdr align; } control;
    struct iovec part = {.iov_base = bytes, .iov_len = length};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1,
                             .msg_control = control.space, .msg_controllen = sizeof control.space};
    int room = *count, taken = 0;
    ssize_t got;
    do got = recvmsg(socket, &message, MSG_CMSG_CLOEXEC); while (got < 0 && errno == EINTR);
    *count = 0;
    if (got < 0) return got;
    for (struct cmsghdr *header = CMSG_FIRSTHDR(&message); header; header = CMSG_NXTHDR(&message, header)) {
        if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) continue;
        int received = (int)((header->cmsg_len - CMSG_LEN(0)) / sizeof(int));
        for (int i = 0; i < received; i++) {
            int fd;
            memcpy(&fd, CMSG_DATA(header) + sizeof(int) * (size_t)i, sizeof fd);
            if (taken < room) fds[taken++] = fd; else close(fd);
        }
    }
    *count = taken;
    return got;
}

static int unix_socket(const char *path, int type, struct sockaddr_un *address)
{
    size_t length = strlen(path);
    if (length == 0 || length >= sizeof address->sun_path) { errno = ENAMETOOLONG; return -1; }
    memset(address, 0, sizeof *address);
    address->sun_family = AF_UNIX;
    memcpy(address->sun_path, path, length + 1);
    return socket(AF_UNIX, type | SOCK_CLOEXEC, 0);
}

static int close_with_error(int socket)
{
    int error = errno;
    close(socket);
    errno = error;
    return -1;
}

int clinux_unix_connect(const char *path, int type)
{
    struct sockaddr_un address;
    int made = unix_socket(path, type, &address);
    if (made < 0) return -1;
    if (connect(made, (struct sockaddr *)&address, sizeof address) != 0) return close_with_error(made);
    return made;
}

int clinux_peer_process(int socket)
{
    struct ucred peer;
    socklen_t size = sizeof peer;
    if (getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0) return -1;
    return peer.pid;
}

int clinux_unix_listen(const char *path, int type, int backlog)
{
    struct sockaddr_un address;
    int made = unix_socket(path, type | SOCK_NONBLOCK, &address);
    if (made < 0) return -1;
    if (bind(made, (struct sockaddr *)&address, sizeof address) != 0) return close_with_error(made);
    if (listen(made, backlog) != 0) return close_with_error(made);
    return made;
}

int clinux_unix_listen_private(const char *path, int backlog)
{
    unlink(path);
    mode_t mask = umask(0177);
    int made = clinux_unix_listen(path, SOCK_STREAM, backlog);
    umask(mask);
    return made;
}
