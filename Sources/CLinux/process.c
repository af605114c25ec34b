/* SPDX-License-Identifier: BSD-2-Clause */
#include "clinux.h"
#include "clinux_process.h"
#include <grp.h>
#include <stddef.h>
#include <string.h>

extern char **environ;

int clinux_spawn(const char *path, char *const arguments[], int output, int kept, int second, pid_t *process)
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
    if (!error) error = posix_spawn_file_actions_addclosefrom_np(&actions, second >= 0 ? 5 : kept >= 0 ? 4 : 3);
    if (!error) error = posix_spawn(process, path, &actions, &attributes, arguments, environ);
    posix_spawn_file_actions_destroy(&actions);
    posix_spawnattr_destroy(&attributes);
    return error;
}

int clinux_pidfd_open(pid_t process) { return (int)syscall(SYS_pidfd_open, process, 0); }

int clinux_pidfd_signal(int pidfd, int signal) { return (int)syscall(SYS_pidfd_send_signal, pidfd, signal, NULL, 0); }

int clinux_pidfd_wait(int pidfd, int *code, int *signal)
{
    siginfo_t info;
    memset(&info, 0, sizeof info);
    int result;
    do result = waitid(P_PIDFD, (id_t)pidfd, &info, WEXITED | WNOHANG); while (result < 0 && errno == EINTR);
    if (result < 0) return -1;
    if (info.si_pid == 0) return 0;
    *code = info.si_code == CLD_EXITED ? info.si_status : 0;
    *signal = info.si_code == CLD_EXITED ? 0 : info.si_status;
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

int clinux_notify(const char *path, const char *message)
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
    ssize_t sent = sendto(made, message, strlen(message), MSG_NOSIGNAL, (struct sockaddr *)&address, size);
    int error = errno;
    close(made);
    errno = error;
    return sent < 0 ? -1 : 0;
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
