/* SPDX-License-Identifier: BSD-2-Clause
 * The filter of system calls. It is made once, at run time, from the tables below; the kernel remembers which calls are
 * allowed whatever their arguments are, so that those cost nothing. ioctl comes first: it is the one on the hot path
 * whose arguments are looked at. */
#include "clinux.h"
#include "clinux_confine.h"
#include "clinux_log.h"
#include <dlfcn.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <stddef.h>
#include <string.h>

/* Linux' headers of Xen's devices need these two names and do not bring them. */
typedef uint16_t domid_t;
typedef uint32_t grant_ref_t;
#include <xen/evtchn.h>
#include <xen/gntdev.h>

#if defined(__x86_64__)
#define NATIVE AUDIT_ARCH_X86_64
#elif defined(__aarch64__)
#define NATIVE AUDIT_ARCH_AARCH64
#endif

/* What serving needs, most frequent first. */
static const int allowed[] = {
    SYS_read, SYS_write, SYS_futex, SYS_io_submit, SYS_io_getevents, SYS_io_pgetevents, SYS_ppoll, SYS_epoll_pwait,
#ifdef SYS_epoll_wait
    SYS_epoll_wait, SYS_poll,
#endif
    SYS_pread64, SYS_pwrite64, SYS_preadv, SYS_pwritev, SYS_preadv2, SYS_pwritev2, SYS_readv, SYS_writev,
    SYS_fdatasync, SYS_fsync, SYS_fallocate, SYS_ftruncate, SYS_sync_file_range, SYS_fadvise64, SYS_lseek, SYS_fstat,
    SYS_fstatfs, SYS_flock,
    /* clocks, also where the vDSO cannot tell the time */
    SYS_clock_gettime, SYS_clock_getres, SYS_gettimeofday, SYS_clock_nanosleep, SYS_nanosleep,
#ifdef SYS_time
    SYS_time,
#endif
    /* descriptors of queues, timers and clients of the control socket */
    SYS_close, SYS_dup, SYS_dup3, SYS_eventfd2, SYS_epoll_create1, SYS_epoll_ctl, SYS_timerfd_create,
    SYS_timerfd_settime, SYS_timerfd_gettime, SYS_pipe2, SYS_io_setup, SYS_io_destroy, SYS_io_cancel, SYS_accept4,
    SYS_sendmsg, SYS_recvmsg, SYS_recvfrom, SYS_shutdown, SYS_getsockopt,
    /* memory; mmap and mprotect are among those whose arguments are looked at */
    SYS_brk, SYS_munmap, SYS_mremap, SYS_madvise, SYS_mlock, SYS_munlock, SYS_mincore, SYS_membarrier,
    /* threads and signals */
    SYS_exit, SYS_exit_group, SYS_set_robust_list, SYS_rseq, SYS_rt_sigreturn, SYS_rt_sigprocmask, SYS_sigaltstack,
    SYS_restart_syscall, SYS_sched_yield, SYS_sched_getaffinity, SYS_gettid, SYS_getpid, SYS_getppid, SYS_getuid,
    SYS_geteuid, SYS_getgid, SYS_getegid, SYS_getcpu, SYS_getrusage, SYS_getrandom, SYS_sysinfo, SYS_uname,
};

/* Libraries try these and can do without: an errno, and the process lives. */
static const struct { int call, error; } refused[] = {
    {SYS_openat, EACCES}, {SYS_openat2, EACCES}, {SYS_readlinkat, EACCES}, {SYS_faccessat, EACCES},
    {SYS_faccessat2, EACCES}, {SYS_unlinkat, EACCES}, {SYS_statfs, EACCES}, {SYS_getcwd, EACCES},
#ifdef SYS_open
    {SYS_open, EACCES}, {SYS_readlink, EACCES}, {SYS_access, EACCES}, {SYS_unlink, EACCES}, {SYS_stat, EACCES},
    {SYS_lstat, EACCES},
#endif
    {SYS_clone3, ENOSYS}, /* its flags are in memory, out of sight; the C library goes on with clone */
    {SYS_io_uring_setup, EPERM}, /* a ring would do behind the filter's back what the filter refuses */
};

/* Requests to grant table, event channels and block devices. */
static const unsigned long requests[] = {
    IOCTL_GNTDEV_GRANT_COPY, IOCTL_EVTCHN_NOTIFY, IOCTL_GNTDEV_MAP_GRANT_REF, IOCTL_GNTDEV_UNMAP_GRANT_REF,
    IOCTL_GNTDEV_GET_OFFSET_FOR_VADDR,
    IOCTL_EVTCHN_BIND_INTERDOMAIN, IOCTL_EVTCHN_UNBIND,
    BLKDISCARD, BLKZEROOUT, BLKSECDISCARD, BLKGETSIZE64, BLKROGET, BLKSSZGET, BLKPBSZGET, BLKIOMIN, BLKIOOPT,
    BLKALIGNOFF, BLKROTATIONAL, BLKDISCARDZEROES, FIONBIO, FIONREAD,
};

