// SPDX-License-Identifier: BSD-2-Clause
// One event of a disk, as it is kept and told. Pure.
import DiskEvents
import Support

/// Something that happened to a disk.
struct DiskEvent: Equatable {
    /// Its place among all events of an epoch, from 1.
    let sequence: UInt64
    /// When it happened, in seconds since 1970, or when xbbd learned of it: whole milliseconds, as it is written and told.
    let time: Double
    let address: VBDAddress
    let kind: DiskEventKind
    let details: DiskEventDetails
    /// Events of this disk that came too often before it, and are told nowhere.
    var suppressed: UInt64

    /// An event; `time` is rounded to milliseconds.
    init(
        sequence: UInt64, time: Double, address: VBDAddress, kind: DiskEventKind, details: DiskEventDetails,
        suppressed: UInt64 = 0
    ) {
        self.sequence = sequence
        self.time = (time * 1000).rounded() / 1000
        self.address = address
        self.kind = kind
        self.details = details
        self.suppressed = suppressed
    }

    /// A line of `xbbctl events --json`, but for the epoch.
    var members: [JSON.Member] {
        [
            ("seq", .integer(sequence)), ("time", .decimal(time)),
            ("event", .string(kind.rawValue)), ("vbd", .string("\(address)")), ("domid", .integer(address.domain)),
            ("devid", .integer(address.device)), ("device", .string(VirtualDevice.name(of: address.device))),
        ] + (suppressed > 0 ? [("suppressed", .integer(suppressed))] : []) + details.members
    }
}

extension DiskEvent {
    /// Reads what ``members`` wrote.
    init?(_ json: JSON) {
        guard let sequence = json["seq"]?.unsigned, sequence > 0, let time = json["time"]?.double,
            (0...1e11).contains(time), let kind = json["event"]?.string.flatMap({ DiskEventKind(rawValue: $0) }),
            let address = json["vbd"]?.string.flatMap({ VBDAddress(parsing: $0) })
        else { return nil }
        self.init(
            sequence: sequence, time: time, address: address, kind: kind, details: DiskEventDetails(json.members),
            suppressed: json["suppressed"]?.unsigned ?? 0)
    }
}

/// Where a reader of events stands.
public struct EventCursor: Equatable, Sendable {
    /// Nil: whatever epoch there is.
    public let epoch: String?
    /// The first sequence number that is wanted.
    public let sequence: UInt64

    /// Reads "SEQ" or "EPOCH:SEQ".
    public init?(parsing text: some StringProtocol) {
        let parts = text.split(separator: ":", omittingEmptySubsequences: false)
        guard (1...2).contains(parts.count), let sequence = DecimalText.number(parts[parts.count - 1]) else {
            return nil
        }
        if parts.count == 2, !Self.isEpoch(parts[0]) { return nil }
        self.init(epoch: parts.count == 2 ? String(parts[0]) : nil, sequence: sequence)
    }

    /// The place `sequence` of an epoch.
    public init(epoch: String?, sequence: UInt64) {
        self.epoch = epoch
        self.sequence = sequence
    }

    /// 16 hexadecimal digits.
    static func isEpoch(_ text: some StringProtocol) -> Bool {
        text.utf8.count == 16
            && text.utf8.allSatisfy {
                (UInt8(ascii: "0")...UInt8(ascii: "9")).contains($0)
                    || (UInt8(ascii: "a")...UInt8(ascii: "f")).contains($0)
            }
    }
}

extension EventCursor: CustomStringConvertible {
    /// The form that ``init(parsing:)`` reads.
    public var description: String { (epoch.map { "\($0):" } ?? "") + "\(sequence)" }
}
