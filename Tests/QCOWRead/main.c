/* SPDX-License-Identifier: BSD-2-Clause
 * Opens one image in the QCOW plugin and reads from it, as a host would, in a process that may be lost: limits on memory
 * and processor time, and one line that says what happened.
 *
 * usage: qcow-read PLUGIN FORMAT IMAGE [OUTPUT]       password: XBB_PASSWORD
 * exit status: 0 all read, 1 refused, 2 opened, but some reads failed, 3 wrong usage */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "harness.h"

enum { STEP = 64 << 10, MOST_STEPS = 1024 };

/* Values of all options: the defaults, and the password. */
static struct xbb_value *values(const struct xbb_plugin *table)
{
    const char *password = getenv("XBB_PASSWORD");
    struct xbb_value *list = calloc(table->option_count + 1, sizeof *list);
    for (uint32_t i = 0; list && i < table->option_count; i++) {
        const struct xbb_option *option = &table->options[i];
        list[i].str = option->def;
        switch (option->type) {
        case XBB_OPT_BOOL: list[i].num = strcmp(option->def, "on") == 0; break;
        case XBB_OPT_UINT: case XBB_OPT_SIZE: {
            char *end;
            list[i].num = strtoull(option->def, &end, 10) << (*end == 'K' ? 10 : *end == 'M' ? 20 : *end == 'G' ? 30 : 0);
            break;
        }
        case XBB_OPT_SECRET: if (password) list[i].str = password; break;
        default: break;
        }
    }
    return list;
}

static int inspect(const struct xbb_plugin *table, int fd, const char *format, const struct xbb_value *list)
{
    struct xbb_image image = { .struct_size = sizeof image };
    struct xbb_error error = { 0 };
    struct xbb_open open = {
        .struct_size = sizeof open, .flags = XBB_OPEN_RDONLY, .fd = fd, .option_count = table->option_count,
        .options = list, .format = format, .label = "image",
    };
    int status = table->inspect(&open, &image, &error);
    if (status != 0) printf("inspect: %d %s\n", status, error.message);
    else printf("inspect: flags=%u size=%llu memory=%llu refs=%u\n", image.flags,
                (unsigned long long)image.virtual_size, (unsigned long long)image.metadata_memory, image.ref_count);
    return status;
}

/* Every step of a small disk; steps at the ends and spread over a large one. */
static int read_disk(struct harness_disk *disk, uint64_t size, int out)
{
    struct harness_queue *queue;
    struct xbb_error error = { 0 };
    int status = harness_queue_open(disk, 0, 1, &queue, &error);
    if (status != 0) { printf("queue: %d %s\n", status, error.message); return 1; }
    struct harness_request *request = harness_request_new();
    char *buffer = aligned_alloc(4096, STEP);
    uint64_t steps = (size + STEP - 1) / STEP, count = !out && steps > MOST_STEPS ? MOST_STEPS : steps, failed = 0;
    int last = 0;
    for (uint64_t i = 0; i < count; i++) {
        uint64_t step = count == steps ? i : i < 64 ? i : i < 128 ? steps - 128 + i : steps / count * i;
        uint64_t offset = step * STEP, length = size - offset < STEP ? size - offset : STEP;
        uint32_t segment = (uint32_t)length;
        harness_shape(request, &segment, 1);
        request->req->op = XBB_OP_READ;
        request->req->offset = offset;
        if (harness_submit(queue, &request, 1) != 1 || harness_run(queue, 0, 5000, false) != 0) { failed++; continue; }
        harness_fetch(request, buffer, length);
        if (request->status != 0) { failed++; last = request->status; memset(buffer, 0xEE, length); }
        if (out > 0 && pwrite(out, buffer, length, (off_t)offset) != (ssize_t)length) { perror("write"); exit(3); }
    }
    printf("read: %llu of %llu steps, %llu failed, last %d\n", (unsigned long long)count, (unsigned long long)steps,
           (unsigned long long)failed, last);
    char log[8192] = "";
    harness_log(disk, log, sizeof log);
    if (failed) printf("log: %s\n", log);
    free(buffer);
    harness_request_free(request);
    harness_queue_close(queue);
    return failed ? 2 : 0;
}

int main(int argc, char **argv)
{
    if (argc < 4) { fprintf(stderr, "usage: qcow-read PLUGIN FORMAT IMAGE [OUTPUT]\n"); return 3; }
    setvbuf(stdout, NULL, _IOLBF, 0);
    struct rlimit cpu = { 2, 2 }, core = { 0, 0 }, memory = { 1ul << 30, 1ul << 30 };
    setrlimit(RLIMIT_CORE, &core);
    if (argc == 4 && (setrlimit(RLIMIT_CPU, &cpu) || setrlimit(RLIMIT_AS, &memory))) { perror("setrlimit"); return 3; }
    char message[256];
    struct harness_plugin *plugin = harness_load(argv[1], "qcow", message);
    if (!plugin) { fprintf(stderr, "%s\n", message); return 3; }
    const struct xbb_plugin *table = harness_table(plugin);
    int fd = open(argv[3], O_RDONLY | O_CLOEXEC), out = argc > 4 ? open(argv[4], O_RDWR | O_CREAT | O_TRUNC, 0600) : 0;
    if (fd < 0 || out < 0) { perror(argv[3]); return 3; }
    struct xbb_value *list = values(table);
    inspect(table, fd, argv[2], list);
    struct harness_disk *disk;
    struct xbb_error error = { 0 };
    int status = harness_prepare(plugin, fd, XBB_OPEN_RDONLY, list, argv[2], &disk, &error);
    if (status == 0) status = harness_start(disk, &error);
    if (status != 0) { printf("open: %d %s\n", status, error.message); return 1; }
    struct xbb_info info = { .struct_size = sizeof info };
    harness_info(disk, &info);
    if (out > 0 && ftruncate(out, (off_t)info.size) != 0) { perror("ftruncate"); return 3; }
    int result = read_disk(disk, info.size, out);
    harness_close(disk);
    return result;
}
