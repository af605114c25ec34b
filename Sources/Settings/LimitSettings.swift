// SPDX-License-Identifier: BSD-2-Clause
// Limits of a disk: the settings, and which of them go together. Names, meaning and rules are those of
// `virsh blkdeviotune` and of QEMU's throttle.
public import Base

/// One limit: a rate, and a higher one that is allowed for a while.
public struct LimitSettings: Sendable {
    /// Bytes or requests in a second; 0: no limit.
    public let rate: Setting<Int>
    /// The same during a burst; 0: no burst.
    public let burst: Setting<Int>
    /// How long a burst lasts at most, in seconds; 0 and 1 are one second.
    public let length: Setting<Int>

    /// Its three settings in the order of xbb.conf.
    public var declarations: [SettingDeclaration] { [rate.declaration, burst.declaration, length.declaration] }

    /// The largest rate: as in libvirt and QEMU.
    public static let largest = 1_000_000_000_000_000
    /// The longest burst, in seconds: a day.
    public static let longest = 86400

    /// `subject` is "total-bytes", `what` "all bytes".
    init(_ subject: String, _ what: String, _ unit: SettingUnit) {
        func number(_ suffix: String, _ help: String, _ range: ClosedRange<Int>, _ unit: SettingUnit) -> Setting<Int> {
            Setting(
                number: subject + suffix, help, range, unit, usual: 0, scope: .disk, section: .tunables,
                workerForm: .tunable, changesWhileServed: true)
        }
        rate = number("-sec", "limit of \(what) of the disk, with 0 none", 0...Self.largest, unit)
        burst = number("-sec-max", "the same during a burst, with 0 no burst", 0...Self.largest, unit)
        length = number("-sec-max-length", "how long a burst lasts at most", 0...Self.longest, .seconds)
    }
}

extension SettingsSchema {
    /// The limits of a disk: bytes of all requests, of reads and of writes, then the same of the requests.
    public static let limits: [LimitSettings] = [
        LimitSettings("total-bytes", "the bytes that are read and written", .bytesPerSecond),
        LimitSettings("read-bytes", "the bytes that are read", .bytesPerSecond),
        LimitSettings("write-bytes", "the bytes that are written", .bytesPerSecond),
        LimitSettings("total-iops", "all requests", .requestsPerSecond),
        LimitSettings("read-iops", "the reads", .requestsPerSecond),
        LimitSettings("write-iops", "the writes and discards", .requestsPerSecond),
    ]
    /// A larger request counts as several for the limits of requests.
    public static let limitRequestSize = Setting(
        number: "size-iops-sec", "bytes that one request of the limits has; with 0 each counts as one",
        0...LimitSettings.largest, .bytes, usual: 0, scope: .disk, section: .tunables, workerForm: .tunable,
        changesWhileServed: true)

    /// All settings of limits, in the order of xbb.conf.
    static let limitDeclarations = limits.flatMap(\.declarations) + [limitRequestSize.declaration]

    /// The setting is one of limits.
    public static func isLimit(_ setting: SettingDeclaration) -> Bool {
        limitDeclarations.contains { $0.name == setting.name }
    }

    /// Checks what limits say together. Throws the rule that is broken, and what to do.
    public static func checkLimits(_ values: SettingValues) throws(OperationError) {
        func refuse(_ text: String) -> OperationError { OperationError(.option, text) }
        for limit in limits {
            let (rate, burst) = (values.value(of: limit.rate), values.value(of: limit.burst))
            if burst > 0, rate == 0 {
                throw refuse("\(limit.burst.name)=\(burst) needs \(limit.rate.name): set that too, or both to 0")
            }
            if burst > 0, burst < rate {
                throw refuse(
                    "\(limit.burst.name)=\(burst) is less than \(limit.rate.name)=\(rate): a burst is faster than the "
                        + "limit; with 0 there is none")
            }
            let length = values.value(of: limit.length)
            if length > 1, burst == 0 {
                throw refuse("\(limit.length.name)=\(length) needs \(limit.burst.name): set that too, or this to 0")
            }
        }
        for first in [0, 3] {
            let total = limits[first]
            for part in limits[(first + 1)...(first + 2)] {
                // A burst has its limit: this holds for bursts, too.
                guard let one = Self.limit(total, values), let other = Self.limit(part, values) else { continue }
                throw refuse(
                    "\(one) and \(other) exclude each other: set \(total.rate.name) or "
                        + "\(part.rate.name) to 0, in the same command where one takes the place of the other")
            }
        }
    }

    /// `values` without limits.
    public static func withoutLimits(_ values: SettingValues) -> SettingValues {
        var values = values
        for setting in limitDeclarations { values[setting] = nil }
        return values
    }

    /// `own` values of a disk over those of all disks. A disk that has limits of bytes, or of requests, has none of the
    /// others' of that kind: of theirs it could not say which it wants.
    public static func layered(_ own: SettingValues, over lower: SettingValues) -> SettingValues {
        var lower = lower
        for first in [0, 3] {
            let kind = limits[first...(first + 2)].flatMap(\.declarations)
            if kind.contains(where: { own[$0] != nil }) { for setting in kind { lower[setting] = nil } }
        }
        return own.over(lower)
    }

    /// "total-bytes-sec=5" where there is such a limit.
    private static func limit(_ limit: LimitSettings, _ values: SettingValues) -> String? {
        let rate = values.value(of: limit.rate)
        return rate > 0 ? "\(limit.rate.name)=\(rate)" : nil
    }
}

extension Setting {
    /// The name of the setting.
    var name: String { declaration.name }
}
