/* SPDX-License-Identifier: BSD-2-Clause */
#include "clinux.h"
#include "clinux_process.h"
#include <grp.h>
#include <stddef.h>
#include <string.h>
#include <sys/xattr.h>

extern char **environ;

int clinux_spawn(const char *path, char *const arguments[], int output, int kept, int second, int third,
                 pid_t *process)
{
    posix_spawnattr_t attributes;
    posix_spawn_file_actions_t actions;
    sigset_t none, all;
    sigemptyset(&none);
    sigfillset(&all);
    int error = posix_spawnattr_init(&attributes);
    if (error) return error;
    error = posix_spawn_file_actions_init(&actions);
    if (error) {
        posix_spawnattr_destroy(&attributes);
        return error;
    }
    error = posix_spawnattr_setflags(&attributes,
                                     POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETPGROUP);
    if (!error) error = posix_spawnattr_setsigmask(&attributes, &none);
    if (!error) error = posix_spawnattr_setsigdefault(&attributes, &all);
    if (!error) error = posix_spawnattr_setpgroup(&attributes, 0);
    if (!error) error = posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
    if (!error && output >= 0) error = posix_spawn_file_actions_adddup2(&actions, output, 1);
    if (!error && kept >= 0) error = posix_spawn_file_actions_adddup2(&actions, kept, 3);
    if (!error && second >= 0) error = posix_spawn_file_actions_adddup2(&actions, second, 4);
    else if (!error && third >= 0) error = posix_spawn_file_actions_addopen(&actions, 4, "/dev/null", O_RDONLY, 0);
    if (!error && third >= 0) error = posix_spawn_file_actions_adddup2(&actions, third, 5);
    int first_closed = third >= 0 ? 6 : second >= 0 ? 5 : kept >= 0 ? 4 : 3;
    if (!error) error = posix_spawn_file_actions_addclosefrom_np(&actions, first_closed);
    if (!error) error = posix_spawn(process, path, &actions, &attributes, arguments, environ);
    posix_spawn_file_actions_destroy(&actions);
    posix_spawnattr_destroy(&attributes);
    return error;
}

int clinux_has_mark(const char *path, const char *name)
{
    char value[2];
    return getxattr(path, name, value, sizeof value) == 1 && value[0] == '1';
}

pid_t clinux_fork(void) { return fork(); }

void clinux_close_all_but(int one, int other)
{
    int low = one < other ? one : other, high = one < other ? other : one;
    if (low > 3) syscall(SYS_close_range, 3, low - 1, 0);
    if (high > low + 1) syscall(SYS_close_range, low + 1, high - 1, 0);
    syscall(SYS_close_range, high + 1, ~0u, 0);
}

int clinux_pidfd_open(pid_t process) { return (int)syscall(SYS_pidfd_open, process, 0); }

int clinux_pidfd_getfd(int pidfd, int descriptor) { return (int)syscall(SYS_pidfd_getfd, pidfd, descriptor, 0); }

int clinux_pidfd_signal(int pidfd, int signal) { return (int)syscall(SYS_pidfd_send_signal, pidfd, signal, NULL, 0); }

int clinux_pidfd_wait(int pidfd, int *code, int *signal, int *dumped)
{
    siginfo_t info;
    memset(&info, 0, sizeof info);
    int result;
    do result = waitid(P_PIDFD, (id_t)pidfd, &info, WEXITED | WNOHANG); while (result < 0 && errno == EINTR);
    if (result < 0) return -1;
    if (info.si_pid == 0) return 0;
    *code = info.si_code == CLD_EXITED ? info.si_status : 0;
    *signal = info.si_code == CLD_EXITED ? 0 : info.si_status;
    *dumped = info.si_code == CLD_DUMPED;
    return 1;
}

int clinux_group(const char *name, gid_t *group)
{
    char space[65536];
    struct group entry, *found = NULL;
    int error = getgrnam_r(name, &entry, space, sizeof space, &found);
    if (found) *group = entry.gr_gid;
    if (found || error == 0 || error == ENOENT || error == ESRCH) return found != NULL;
    errno = error;
    return -1;
}

