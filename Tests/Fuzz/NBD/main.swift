// SPDX-License-Identifier: BSD-2-Clause
// A hostile server of NBD, its bytes as a dead client left them, and URIs.
import Driver

fuzz([
    "nbd": readServer,
    "nbd-scan": scanAnswers,
    "nbd-uri": readURI,
])
