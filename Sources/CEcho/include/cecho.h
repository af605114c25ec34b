/* SPDX-License-Identifier: BSD-2-Clause
 * The smallest backend that the ring's own macros allow: what any backend is measured against.
 *
 * It copies each request out of the ring with RING_COPY_REQUEST and answers it with "okay". It checks nothing, copies
 * no data and knows no disk.
 */
#ifndef CECHO_H
#define CECHO_H

#include <stddef.h>
#include <stdint.h>

/* Serves the ring (64-bit ABI) until *stop is not zero and the ring is empty. notify sends the event; wait sleeps until
 * an event came or a moment has passed. Returns the number of requests answered. */
uint64_t cecho_serve(void *ring_pages, size_t byte_count, const volatile uint32_t *stop, void *context,
                     void (*notify)(void *context), void (*wait)(void *context));

#endif
