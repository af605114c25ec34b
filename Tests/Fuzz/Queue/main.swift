// SPDX-License-Identifier: BSD-2-Clause
// The way of a request: from the ring through the engine to a plugin and back, and from one process to the next.
import Driver

fuzz([
    "engine": runEngineModel,
    "session": runSession,
    "journal": readJournal,
])
