// SPDX-License-Identifier: BSD-2-Clause
// Times for people.
import Glibc
import Support

/// Local time.
enum LocalTime {
    /// Seconds since 1970 as "2026-11-25 08:10:09"; "-" for anything else.
    static func text(_ value: JSON?) -> String {
        guard let seconds = value?.double, (0...1e11).contains(seconds) else { return "-" }
        var time = time_t(seconds)
        var parts = unsafe tm()
        guard unsafe localtime_r(&time, &parts) != nil else { return "-" }
        var buffer = [CChar](repeating: 0, count: 32)
        let count = unsafe strftime(&buffer, buffer.count, "%Y-%m-%d %H:%M:%S", &parts)
        return String(decoding: buffer.prefix(count).map { UInt8(bitPattern: $0) }, as: UTF8.self)
    }
}
