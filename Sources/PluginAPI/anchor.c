/* SPDX-License-Identifier: BSD-2-Clause
 * Makes the header a C target, so that every build of the package checks its static asserts. */
#include "xbb_plugin.h"
