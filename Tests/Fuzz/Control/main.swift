// SPDX-License-Identifier: BSD-2-Clause
// Text of others: JSON, requests to xbbd, files that it reads, scrapers, QMP.
import Driver

fuzz([
    "json": readJSON,
    "request": readRequest,
    "settings": readSettings,
    "files": readFiles,
    "metrics": readMetrics,
])
