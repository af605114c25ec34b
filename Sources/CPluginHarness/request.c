// SPDX-License-Identifier: BSD-2-Clause
// Requests in pages of their own, so that a plugin that touches one at the wrong time or place is caught in the act.
#include "internal.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { PAGE = 4096, SLOT = 5 * PAGE, SLOTS = 4096 };
enum { BOOK, REQ, IOV, CTX, GUARD };    /* pages of a slot */

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static uint8_t *slots;
static bool used[SLOTS];
static uint32_t next_slot;
static uint64_t serials, own_calls;

_Static_assert(HARNESS_MAX_IOV * sizeof(struct iovec) <= PAGE, "an iovec array is one page");
_Static_assert(sizeof(struct harness_request) <= PAGE, "the bookkeeping of a request is one page");

void harness_own_call(void) { __atomic_fetch_add(&own_calls, 1, __ATOMIC_RELAXED); }
uint64_t harness_own_calls(void) { return __atomic_load_n(&own_calls, __ATOMIC_RELAXED); }

static void protect(void *start, size_t size, int protection)
{
    harness_own_call();
    if (mprotect(start, size, protection) != 0) abort();
}

static uint8_t *page(struct harness_request *request, int which) { return (uint8_t *)request + which * PAGE; }

struct harness_request *harness_request_new(void)
{
    pthread_mutex_lock(&lock);
    if (!slots) {
        slots = mmap(NULL, (size_t)SLOTS * SLOT, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (slots == MAP_FAILED) abort();
    }
    uint32_t tried = 0;
    // In turn, so that the place of a freed request stays free for long.
    while (used[next_slot] && tried++ < SLOTS) next_slot = (next_slot + 1) % SLOTS;
    if (used[next_slot]) abort();
    used[next_slot] = true;
    struct harness_request *request = (struct harness_request *)(slots + (size_t)next_slot * SLOT);
    next_slot = (next_slot + 1) % SLOTS;
    uint64_t serial = ++serials;
    pthread_mutex_unlock(&lock);
    protect(request, GUARD * PAGE, PROT_READ | PROT_WRITE);
    memset(request, 0, PAGE);
    memset(page(request, REQ), 0, PAGE);
    request->serial = serial;
    request->req = (struct xbb_req *)(page(request, REQ) + PAGE - sizeof(struct xbb_req));
    request->iov = (struct iovec *)page(request, IOV);
    request->req->iov = request->iov;
    harness_scratch(request, 4096);
    return request;
}

void harness_scratch(struct harness_request *request, uint32_t size)
{
    uint32_t rounded = (size + 15u) & ~15u;
    request->req->ctx = page(request, CTX) + PAGE - (rounded > PAGE ? PAGE : rounded);
    memset(page(request, CTX), 0xa5, PAGE);
}

struct harness_request *harness_request_of(const struct xbb_req *req)
{
    uintptr_t distance = (uintptr_t)req - (uintptr_t)slots;
    if (!slots || distance >= (size_t)SLOTS * SLOT || !used[distance / SLOT]) return NULL;
    struct harness_request *request = (struct harness_request *)(slots + distance / SLOT * SLOT);
    return request->req == req ? request : NULL;
}

void harness_request_free(struct harness_request *request)
{
    size_t index = ((uintptr_t)request - (uintptr_t)slots) / SLOT;
    if (request->data) munmap(request->data, request->data_size);
    protect(request, GUARD * PAGE, PROT_NONE);
    pthread_mutex_lock(&lock);
    used[index] = false;
    pthread_mutex_unlock(&lock);
}

static size_t pages(uint64_t length) { return (size_t)(length + PAGE - 1) / PAGE * PAGE; }

void harness_shape(struct harness_request *request, const uint32_t *lengths, uint32_t count)
{
    harness_unpark(request);
    if (count > HARNESS_MAX_IOV) abort();
    size_t size = PAGE;
    for (uint32_t i = 0; i < count; i++) size += pages(lengths[i]) + PAGE;
    if (request->data) munmap(request->data, request->data_size);
    request->data = NULL;
    request->req->iovcnt = count;
    request->req->length = 0;
    if (count == 0) return;
    request->data = mmap(NULL, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (request->data == MAP_FAILED) abort();
    request->data_size = size;
    uint8_t *place = request->data + PAGE;
    for (uint32_t i = 0; i < count; i++) {
        uint8_t *end = place + pages(lengths[i]);
        if (lengths[i]) protect(place, (size_t)(end - place), PROT_READ | PROT_WRITE);
        request->iov[i] = (struct iovec){end - lengths[i], lengths[i]};
        request->req->length += lengths[i];
        place = end + PAGE;
    }
}

void harness_park(struct harness_request *request)
{
    if (!request->guarded || request->parked) return;
    request->parked = true;
    if (request->data) protect(request->data, request->data_size, PROT_NONE);
    protect(page(request, REQ), 3 * PAGE, PROT_NONE);
}

void harness_unpark(struct harness_request *request)
{
    if (!request->parked) return;
    protect(page(request, REQ), 3 * PAGE, PROT_READ | PROT_WRITE);
    for (uint32_t i = 0; request->data && i < request->req->iovcnt; i++) {
        uint8_t *end = (uint8_t *)request->iov[i].iov_base + request->iov[i].iov_len;
        size_t size = pages(request->iov[i].iov_len);
        if (size) protect(end - size, size, PROT_READ | PROT_WRITE);
    }
    request->parked = false;
}

static void copy(struct harness_request *request, uint8_t *bytes, uint64_t length, bool in)
{
    bool again = request->parked;
    harness_unpark(request);
    for (uint32_t i = 0; i < request->req->iovcnt && length > 0; i++) {
        uint64_t part = request->iov[i].iov_len < length ? request->iov[i].iov_len : length;
        if (in) memcpy(request->iov[i].iov_base, bytes, part);
        else memcpy(bytes, request->iov[i].iov_base, part);
        bytes += part, length -= part;
    }
    if (again) harness_park(request);
}

void harness_put(struct harness_request *request, const void *bytes, uint64_t length)
{
    copy(request, (uint8_t *)(uintptr_t)bytes, length, true);
}

void harness_fetch(struct harness_request *request, void *bytes, uint64_t length) { copy(request, bytes, length, false); }

const char *harness_op_name(unsigned op)
{
    static const char *const names[] = {"operation 0", "READ", "WRITE", "FLUSH", "DISCARD", "WRITE_ZEROES"};
    return op < sizeof names / sizeof names[0] ? names[op] : "unknown operation";
}

/* ------------------------------------------------------------------ faults */

static int report_fd = -1;

// What an address is of a request, or NULL.
static const char *place_in(struct harness_request *request, const uint8_t *address)
{
    if (address >= (uint8_t *)request && address < (uint8_t *)request + SLOT) {
        size_t which = (size_t)(address - (uint8_t *)request) / PAGE;
        return which == REQ ? "struct xbb_req" : which == IOV ? "iovec array" : which == CTX ? "ctx" : "memory behind ctx";
    }
    if (!request->data || address < request->data || address >= request->data + request->data_size) return NULL;
    return "buffer";
}

static void name_fault(int signal, siginfo_t *info, void *context)
{
    (void)context;
    char line[400];
    const uint8_t *address = info->si_addr;
    const char *place = NULL;
    struct harness_request *request = NULL;
    if (signal == SIGSEGV && slots)
        for (uint32_t i = 0; i < SLOTS && !place; i++)
            if (used[i]) request = (struct harness_request *)(slots + (size_t)i * SLOT), place = place_in(request, address);
    int n;
    if (place && request->parked)
        n = snprintf(line, sizeof line, "fail touched the %s of a %s at offset %llu after its complete(): from then on it "
                     "belongs to the host\n", place, harness_op_name(request->shown.op),
                     (unsigned long long)request->shown.offset);
    else if (place && strcmp(place, "iovec array") == 0)
        n = snprintf(line, sizeof line, "fail wrote to the iovec array of a %s: it is the host's and const\n",
                     harness_op_name(request->shown.op));
    else if (place)
        n = snprintf(line, sizeof line, "fail ran over the end of the %s of a %s at offset %llu, length %llu: every iov_len "
                     "ends its own buffer, req_ctx_size the scratch\n", place, harness_op_name(request->shown.op),
                     (unsigned long long)request->shown.offset, (unsigned long long)request->shown.length);
    else
        n = snprintf(line, sizeof line, "fail crashed with SIG%s at address %p\n", sigabbrev_np(signal), (void *)address);
    if (write(report_fd, line, (size_t)n) < 0) _exit(4);
    _exit(3);
}

void harness_name_faults(int report)
{
    static const int signals[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGABRT, SIGTRAP};
    static char stack[65536];
    stack_t other = {.ss_sp = stack, .ss_size = sizeof stack};
    report_fd = report;
    sigaltstack(&other, NULL);
    struct sigaction action = {.sa_sigaction = name_fault, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    for (size_t i = 0; i < sizeof signals / sizeof signals[0]; i++) sigaction(signals[i], &action, NULL);
}
