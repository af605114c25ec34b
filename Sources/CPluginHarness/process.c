// SPDX-License-Identifier: BSD-2-Clause
// What belongs to the whole process, and so to the host (rule 9 of the ABI).
#include "internal.h"

#include <errno.h>
#include <locale.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

struct text { char *bytes; size_t size, used; };

static void add(struct text *text, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void add(struct text *text, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    int n = vsnprintf(text->bytes + text->used, text->size - text->used, format, arguments);
    va_end(arguments);
    if (n > 0 && (size_t)n < text->size - text->used) text->used += (size_t)n;
}

void harness_process_state(char *bytes, uint64_t size)
{
    struct text text = {bytes, size, 0};
    char folder[4096];
    mode_t mask = umask(0);
    umask(mask);
    add(&text, "the working directory=%s\n", getcwd(folder, sizeof folder) ? folder : "none");
    add(&text, "the umask=%03o\n", (unsigned)mask);
    add(&text, "the locale=%s\n", setlocale(LC_ALL, NULL));
    for (int limit = 0; limit < RLIM_NLIMITS; limit++) {
        struct rlimit value = {0, 0};
        getrlimit((__rlimit_resource_t)limit, &value);
        add(&text, "resource limit %d=%llu of %llu\n", limit, (unsigned long long)value.rlim_cur,
            (unsigned long long)value.rlim_max);
    }
    sigset_t blocked;
    pthread_sigmask(SIG_BLOCK, NULL, &blocked);
    for (int number = 1; number < 32; number++) {
        struct sigaction action;
        if (sigaction(number, NULL, &action) != 0) continue;
        add(&text, "the handler of SIG%s=%p\n", sigabbrev_np(number), (void *)(uintptr_t)action.sa_handler);
        add(&text, "the blocking of SIG%s=%d\n", sigabbrev_np(number), sigismember(&blocked, number));
    }
    add(&text, "whether the process is dumpable=%d\n", prctl(PR_GET_DUMPABLE, 0, 0, 0, 0));
    int end;
    bool alone = waitpid(-1, &end, WNOHANG) < 0 && errno == ECHILD;
    add(&text, "the number of child processes=%s\n", alone ? "0" : "more");
}
