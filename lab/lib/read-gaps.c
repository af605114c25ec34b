// SPDX-License-Identifier: BSD-2-Clause
// How long a guest waits for its disk: reads 4 KiB past all caches, one read after another, and prints for each window of time
// "UPTIME LONGEST READS": the seconds at its end, the longest read that ended in it in microseconds, and how many did. A read that
// takes longer than a window makes that window longer.
// usage: read-gaps DEVICE MILLISECONDS STOP    (ends when the file STOP is there)
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

enum { block = 4096, blocks = 16 };

static long long microseconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000LL + now.tv_nsec / 1000;
}

int main(int count, char **words) {
    void *buffer;
    if (count != 4 || posix_memalign(&buffer, block, block) != 0) return 64;
    int disk = open(words[1], O_RDONLY | O_DIRECT | O_CLOEXEC);
    if (disk < 0) return perror(words[1]), 1;
    const long long window = atoll(words[2]) * 1000;
    while (access(words[3], F_OK) != 0) {
        const long long begin = microseconds();
        long long longest = 0, end = begin;
        int reads = 0;
        while (end - begin < window) {
            const long long asked = microseconds();
            if (pread(disk, buffer, block, (off_t)(reads % blocks) * block) != block) return perror("read"), 1;
            end = microseconds();
            if (end - asked > longest) longest = end - asked;
            reads += 1;
            usleep(2000);
        }
        printf("%lld.%03lld %lld %d\n", end / 1000000, end / 1000 % 1000, longest, reads);
        fflush(stdout);
    }
    return 0;
}
