// SPDX-License-Identifier: BSD-2-Clause
// What several test files need: nodes as dictionaries, small random numbers, short names for machines and traces.

import Blkif
import XenBus

/// A node as text; hostile bytes go in through `bytes`.
typealias Node = [String: String]

func reader(_ node: Node) -> (String) -> [UInt8]? {
    { node[$0].map { [UInt8]($0.utf8) } }
}

/// Values that no reader may trust, crash on or take for a number.
let hostileValues: [[UInt8]] = [
    [], Array("-1".utf8), Array("+1".utf8), Array(" 1".utf8), Array("1 ".utf8), Array("1\n".utf8), Array("1\0".utf8),
    Array("0x10".utf8), Array("1e3".utf8), Array("1.0".utf8), Array("4294967296".utf8),
    Array("18446744073709551615".utf8), Array("18446744073709551616".utf8), Array("99999999999999999999".utf8),
    Array(repeating: UInt8(ascii: "9"), count: 4096), Array(repeating: 0, count: 4096),
    Array(repeating: 0xff, count: 1 << 14), [0xc3, 0x28], Array("١٢٣".utf8), Array("%s%n".utf8),
    Array("\u{1b}[2J".utf8),
]

let goodRequest = DeviceRequest(image: ImageLocation(path: "/dev/vg/disk", format: .raw), isReadOnly: false)
let goodFacts = DeviceFacts(sectorCount: 2048)

/// What a frontend with one ring is offered of a disk like `goodFacts`.
func offered(sectorCount: UInt64 = goodFacts.sectorCount) -> OfferedFeatures {
    var facts = goodFacts
    facts.sectorCount = sectorCount
    return OfferedFeatures(request: goodRequest, device: facts)
}

/// The disk has another size, and so have the queues, where any are connected.
func resized(_ sectorCount: UInt64) -> VBDMachine.Event {
    .deviceResized(sectorCount: sectorCount, offered: offered(sectorCount: sectorCount))
}

extension StoreUpdate {
    /// What entries leave in a node.
    static func node(_ entries: [StoreUpdate.Entry]) -> Node {
        var node: Node = [:]
        for entry in entries {
            switch entry {
            case .write(let key, let value): node[key] = value
            case .remove(let key): node[key] = "(removed)"
            }
        }
        return node
    }
}

extension VBDMachine.Action {
    /// One word or two, for tables.
    var brief: String {
        switch self {
        case .update(let update):
            if let state = update.state {
                "\(update.replacing.rawValue)>\(state.rawValue)" + (update.error == nil ? "" : " error")
            } else {
                update.error == nil ? "keys" : "error"
            }
        case .openDevice: "open"
        case .closeDevice: "close"
        case .connectRings(.fresh): "connect"
        case .connectRings(.inherited): "resume"
        case .startQueues: "start"
        case .disconnectRings(.atOnce): "disconnect"
        case .disconnectRings(.emptied): "disconnect empty"
        case .disconnectRings(.quiet): "disconnect quiet"
        case .startTimer: "timer"
        case .exit(let reason): "exit \(reason)"
        }
    }
}
