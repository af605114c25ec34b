// SPDX-License-Identifier: BSD-2-Clause
// confine-probe MEASURE ATTEMPT [ARGUMENT]: takes one measure of confinement alone and makes one attempt. Writes the
// errno of the attempt, 0 if it went well; ends with 77 where the kernel does not have the measure.
#include "clinux.h"
#include "clinux_confine.h"
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int take(const char *measure, const char *argument)
{
    if (strcmp(measure, "none") == 0) return 0;
    if (strcmp(measure, "root") == 0) return clinux_confine_root(argument);
    if (strcmp(measure, "user") == 0) return clinux_confine_user(65534, 65534);
    if (strcmp(measure, "capabilities") == 0) return clinux_no_capabilities();
    if (clinux_no_new_privileges() != 0) return -1;
    if (strcmp(measure, "filter") == 0) return clinux_confine_filter(0);
    if (strcmp(measure, "filter-network") == 0) return clinux_confine_filter(1);
    if (strcmp(measure, "landlock") == 0) {
        int version = clinux_confine_landlock(0);
        if (version == 0) exit(77);
        return version < 0 ? -1 : 0;
    }
    fprintf(stderr, "no measure %s\n", measure);
    exit(2);
}

static long make(const char *attempt, const char *argument)
{
    struct stat found;
    if (strcmp(attempt, "open") == 0) return open("/etc/passwd", O_RDONLY);
    if (strcmp(attempt, "create") == 0) return open(argument, O_RDWR | O_CREAT | O_EXCL, 0600);
    if (strcmp(attempt, "stat") == 0) return stat("/etc/passwd", &found);
    if (strcmp(attempt, "fstat") == 0) return fstat(0, &found);
    if (strcmp(attempt, "execve") == 0) return execve("/bin/true", (char *[]){"/bin/true", NULL}, NULL);
    if (strcmp(attempt, "socket") == 0) return socket(AF_INET, SOCK_STREAM, 0);
    if (strcmp(attempt, "unix-socket") == 0) return socket(AF_UNIX, SOCK_STREAM, 0);
    if (strcmp(attempt, "setuid") == 0) return setuid(0);
    if (strcmp(attempt, "chown") == 0) return chown(argument, 1, 1);
    fprintf(stderr, "no attempt %s\n", attempt);
    exit(2);
}

/* The attempt of a thread that was there before the measure: what is taken is to be taken from all. */
static struct { const char *attempt, *argument; int error; pthread_barrier_t taken; } other;

static void *run(void *unused)
{
    pthread_barrier_wait(&other.taken);
    other.error = make(other.attempt, other.argument) < 0 ? errno : 0;
    return unused;
}

int main(int count, char **words)
{
    if (count < 3) return 2;
    const char *argument = count > 3 ? words[3] : "";
    bool in_thread = strncmp(words[2], "thread-", 7) == 0;
    other.attempt = in_thread ? words[2] + 7 : words[2];
    other.argument = argument;
    pthread_t thread;
    pthread_barrier_init(&other.taken, NULL, 2);
    if (in_thread && pthread_create(&thread, NULL, run, NULL) != 0) return 2;
    if (take(words[1], argument) != 0) {
        perror(words[1]);
        return 3;
    }
    if (in_thread) {
        pthread_barrier_wait(&other.taken);
        pthread_join(thread, NULL);
    } else {
        other.error = make(other.attempt, argument) < 0 ? errno : 0;
    }
    char line[16];
    int length = snprintf(line, sizeof line, "%d\n", other.error);
    return write(1, line, (size_t)length) == length ? 0 : 4;
}
