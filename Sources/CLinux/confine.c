/* SPDX-License-Identifier: BSD-2-Clause
 * Everything of confinement but the filter of system calls: root directory, user, capabilities, Landlock. */
#include "clinux.h"
#include "clinux_confine.h"
#include <grp.h>
#include <linux/capability.h>
#include <pwd.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>

int clinux_confine_root(const char *path)
{
    return chroot(path) != 0 || chdir("/") != 0 ? -1 : 0;
}

int clinux_confine_user(uint32_t user, uint32_t group)
{
    if (setgroups(0, NULL) != 0 || setresgid(group, group, group) != 0 || setresuid(user, user, user) != 0) return -1;
    /* With all three numbers changed nothing is kept to go back with; a kernel that thinks otherwise is not trusted. */
    if (user != 0 && (setuid(0) == 0 || geteuid() == 0)) { errno = EPERM; return -1; }
    return 0;
}

int clinux_limit_resources(uint64_t memory, uint64_t seconds)
{
    unsigned long pages = 0;
    FILE *file = fopen("/proc/self/statm", "re");
    if (!file || fscanf(file, "%lu", &pages) != 1) {
        if (file) fclose(file);
        return -1;
    }
    fclose(file);
    struct rusage used;
    if (getrusage(RUSAGE_SELF, &used) != 0) return -1;
    rlim_t space = (rlim_t)pages * (rlim_t)sysconf(_SC_PAGESIZE) + memory;
    rlim_t time = (rlim_t)used.ru_utime.tv_sec + (rlim_t)used.ru_stime.tv_sec + 1 + seconds;
    return setrlimit(RLIMIT_AS, &(struct rlimit){space, space}) != 0 ||
                   setrlimit(RLIMIT_CPU, &(struct rlimit){time, time}) != 0 ||
                   setrlimit(RLIMIT_CORE, &(struct rlimit){0, 0}) != 0 ? -1 : 0;
}

static int lower(__rlimit_resource_t resource, uint64_t value)
{
    struct rlimit limit;
    if (getrlimit(resource, &limit) != 0) return -1;
    if (limit.rlim_max > value) limit.rlim_max = (rlim_t)value;
    if (limit.rlim_cur > limit.rlim_max) limit.rlim_cur = limit.rlim_max;
    return setrlimit(resource, &limit);
}

int clinux_limit_worker(uint64_t memory, uint64_t descriptors, uint64_t tasks)
{
    unsigned long pages = 0;
    FILE *file = fopen("/proc/self/statm", "re");
    /* The sixth number: data and stack. */
    if (!file || fscanf(file, "%*u %*u %*u %*u %*u %lu", &pages) != 1) {
        if (file) fclose(file);
        else return -1;
        errno = EIO;
        return -1;
    }
    fclose(file);
    uint64_t data = (uint64_t)pages * (uint64_t)sysconf(_SC_PAGESIZE);
    return lower(RLIMIT_DATA, data + memory) != 0 || lower(RLIMIT_NOFILE, descriptors) != 0 || lower(RLIMIT_CORE, 0) != 0 ||
                   (tasks > 0 && lower(RLIMIT_NPROC, tasks) != 0) ? -1 : 0;
}

int clinux_unprotect(void)
{
    static const char path[] = "/proc/self/oom_score_adj";
    int score = 0, result = 0;
    FILE *file = fopen(path, "re");
    if (!file) return errno == ENOENT ? 0 : -1;
    if (fscanf(file, "%d", &score) != 1) score = 0;
    fclose(file);
    if (score >= 0) return 0;
    file = fopen(path, "we");
    if (!file) return -1;
    if (fputs("0", file) < 0) result = -1;
    if (fclose(file) != 0) result = -1;
    return result == 0 ? 1 : -1;
}

void clinux_default_faults(void)
{
    static const int faults[] = {SIGQUIT, SIGABRT, SIGBUS, SIGFPE, SIGILL, SIGSEGV, SIGTRAP, SIGSYS};
    for (size_t i = 0; i < sizeof faults / sizeof faults[0]; i++) signal(faults[i], SIG_DFL);
}

int clinux_no_new_privileges(void) { return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); }

int clinux_no_capabilities(void)
{
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3, .pid = 0};
    struct __user_cap_data_struct none[_LINUX_CAPABILITY_U32S_3];
    memset(none, 0, sizeof none);
    return (int)syscall(SYS_capset, &header, none);
}

/* Landlock by number: kernels are newer than the headers of the C library. */
enum { LANDLOCK_CREATE_RULESET = 444, LANDLOCK_RESTRICT_SELF = 446, VERSION_QUESTION = 1 };
enum { ALL_THREADS_FLAG = 1 << 3, ALL_THREADS_VERSION = 8, ABSTRACT_SOCKETS = 1 << 0, BIND_TCP = 1 << 0, CONNECT_TCP = 1 << 1 };

struct ruleset { uint64_t files, network, scopes; };

int clinux_confine_landlock(int network)
{
    /* How many rights on files each version knows: one row of bits that became longer. */
    static const unsigned char file_rights[] = {0, 13, 14, 15, 15, 16};
    int version = (int)syscall(LANDLOCK_CREATE_RULESET, NULL, 0, VERSION_QUESTION);
    if (version < 0) return errno == ENOSYS || errno == EOPNOTSUPP ? 0 : -1;
    unsigned rights = file_rights[version < 5 ? version : 5];
    struct ruleset rules = {.files = (1ull << rights) - 1};
    size_t size = sizeof rules.files;
    if (version >= 4) {
        rules.network = BIND_TCP | (network ? 0 : CONNECT_TCP);
        size = offsetof(struct ruleset, scopes);
    }
    if (version >= 6) {
        rules.scopes = ABSTRACT_SOCKETS;
        size = sizeof rules;
    }
    int set = (int)syscall(LANDLOCK_CREATE_RULESET, &rules, size, 0);
    if (set < 0) return -1;
    unsigned flags = version >= ALL_THREADS_VERSION ? ALL_THREADS_FLAG : 0;
    int result = (int)syscall(LANDLOCK_RESTRICT_SELF, set, flags);
    if (result != 0 && flags != 0) result = (int)syscall(LANDLOCK_RESTRICT_SELF, set, 0);
    int error = errno;
    close(set);
    errno = error;
    return result != 0 ? -1 : version;
}

int clinux_user(const char *name, uint32_t *user, uint32_t *group)
{
    char space[16384];
    struct passwd entry, *found = NULL;
    int error = getpwnam_r(name, &entry, space, sizeof space, &found);
    if (!found) {
        /* "Not found" has many names, see getpwnam(3). */
        if (error == 0 || error == ENOENT || error == ESRCH || error == EBADF || error == EPERM) return 0;
        errno = error;
        return -1;
    }
    *user = entry.pw_uid;
    *group = entry.pw_gid;
    return 1;
}