static const int file_commands[] = {
    F_GETFL, F_SETFL, F_GETFD, F_SETFD, F_DUPFD_CLOEXEC, F_OFD_SETLK, F_OFD_SETLKW, F_OFD_GETLK,
};

static const int process_commands[] = {PR_SET_NAME, PR_GET_NAME, 0x53564d41 /* PR_SET_VMA: names of memory */};

enum { CAPACITY = 640 };

struct program {
    struct sock_filter steps[CAPACITY];
    unsigned short     count;
};

static void add(struct program *program, unsigned short code, uint32_t k, unsigned char jt, unsigned char jf)
{
    if (program->count < CAPACITY) program->steps[program->count] = (struct sock_filter){code, jt, jf, k};
    program->count++;
}

static void load(struct program *program, unsigned offset) { add(program, BPF_LD | BPF_W | BPF_ABS, offset, 0, 0); }
static void end(struct program *program, uint32_t result) { add(program, BPF_RET | BPF_K, result, 0, 0); }

static void if_equal(struct program *program, uint32_t value, uint32_t result)
{
    add(program, BPF_JMP | BPF_JEQ | BPF_K, value, 0, 1);
    end(program, result);
}

static void if_bits(struct program *program, uint32_t bits, uint32_t result)
{
    add(program, BPF_JMP | BPF_JSET | BPF_K, bits, 0, 1);
    end(program, result);
}

static unsigned low(int argument) { return (unsigned)(offsetof(struct seccomp_data, args) + 8 * (size_t)argument); }
static unsigned high(int argument) { return low(argument) + 4; } /* both machines are little-endian */

/* Allows the call if an argument, a pointer, is null: both halves of it are looked at. */
static void allow_null(struct program *program, int argument)
{
    load(program, low(argument));
    add(program, BPF_JMP | BPF_JEQ | BPF_K, 0, 0, 3);
    load(program, high(argument));
    if_equal(program, 0, SECCOMP_RET_ALLOW);
}

/* Begins what is done for one call only; its end is `close_call`, which every path through it must reach or end. */
static unsigned short open_call(struct program *program, int call)
{
    add(program, BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)call, 0, 0);
    return (unsigned short)(program->count - 1);
}

static void close_call(struct program *program, unsigned short opened, uint32_t otherwise)
{
    end(program, otherwise);
    if (opened < CAPACITY) program->steps[opened].jf = (unsigned char)(program->count - opened - 1);
}

static const uint32_t ALLOW = SECCOMP_RET_ALLOW, KILL = SECCOMP_RET_KILL_PROCESS, TRAP = SECCOMP_RET_TRAP;
static uint32_t fail_with(int error) { return SECCOMP_RET_ERRNO | (uint32_t)error; }

#define EACH(index, table) (size_t index = 0; index < sizeof(table) / sizeof(table)[0]; index++)

static void add_descriptor_calls(struct program *program)
{
    unsigned short call = open_call(program, SYS_ioctl);
    load(program, low(1));
    for EACH (i, requests) if_equal(program, (uint32_t)requests[i], ALLOW);
    close_call(program, call, fail_with(ENOTTY));

    call = open_call(program, SYS_fcntl);
    load(program, low(1));
    for EACH (i, file_commands) if_equal(program, (uint32_t)file_commands[i], ALLOW);
    close_call(program, call, fail_with(EPERM));

    /* What fstat and direct I/O ask of an open descriptor. The name beside the flag cannot be looked at from here; the
     * root directory is empty, so that a name leads nowhere. */
    call = open_call(program, SYS_newfstatat);
    load(program, low(3));
    if_bits(program, AT_EMPTY_PATH, ALLOW);
    close_call(program, call, fail_with(EACCES));
    call = open_call(program, SYS_statx);
    load(program, low(2));
    if_bits(program, AT_EMPTY_PATH, ALLOW);
    close_call(program, call, fail_with(EACCES));

    call = open_call(program, SYS_sendto); /* on connected sockets, to where they are connected */
    allow_null(program, 4);
    close_call(program, call, fail_with(EPERM));
}

static void add_memory_calls(struct program *program)
{
    static const int calls[] = {SYS_mmap, SYS_mprotect};
    for EACH (i, calls) {
        unsigned short call = open_call(program, calls[i]);
        load(program, low(2));
        if_bits(program, PROT_EXEC, fail_with(EACCES));
        close_call(program, call, ALLOW);
    }
}

