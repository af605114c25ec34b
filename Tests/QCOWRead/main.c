/* SPDX-License-Identifier: BSD-2-Clause
 * Opens one image in the QCOW plugin and reads from it, as a host would, in a process that may be lost: limits on memory
 * and processor time, and one line that says what happened. With XBB_WRITE=1 it writes to the image, too: sectors that say
 * where on the disk they belong.
 *
 * usage: qcow-read PLUGIN FORMAT IMAGE [OUTPUT]       password: XBB_PASSWORD
 * exit status: 0 all done, 1 refused, 2 opened, but some requests failed, 3 wrong usage, 4 what was written reads otherwise */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "harness.h"

enum { STEP = 64 << 10, MOST_STEPS = 1024, MOST_WRITES = 24, AT_ONCE = 16 };

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

/* A sector that a guest writes: its name, where it belongs, and the round. hostile.py looks for them. */
static void fill(char *sector, uint64_t offset, int round)
{
    memset(sector, 0x5a, 512);
    memcpy(sector, "XBBGUEST", 8);
    for (int i = 0; i < 8; i++) sector[8 + i] = (char)(offset >> (56 - 8 * i));
    sector[16] = (char)round;
}

static int perform(struct harness_queue *queue, struct harness_request *request, int op, uint64_t offset, uint64_t length,
                   char *data)
{
    uint32_t segment = (uint32_t)length;
    harness_shape(request, &segment, op == XBB_OP_READ || op == XBB_OP_WRITE ? 1 : 0);
    request->req->op = (uint8_t)op;
    request->req->flags = op == XBB_OP_WRITE_ZEROES && offset / STEP % 2 ? XBB_REQ_MAY_UNMAP : 0;
    request->req->offset = offset;
    request->req->length = length;
    if (op == XBB_OP_WRITE) harness_put(request, data, length);
    if (harness_submit(queue, &request, 1) != 1 || harness_run(queue, 0, 5000, false) != 0) return -ETIMEDOUT;
    if (op == XBB_OP_READ) harness_fetch(request, data, length);
    return request->status;
}

/* Everything that a guest can do, at places that are spread over the disk; what was written is read at once. */
static int write_disk(struct harness_disk *disk, uint64_t size, int round)
{
    static char data[STEP], copy[STEP];
    struct harness_queue *queue;
    struct xbb_error error = { 0 };
    int status = harness_queue_open(disk, 0, 32, &queue, &error), last = 0;
    if (status != 0) { printf("queue: %d %s\n", status, error.message); return 1; }
    struct harness_request *request = harness_request_new(), *many[AT_ONCE];
    uint64_t steps = size / STEP, count = steps < MOST_WRITES ? steps : MOST_WRITES, failed = 0, done = 0, wrong = 0;
    for (uint64_t i = 0; i < count; i++) {
        uint64_t offset = (count == steps ? i : i < 12 ? i : steps / count * i) * STEP;
        static const int operations[] = { XBB_OP_WRITE, XBB_OP_WRITE, XBB_OP_WRITE_ZEROES, XBB_OP_WRITE, XBB_OP_DISCARD };
        int op = operations[(i + (uint64_t)round) % 5];
        uint64_t length = op == XBB_OP_WRITE && i % 2 ? 4096 : STEP;
        for (uint64_t at = 0; at < length; at += 512) fill(data + at, offset + at, round);
        if (op == XBB_OP_WRITE_ZEROES) memset(data, 0, length);
        status = perform(queue, request, op, offset, length, data);
        done++;
        if (status != 0) { failed++; last = status; continue; }
        if (op == XBB_OP_DISCARD || perform(queue, request, XBB_OP_READ, offset, length, copy) != 0) continue;
        if (memcmp(data, copy, length) != 0) wrong++;
    }
    status = perform(queue, request, XBB_OP_FLUSH, 0, 0, NULL);
    if (status != 0) { failed++; last = status; }
    uint32_t accepted, sector = 512;
    for (uint64_t i = 0; i < AT_ONCE; i++) {
        uint64_t offset = (size / 512 * i / AT_ONCE + (uint64_t)round) % (size / 512) * 512;
        many[i] = harness_request_new();
        harness_shape(many[i], &sector, 1);
        many[i]->req->op = XBB_OP_WRITE;
        many[i]->req->offset = offset;
        fill(data, offset, round);
        harness_put(many[i], data, 512);
    }
    accepted = harness_submit(queue, many, AT_ONCE);
    if (harness_run(queue, 0, 5000, false) != 0) { failed++; last = -ETIMEDOUT; }
    for (uint32_t i = 0; i < accepted; i++) if (many[i]->status != 0) { failed++; last = many[i]->status; }
    printf("write %d: %llu requests, %llu failed, last %d, %llu wrong\n", round, (unsigned long long)(done + 1 + accepted),
           (unsigned long long)failed, last, (unsigned long long)wrong);
    harness_queue_close(queue);
    return wrong ? 4 : failed ? 2 : 0;
}

int main(int argc, char **argv)
{
    if (argc < 4) { fprintf(stderr, "usage: qcow-read PLUGIN FORMAT IMAGE [OUTPUT]\n"); return 3; }
    setvbuf(stdout, NULL, _IOLBF, 0);
    bool writes = getenv("XBB_WRITE") != NULL;
    struct rlimit cpu = { 2, 2 }, core = { 0, 0 }, memory = { 1ul << 30, 1ul << 30 };
    setrlimit(RLIMIT_CORE, &core);
    if (argc == 4 && (setrlimit(RLIMIT_CPU, &cpu) || setrlimit(RLIMIT_AS, &memory))) { perror("setrlimit"); return 3; }
    char message[256];
    struct harness_plugin *plugin = harness_load(argv[1], "qcow", message);
    if (!plugin) { fprintf(stderr, "%s\n", message); return 3; }
    const struct xbb_plugin *table = harness_table(plugin);
    int fd = open(argv[3], (writes ? O_RDWR : O_RDONLY) | O_CLOEXEC), out = argc > 4 ? open(argv[4], O_RDWR | O_CREAT | O_TRUNC, 0600) : 0;
    if (fd < 0 || out < 0) { perror(argv[3]); return 3; }
    struct xbb_value *list = values(table);
    inspect(table, fd, argv[2], list);
    struct harness_disk *disk;
    struct xbb_error error = { 0 };
    int status = harness_prepare(plugin, fd, writes ? 0 : XBB_OPEN_RDONLY, list, argv[2], NULL, &disk, &error);
    if (status == 0) status = harness_start(disk, &error);
    if (status != 0) { printf("open: %d %s\n", status, error.message); return 1; }
    struct xbb_info info = { .struct_size = sizeof info };
    harness_info(disk, &info);
    if (out > 0 && ftruncate(out, (off_t)info.size) != 0) { perror("ftruncate"); return 3; }
    int result = writes && info.size < 512 ? 0 : read_disk(disk, info.size, out);
    /* In between it is found out which clusters are free, and what contradicts. */
    for (int round = 1; writes && info.size >= 512 && round <= 2; round++) {
        int status = write_disk(disk, info.size, round);
        if (status > result) result = status;
        usleep(20000);
    }
    if (writes) {
        char log[8192] = "";
        harness_log(disk, log, sizeof log);
        printf("log: %s\n", log);
    }
    harness_close(disk);
    return result;
}
