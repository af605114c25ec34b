// SPDX-License-Identifier: BSD-2-Clause
// Queues, run by the thread that opened them.
#include "internal.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

int harness_queue_open(struct harness_disk *disk, uint32_t index, uint32_t depth, struct harness_queue **out,
                       struct xbb_error *error)
{
    struct harness_queue *queue = harness_immortal(sizeof *queue);
    struct xbb_hqueue *hq = &queue->hq;
    hq->disk = disk;
    hq->thread = pthread_self();
    hq->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    hq->depth = depth;
    pthread_mutex_init(&hq->lock, NULL);
    struct xbb_queue_params params = {.struct_size = sizeof params, .index = index, .depth = depth};
    int status = disk->plugin->queue_open(disk->dev, hq, &params, &hq->q, error);
    hq->phase = status == 0 ? OPEN : CLOSED;
    if (status != 0) { close(hq->wake); return status; }
    *out = queue;
    return 0;
}

void *harness_queue_pointer(struct harness_queue *queue) { return queue->hq.q; }

void harness_queue_close(struct harness_queue *queue)
{
    struct xbb_hqueue *hq = &queue->hq;
    struct xbb_hdev *hdev = &hq->disk->hdev;
    if (hq->in_flight) harness_breach(hdev, "had %u requests left at queue_close()", hq->in_flight);
    hq->phase = CLOSING;
    hq->disk->plugin->queue_close(hq->q);
    for (int i = 0; i < MAX_WATCHES; i++)
        if (hq->watches[i].used) harness_breach(hdev, "queue_close() left a watch: call watch_del()");
    for (int i = 0; i < MAX_TIMERS; i++)
        if (hq->timers[i].used) harness_breach(hdev, "queue_close() left a timer: call timer_del()");
    pthread_mutex_lock(&hq->lock);
    hq->phase = CLOSED;
    close(hq->wake);
    pthread_mutex_unlock(&hq->lock);
}

static void take_done(struct xbb_hqueue *hq)
{
    pthread_mutex_lock(&hq->lock);
    struct harness_request *done = hq->done;
    hq->done = NULL;
    pthread_mutex_unlock(&hq->lock);
    for (; done; done = done->next) {
        done->state = HARNESS_DONE;
        hq->in_flight--;
    }
}

static void offer(struct harness_request *request, uint32_t scratch)
{
    harness_unpark(request);
    request->completions = 0;
    request->status = 1;
    if (request->guarded) {
        harness_scratch(request, scratch);
        request->shown = *request->req;
        harness_own_call();
        if (mprotect(request->iov, 4096, PROT_READ) != 0) abort();
    }
    request->shown = *request->req;
    request->state = HARNESS_OFFERED;
}

uint32_t harness_submit(struct harness_queue *queue, struct harness_request *const *requests, uint32_t count)
{
    struct xbb_hqueue *hq = &queue->hq;
    struct xbb_hdev *hdev = &hq->disk->hdev;
    struct xbb_req *reqs[256];
    if (count > 256) count = 256;
    for (uint32_t i = 0; i < count; i++) {
        offer(requests[i], hq->disk->plugin->req_ctx_size);
        reqs[i] = requests[i]->req;
    }
    hq->in_flight += count;
    uint32_t accepted = hq->disk->plugin->submit(hq->q, reqs, count);
    if (accepted > count) {
        harness_breach(hdev, "submit() was given %u requests and accepted %u", count, accepted);
        accepted = count;
    }
    for (uint32_t i = accepted; i < count; i++) {
        pthread_mutex_lock(&hq->lock);
        bool completed = requests[i]->completions != 0;
        if (!completed) {
            requests[i]->state = HARNESS_FREE;
            hq->in_flight--;
        }
        pthread_mutex_unlock(&hq->lock);
        if (completed)
            harness_breach(hdev, "completed a %s that submit() did not accept: it returned %u of %u",
                           harness_op_name(requests[i]->shown.op), accepted, count);
    }
    take_done(hq);
    return accepted;
}

static void run_posts(struct xbb_hqueue *hq)
{
    pthread_mutex_lock(&hq->lock);
    struct post *posts = hq->posts, *first = NULL;
    hq->posts = NULL;
    pthread_mutex_unlock(&hq->lock);
    while (posts) { struct post *next = posts->next; posts->next = first; first = posts; posts = next; }
    while (first) {
        struct post *next = first->next;
        first->fn(first->arg);
        pthread_mutex_lock(&hq->lock);
        first->next = hq->spare;
        hq->spare = first;
        pthread_mutex_unlock(&hq->lock);
        first = next;
    }
}

/* What a watch is told: errors and hang-ups as both. */
static uint32_t told(short revents)
{
    if (revents & ~(POLLIN | POLLOUT)) return XBB_FD_READ | XBB_FD_WRITE;
    return (revents & POLLIN ? XBB_FD_READ : 0) | (revents & POLLOUT ? XBB_FD_WRITE : 0);
}

