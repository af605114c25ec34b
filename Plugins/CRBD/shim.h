/* SPDX-License-Identifier: BSD-2-Clause
 * librbd and librados, which have no pkg-config files. */
#ifndef CRBD_SHIM_H
#define CRBD_SHIM_H

#include <rados/librados.h>
#include <rbd/librbd.h>

#endif
