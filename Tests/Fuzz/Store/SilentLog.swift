// SPDX-License-Identifier: BSD-2-Clause
// A log that nobody reads.
import Glibc

@testable import Support

/// Its lines go nowhere.
let silentLog = Log(
    name: "fuzz", level: .error, sink: LogSink(descriptor: open("/dev/null", O_WRONLY | O_CLOEXEC), journal: nil))
