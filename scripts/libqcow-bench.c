/* SPDX-License-Identifier: BSD-2-Clause
 * Reads an image with libqcow alone, one handle and one thread each: what the QCOW plugin is measured against.
 * usage: libqcow-bench IMAGE HANDLES random|sequential BYTES SECONDS      prints reads per second */
#define _GNU_SOURCE
#include <libqcow.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static const char *image;
static size_t block;
static int is_random;
static double end;
static uint64_t size;
static atomic_ullong next_block, reads;

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static libqcow_file_t *open_image(void)
{
    libqcow_file_t *file = NULL;
    if (libqcow_file_initialize(&file, NULL) != 1
        || libqcow_file_open(file, image, libqcow_get_access_flags_read(), NULL) != 1) {
        fprintf(stderr, "libqcow cannot open %s\n", image);
        exit(1);
    }
    return file;
}

static void *reader(void *argument)
{
    libqcow_file_t *file = open_image();
    uint64_t state = (uint64_t)(uintptr_t)argument * 0x9e3779b97f4a7c15u + 1, count = 0, blocks = size / block;
    char *buffer = malloc(block);
    while (now() < end) {
        for (int i = 0; i < 16; i++) {
            state ^= state << 13, state ^= state >> 7, state ^= state << 17;
            uint64_t at = (is_random ? state : atomic_fetch_add(&next_block, 1)) % blocks * block;
            if (libqcow_file_read_buffer_at_offset(file, buffer, block, (off64_t)at, NULL) != (ssize_t)block) exit(1);
            count++;
        }
    }
    atomic_fetch_add(&reads, count);
    return NULL;
}

int main(int argc, char **argv)
{
    if (argc != 6) return 64;
    image = argv[1];
    int handles = atoi(argv[2]);
    is_random = strcmp(argv[3], "random") == 0;
    block = strtoul(argv[4], NULL, 10);
    double seconds = atof(argv[5]), start;
    libqcow_file_t *file = open_image();
    size64_t bytes = 0;
    libqcow_file_get_media_size(file, &bytes, NULL);
    size = bytes;
    pthread_t threads[64];
    if (handles < 1 || handles > 64 || size < block) return 64;
    start = now();
    end = start + seconds;
    for (int i = 0; i < handles; i++) pthread_create(&threads[i], NULL, reader, (void *)(uintptr_t)(i + 1));
    for (int i = 0; i < handles; i++) pthread_join(threads[i], NULL);
    printf("%.0f\n", (double)reads / (now() - start));
    return 0;
}
