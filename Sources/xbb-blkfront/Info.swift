// SPDX-License-Identifier: BSD-2-Clause
// xbb-blkfront info: connects, prints what was negotiated, and closes.
import ArgumentParser
import Blkfront
import Blkif
import Support

struct Info: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Connects, prints what was negotiated, and closes the device.")

    @OptionGroup var deviceArguments: DeviceArguments

    func run() throws {
        do {
            let device = try deviceArguments.device()
            try device.connect()
            let facts = device.facts
            try device.close()
            if deviceArguments.json {
                print(JSON.object(facts).serialized)
            } else {
                for (name, value) in facts { print("\(name): \(value.plainText)") }
            }
        } catch {
            throw fail("\(error)")
        }
    }
}

extension FrontDevice {
    /// The negotiated values, under the names of their keys if there are any.
    fileprivate var facts: [(String, JSON)] {
        let keys = keys().compactMap { key, value in value.map { (key, JSON.string($0)) } }
        return [
            ("frontend", .string(path)), ("backend", .string(backendPath)), ("backend-id", .integer(UInt64(backend))),
            ("ring-pages", .integer(Int64(ringPages))),
            ("ring-entries", .integer(Int64(RingLayout(options.abi).entryCount(pages: ringPages)))),
            ("queues", .integer(Int64(queues.count))), ("keys", .object(keys)),
            ("bytes", .integer(info.byteCount)), ("sectors", .integer(info.sectors)),
            ("sector-size", .integer(Int64(info.sectorSize))),
            ("physical-sector-size", .integer(Int64(info.physicalSectorSize))), ("info", .integer(Int64(info.info))),
            ("read-only", .bool(info.readOnly)), ("feature-flush-cache", .bool(info.flush)),
            ("feature-barrier", .bool(info.barrier)), ("feature-discard", .bool(info.discard)),
            ("discard-granularity", .integer(Int64(info.discardGranularity))),
            ("discard-alignment", .integer(Int64(info.discardAlignment))),
            ("discard-secure", .bool(info.secureDiscard)), ("feature-persistent", .bool(info.persistent)),
            ("feature-max-indirect-segments", .integer(Int64(info.maxIndirectSegments))),
        ]
    }
}

extension JSON {
    /// A string without quotes, and an object as "name=value" pairs.
    fileprivate var plainText: String {
        switch self {
        case .string(let text): text
        case .object(let members): members.map { "\($0.name)=\($0.value.plainText)" }.joined(separator: " ")
        default: serialized
        }
    }
}
