// SPDX-License-Identifier: BSD-2-Clause
// probe() and inspect(): functions of their argument, watched.
#include "internal.h"

#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { PAGE = 4096 };

struct pane { uint8_t *map; size_t size; const uint8_t *bytes; };

// A copy that ends where a page starts that nobody may touch, and can be read only.
static struct pane pane(const void *bytes, uint64_t length)
{
    size_t size = (size_t)(length + PAGE - 1) / PAGE * PAGE + PAGE;
    uint8_t *map = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (map == MAP_FAILED) abort();
    uint8_t *place = map + size - PAGE - length;
    if (length) memcpy(place, bytes, length);
    if (mprotect(map, size, PROT_READ) != 0 || mprotect(map + size - PAGE, PAGE, PROT_NONE) != 0) abort();
    return (struct pane){map, size, place};
}

int harness_probe(struct harness_plugin *plugin, const void *head, uint64_t head_length, const void *tail,
                  uint64_t tail_length, uint64_t file_size, const char *format)
{
    struct pane first = pane(head, head_length), last = pane(tail, tail_length);
    struct xbb_probe p = {
        .struct_size = sizeof p, .head = first.bytes, .head_len = head_length, .tail = last.bytes,
        .tail_len = tail_length, .file_size = file_size, .format = format,
    };
    int score = plugin->table->probe(&p);
    munmap(first.map, first.size);
    munmap(last.map, last.size);
    return score;
}

int harness_inspect(struct harness_plugin *plugin, int fd, const struct xbb_value *values, const char *format,
                    struct xbb_image *image, struct xbb_error *error)
{
    struct xbb_hdev *hdev = harness_immortal(sizeof *hdev);
    pthread_mutex_init(&hdev->lock, NULL);
    struct xbb_open o = {
        .struct_size = sizeof o, .flags = XBB_OPEN_RDONLY, .hdev = hdev, .fd = fd,
        .option_count = plugin->table->option_count, .options = values, .format = format, .label = "image under test",
    };
    memset(image, 0, sizeof *image);
    image->struct_size = sizeof *image;
    return plugin->table->inspect(&o, image, error);
}

/* ------------------------------------------------------------------ system calls */

static const int allowed[] = {
    SYS_brk, SYS_mmap, SYS_munmap, SYS_mremap, SYS_madvise, SYS_mprotect, SYS_futex, SYS_rt_sigreturn,
    SYS_rt_sigprocmask, SYS_exit, SYS_exit_group, SYS_getrandom, SYS_clock_gettime, SYS_gettid, SYS_getpid,
    SYS_sched_yield,
};
static int report_fd;

static void name_call(int signal, siginfo_t *info, void *context)
{
    (void)signal, (void)context;
    static const struct { int number; const char *name; } known[] = {
#define CALL(name) {SYS_##name, #name}
        CALL(openat), CALL(open), CALL(read), CALL(pread64), CALL(write), CALL(socket), CALL(connect), CALL(ioctl),
        CALL(stat), CALL(newfstatat), CALL(access), CALL(clone), CALL(clone3), CALL(fork), CALL(execve), CALL(close),
        CALL(lseek), CALL(fcntl), CALL(nanosleep), CALL(clock_nanosleep), CALL(chdir), CALL(umask), CALL(kill),
    };
    const char *name = "";
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++)
        if (known[i].number == info->si_syscall) name = known[i].name;
    char line[200];
    int n = snprintf(line, sizeof line, "fail made system call %d %s: probe() is a function of its argument, without I/O\n",
                     info->si_syscall, name);
    if (write(report_fd, line, (size_t)n) < 0) _exit(4);
    _exit(3);
}

bool harness_forbid_calls(int report)
{
    struct sock_filter program[2 * sizeof allowed / sizeof allowed[0] + 8];
    unsigned short n = 0;
    report_fd = report;
    struct sigaction action = {.sa_sigaction = name_call, .sa_flags = SA_SIGINFO};
    sigaction(SIGSYS, &action, NULL);
    program[n++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
    for (size_t i = 0; i < sizeof allowed / sizeof allowed[0]; i++) {
        program[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)allowed[i], 0, 1);
        program[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    }
    // What is written is a report; a plugin's own line goes nowhere else.
    program[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_write, 0, 3);
    program[n++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[0]));
    program[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)report, 0, 1);
    program[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    program[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRAP);
    struct sock_fprog filter = {n, program};
    return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 && prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter) == 0;
}