uint32_t harness_run(struct harness_queue *queue, uint32_t target, int milliseconds, bool busy)
{
    struct xbb_hqueue *hq = &queue->hq;
    uint64_t end = harness_now() + (uint64_t)milliseconds * 1000000u;
    for (;;) {
        if (XBB_CAN(hq->disk->plugin, poll)) hq->disk->plugin->poll(hq->q);
        take_done(hq);
        uint64_t now = harness_now();
        if ((target != UINT32_MAX && hq->in_flight <= target) || now >= end) return hq->in_flight;

        struct pollfd fds[MAX_WATCHES + 1];
        struct xbb_watch *watched[MAX_WATCHES + 1];
        nfds_t count = 0;
        uint64_t due = end;
        for (int i = 0; i < MAX_TIMERS; i++)
            if (hq->timers[i].used && hq->timers[i].due && hq->timers[i].due < due) due = hq->timers[i].due;
        for (int i = 0; i < MAX_WATCHES; i++)
            if (hq->watches[i].used && hq->watches[i].events) {
                fds[count] = (struct pollfd){.fd = hq->watches[i].fd, .events =
                    (short)((hq->watches[i].events & XBB_FD_READ ? POLLIN : 0) | (hq->watches[i].events & XBB_FD_WRITE ? POLLOUT : 0))};
                watched[count++] = &hq->watches[i];
            }
        fds[count] = (struct pollfd){.fd = hq->wake, .events = POLLIN};
        uint64_t wait = due > now && !busy ? due - now : 0;
        struct timespec timeout = {.tv_sec = (time_t)(wait / 1000000000u), .tv_nsec = (long)(wait % 1000000000u)};
        harness_own_call();
        ppoll(fds, count + 1, &timeout, NULL);

        uint64_t drained;
        if (fds[count].revents) {
            harness_own_call();
            if (read(hq->wake, &drained, sizeof drained) < 0 && errno != EAGAIN) abort();
        }
        for (nfds_t i = 0; i < count; i++)
            if (fds[i].revents && watched[i]->used) watched[i]->fn(watched[i]->arg, watched[i]->fd, told(fds[i].revents));
        now = harness_now();
        for (int i = 0; i < MAX_TIMERS; i++)
            if (hq->timers[i].used && hq->timers[i].due && hq->timers[i].due <= now) {
                hq->timers[i].due = 0;
                hq->timers[i].fn(hq->timers[i].arg);
            }
        run_posts(hq);
    }
}

void harness_cancel(struct harness_queue *queue, struct harness_request *request)
{
    struct xbb_hqueue *hq = &queue->hq;
    if (XBB_CAN(hq->disk->plugin, cancel)) hq->disk->plugin->cancel(hq->q, request ? request->req : NULL);
}

/* ------------------------------------------------------------------ loads */

struct load { struct harness_request *requests[256]; uint32_t depth; uint64_t finished, seed; };

static void load_make(struct load *load, uint32_t op, uint32_t depth)
{
    static const uint32_t length = 4096;
    *load = (struct load){.depth = depth > 256 ? 256 : depth, .seed = 88172645463325252u};
    for (uint32_t i = 0; i < load->depth; i++) {
        load->requests[i] = harness_request_new();
        harness_shape(load->requests[i], &length, 1);
        load->requests[i]->req->op = (uint8_t)op;
    }
}

static void load_free(struct load *load)
{
    for (uint32_t i = 0; i < load->depth; i++) harness_request_free(load->requests[i]);
}

// Fills the queue up to its depth, `left` requests at most, and waits for one of them.
static void load_turn(struct load *load, struct harness_queue *queue, uint64_t size, uint64_t left)
{
    struct harness_request *batch[256];
    uint32_t ready = 0;
    for (uint32_t i = 0; i < load->depth; i++) {
        struct harness_request *request = load->requests[i];
        if (request->state == HARNESS_OFFERED) continue;
        if (request->state == HARNESS_DONE) load->finished++, request->state = HARNESS_FREE;
        if (ready == left) continue;
        load->seed ^= load->seed << 13, load->seed ^= load->seed >> 7, load->seed ^= load->seed << 17;
        request->req->offset = load->seed % (size / 4096) * 4096;
        batch[ready++] = request;
    }
    if (ready) harness_submit(queue, batch, ready);
    if (queue->hq.in_flight) harness_run(queue, queue->hq.in_flight - 1, 1000, false);
}

double harness_measure(struct harness_queue *queue, uint32_t op, uint64_t size, uint32_t depth, int milliseconds)
{
    struct load load;
    load_make(&load, op, depth);
    uint64_t start = harness_now();
    while (harness_now() - start < (uint64_t)milliseconds * 1000000u) load_turn(&load, queue, size, UINT64_MAX);
    harness_run(queue, 0, 10000, false);
    double seconds = (double)(harness_now() - start) / 1e9;
    load_free(&load);
    return (double)load.finished / seconds;
}

uint64_t harness_perform_many(struct harness_queue *queue, uint32_t op, uint64_t size, uint32_t depth, uint64_t count)
{
    struct load load;
    load_make(&load, op, depth);
    uint64_t end = harness_now() + 10000000000u;
    while (load.finished < count && harness_now() < end) {
        uint64_t begun = load.finished + queue->hq.in_flight;
        load_turn(&load, queue, size, begun < count ? count - begun : 0);
    }
    harness_run(queue, 0, 10000, false);
    load_free(&load);
    return load.finished;
}