static void add_process_calls(struct program *program)
{
    unsigned short call = open_call(program, SYS_clone); /* threads, no processes */
    load(program, low(0));
    if_bits(program, CLONE_NEWNS | CLONE_NEWCGROUP | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNET,
            TRAP);
    if_bits(program, CLONE_THREAD, ALLOW);
    close_call(program, call, TRAP);

    call = open_call(program, SYS_tgkill); /* threads of this process: abort() and pthread_kill() */
    load(program, low(0));
    if_equal(program, (uint32_t)getpid(), ALLOW);
    close_call(program, call, TRAP);

    call = open_call(program, SYS_rt_sigaction); /* the end that SIGSYS brings cannot be taken away */
    load(program, low(0));
    if_equal(program, SIGSYS, KILL);
    close_call(program, call, ALLOW);

    call = open_call(program, SYS_prctl);
    load(program, low(0));
    for EACH (i, process_commands) if_equal(program, (uint32_t)process_commands[i], ALLOW);
    close_call(program, call, TRAP);

    call = open_call(program, SYS_prlimit64); /* to look, at oneself */
    load(program, low(0));
    add(program, BPF_JMP | BPF_JEQ | BPF_K, 0, 1, 0);
    end(program, fail_with(EPERM));
    allow_null(program, 2);
    close_call(program, call, fail_with(EPERM));
}

static void add_network_calls(struct program *program)
{
    static const int calls[] = {SYS_connect, SYS_setsockopt, SYS_getsockname, SYS_getpeername};
    unsigned short call = open_call(program, SYS_socket);
    load(program, low(0));
    if_equal(program, AF_INET, ALLOW);
    if_equal(program, AF_INET6, ALLOW);
    close_call(program, call, fail_with(EAFNOSUPPORT));
    for EACH (i, calls) if_equal(program, (uint32_t)calls[i], ALLOW);
#ifdef SYS_epoll_create
    if_equal(program, SYS_epoll_create, ALLOW); /* librados; it can no more than epoll_create1 */
#endif
}

static size_t append(char *line, size_t at, const char *text)
{
    size_t length = strlen(text);
    memcpy(line + at, text, length);
    return at + length;
}

/* The last words of a process that asked for what it may not have. Nothing here may allocate or lock. */
static void report(int signal, siginfo_t *info, void *context)
{
    char line[160], digits[12];
    int number = info->si_syscall, count = 0;
    (void)context;
    do digits[count++] = (char)('0' + number % 10); while ((number /= 10) > 0 && count < 11);
    size_t length = append(line, 0, "xbb-vbd: confinement: system call ");
    while (count > 0) line[length++] = digits[--count];
    length = append(line, length, " is not allowed (ausyscall(8) names it); this process ends\n");
    (void)clinux_last_words(line, length);
    /* The handler is gone by now (SA_RESETHAND), and the signal is not blocked (SA_NODEFER). */
    syscall(SYS_tgkill, getpid(), syscall(SYS_gettid), signal);
}

int clinux_confine_filter(int network)
{
#ifndef NATIVE
    (void)network;
    errno = ENOSYS;
    return -1;
#else
    /* pthread_cancel() looks for this library when it is called first, and then no file can be opened any more. */
    (void)dlopen("libgcc_s.so.1", RTLD_NOW);

    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_sigaction = report;
    action.sa_flags = (int)(SA_SIGINFO | SA_RESETHAND | SA_NODEFER);
    sigemptyset(&action.sa_mask);
    if (sigaction(SIGSYS, &action, NULL) != 0) return -1;

    struct program program;
    program.count = 0;
    load(&program, offsetof(struct seccomp_data, arch));
    add(&program, BPF_JMP | BPF_JEQ | BPF_K, NATIVE, 1, 0);
    end(&program, KILL);
    load(&program, offsetof(struct seccomp_data, nr));
#ifdef __x86_64__
    add(&program, BPF_JMP | BPF_JGE | BPF_K, 0x40000000, 0, 1); /* x32 */
    end(&program, KILL);
#endif
    add_descriptor_calls(&program);
    for EACH (i, allowed) if_equal(&program, (uint32_t)allowed[i], ALLOW);
    add_memory_calls(&program);
    add_process_calls(&program);
    for EACH (i, refused) if_equal(&program, (uint32_t)refused[i].call, fail_with(refused[i].error));
    if (network) add_network_calls(&program);
    end(&program, TRAP);
    if (program.count > CAPACITY) { errno = E2BIG; return -1; }

    struct sock_fprog code = {.len = program.count, .filter = program.steps};
    long result = syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &code);
    if (result > 0) { errno = EBUSY; return -1; } /* a thread has a filter that this process does not know */
    return result != 0 ? -1 : 0;
#endif
}
