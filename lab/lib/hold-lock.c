// SPDX-License-Identifier: BSD-2-Clause
// Takes QEMU's lock of a reader on a file (shared locks of the bytes 100 to 299), says so, and keeps it until it is killed.
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

int main(int count, char **arguments)
{
    int file = count == 2 ? open(arguments[1], O_RDONLY) : -1;
    if (file < 0) {
        perror("hold-lock");
        return 1;
    }
    for (off_t byte = 100; byte < 300; byte++) {
        struct flock lock = {.l_type = F_RDLCK, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1};
        if (fcntl(file, F_OFD_SETLK, &lock) != 0) {
            perror("hold-lock: fcntl");
            return 1;
        }
    }
    puts("held");
    fflush(stdout);
    for (;;) pause();
}