int clinux_send_descriptors(int socket, const struct sockaddr_un *to, size_t to_size, const void *bytes, size_t count,
                            const int *descriptors, size_t descriptor_count)
{
    union {
        struct cmsghdr header;
        char space[CMSG_SPACE(CLINUX_MOST_DESCRIPTORS * sizeof(int))];
    } control;
    struct iovec data = {.iov_base = (void *)bytes, .iov_len = count};
    struct msghdr message = {.msg_name = (void *)to, .msg_namelen = (socklen_t)to_size, .msg_iov = &data, .msg_iovlen = 1};
    if (descriptor_count > CLINUX_MOST_DESCRIPTORS) { errno = E2BIG; return -1; }
    if (descriptor_count > 0) {
        memset(&control, 0, sizeof control);
        message.msg_control = &control;
        message.msg_controllen = CMSG_SPACE(descriptor_count * sizeof(int));
        struct cmsghdr *header = CMSG_FIRSTHDR(&message);
        header->cmsg_level = SOL_SOCKET;
        header->cmsg_type = SCM_RIGHTS;
        header->cmsg_len = CMSG_LEN(descriptor_count * sizeof(int));
        memcpy(CMSG_DATA(header), descriptors, descriptor_count * sizeof(int));
    }
    ssize_t sent;
    do sent = sendmsg(socket, &message, MSG_NOSIGNAL | MSG_DONTWAIT); while (sent < 0 && errno == EINTR);
    return sent < 0 ? -1 : 0;
}

ssize_t clinux_receive_descriptors(int socket, void *bytes, size_t capacity, int *descriptors, size_t *descriptor_count)
{
    union {
        struct cmsghdr header;
        char space[CMSG_SPACE(CLINUX_MOST_DESCRIPTORS * sizeof(int))];
    } control;
    struct iovec data = {.iov_base = bytes, .iov_len = capacity};
    struct msghdr message = {
        .msg_iov = &data, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    *descriptor_count = 0;
    ssize_t got;
    do got = recvmsg(socket, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC); while (got < 0 && errno == EINTR);
    if (got < 0) return -1;
    for (struct cmsghdr *header = CMSG_FIRSTHDR(&message); header; header = CMSG_NXTHDR(&message, header)) {
        if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) continue;
        size_t found = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t i = 0; i < found; i++) {
            int descriptor;
            memcpy(&descriptor, CMSG_DATA(header) + i * sizeof(int), sizeof descriptor);
            if (*descriptor_count < CLINUX_MOST_DESCRIPTORS) descriptors[(*descriptor_count)++] = descriptor;
            else close(descriptor);
        }
    }
    if (message.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) {
        while (*descriptor_count > 0) close(descriptors[--*descriptor_count]);
        errno = EMSGSIZE;
        return -1;
    }
    return got;
}

int clinux_notify(const char *path, const char *message, const int *descriptors, size_t descriptor_count)
{
    struct sockaddr_un address;
    size_t length = strlen(path);
    if (length < 2 || length >= sizeof address.sun_path) { errno = ENAMETOOLONG; return -1; }
    memset(&address, 0, sizeof address);
    address.sun_family = AF_UNIX;
    memcpy(address.sun_path, path, length);
    socklen_t size = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + length);
    if (path[0] == '@') address.sun_path[0] = 0; else size++;
    int made = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (made < 0) return -1;
    int sent = clinux_send_descriptors(made, &address, size, message, strlen(message), descriptors, descriptor_count);
    int error = errno;
    close(made);
    errno = error;
    return sent;
}

int clinux_detach(void)
{
    if (daemon(0, 0) != 0) return -1;
    int log = clinux_unix_connect("/dev/log", SOCK_DGRAM);
    if (log < 0) return 0;
    int result = dup2(log, 2);
    close(log);
    return result < 0 ? -1 : 0;
}
