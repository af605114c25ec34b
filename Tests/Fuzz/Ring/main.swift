// SPDX-License-Identifier: BSD-2-Clause
// The ring and its slots beside C that was compiled from Xen's headers.
import Driver

fuzz([
    "slot": compareSlot,
    "ring": walkRing,
])
