// SPDX-License-Identifier: BSD-2-Clause
// Children of a check: one that is killed in the middle of its work, and one whose system calls are counted.
#include "internal.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

int harness_fork(int *progress)
{
    int ends[2];
    if (pipe(ends) != 0) return -1;
    int child = fork();
    *progress = ends[child == 0];
    close(ends[child != 0]);
    return child;
}

void harness_mark(void) { raise(SIGUSR2); }

int harness_fork_counted(uint64_t *calls)
{
    int child = fork();
    if (child < 0) return -1;
    if (child == 0) {
        // The signals between which is counted never get here.
        if (ptrace(PTRACE_TRACEME, 0, NULL, NULL) != 0) _exit(77);
        raise(SIGSTOP);
        return 0;
    }
    bool counting = false;
    int status;
    *calls = 0;
    if (waitpid(child, &status, __WALL) != child || !WIFSTOPPED(status)) return -1;
    ptrace(PTRACE_SETOPTIONS, child, NULL, PTRACE_O_TRACESYSGOOD | PTRACE_O_TRACECLONE | PTRACE_O_EXITKILL);
    ptrace(PTRACE_SYSCALL, child, NULL, NULL);
    for (;;) {
        pid_t thread = waitpid(-1, &status, __WALL);
        if (thread < 0 && errno == EINTR) continue;
        if (thread < 0) return -1;
        if (WIFEXITED(status) || WIFSIGNALED(status)) {
            if (thread == child) return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
            continue;
        }
        int signal = WSTOPSIG(status), deliver = 0;
        if (signal == (SIGTRAP | 0x80)) {
            struct __ptrace_syscall_info info;
            long size = ptrace(PTRACE_GET_SYSCALL_INFO, thread, (void *)sizeof info, &info);
            if (counting && size > 0 && info.op == PTRACE_SYSCALL_INFO_ENTRY) ++*calls;
        } else if (signal == SIGUSR2) {
            counting = !counting;
        } else if (signal != SIGTRAP && signal != SIGSTOP) {
            deliver = signal;
        }
        ptrace(PTRACE_SYSCALL, thread, NULL, (void *)(intptr_t)deliver);
    }
}

/* ------------------------------------------------------------------ a guest that changes its buffers */

static struct harness_request *mutated;
static _Atomic bool mutating;
static _Atomic uint64_t passes;
static pthread_t mutator;

static void *mutate(void *nothing)
{
    uint8_t value = HARNESS_MUTATION_A;
    while (mutating) {
        value = value == HARNESS_MUTATION_A ? HARNESS_MUTATION_B : HARNESS_MUTATION_A;
        for (uint32_t i = 0; i < mutated->req->iovcnt; i++)
            for (size_t at = 0; at < mutated->iov[i].iov_len; at += 64)
                *((volatile uint8_t *)mutated->iov[i].iov_base + at) = value;
        passes++;
    }
    return nothing;
}

bool harness_mutate(struct harness_request *request)
{
    mutated = request, mutating = true;
    return pthread_create(&mutator, NULL, mutate, NULL) == 0;
}

uint64_t harness_mutate_end(void)
{
    mutating = false;
    pthread_join(mutator, NULL);
    return passes;
}
