// SPDX-License-Identifier: BSD-2-Clause
// Nodes of XenStore with any values, in any keys.
import Blkif
import TestSupport
import XenBus

/// Values that a mutation seldom makes of others.
private let words: [String] = [
    "0", "1", "5", "32", "4294967295", "4294967296", "18446744073709551615", "x86_32-abi", "x86_64-abi", "native",
    "/local/domain/7/device/vbd/51712", "7", "51712", "r", "w", "raw:/dev/vg/disk", "qcow2:/a.qcow2", "fd:10",
    "4f12 back",
]

/// A node of the input's making.
private func node(_ keys: [String]) -> [String: [UInt8]] {
    var node: [String: [UInt8]] = [:]
    let count = FuzzInput.take(1) ?? 0
    for _ in 0..<min(Int(count), 2 * keys.count) {
        guard let key = FuzzInput.take(1), let kind = FuzzInput.take(1) else { break }
        let name = keys[Int(key) % keys.count]
        switch kind % 4 {
        case 0: node[name] = FuzzInput.takeBytes(atMost: 255)
        case 1: node[name] = Array(String(kind / 4).utf8)
        case 2: node[name] = nil
        default: node[name] = Array(words[Int(kind / 4) % words.count].utf8)
        }
    }
    return node
}

/// Words for an operator: no control characters, no bytes without end.
private func check(_ error: NegotiationError) -> [String] {
    let text = "\(error)"
    let isPrintable = text.unicodeScalars.allSatisfy { $0.value >= 0x20 && !(0x7f..<0xa0).contains($0.value) }
    return isPrintable && text.utf8.count < 2000 ? [] : ["an error that cannot be shown: \(text.debugDescription)"]
}

/// Reads a backend's and a frontend's node.
func readKeys() -> [String] {
    guard let flags = FuzzInput.take(1) else { return [] }
    let limits = FrontendLimits(maximumRingPageOrder: Int(flags & 7), maximumQueueCount: Int(1 + flags >> 3))
    var problems: [String] = []
    let back = node(BackendNode.keys)
    do throws(NegotiationError) {
        let read = try BackendNode { back[$0] }
        if read.frontendID >= 0x7ff0 || !read.frontendPath.hasPrefix("/local/domain/\(read.frontendID)/") {
            problems.append("the frontend \(read.frontendPath) of domain \(read.frontendID)")
        }
        if let offered = read.offered {
            if !(0...5).contains(offered.maximumRingPageOrder) || offered.maximumQueueCount < 1 {
                problems.append("an offer of another backend: \(offered)")
            }
        }
        if let text = read.params { problems += readLocation(text) }
        if let text = read.physicalDevicePath { problems += readLocation(text) }
    } catch {
        problems += check(error)
    }
    let queues = 3, pages = 4
    let front = node(
        FrontendNode.keys(limits: FrontendLimits(maximumRingPageOrder: 2, maximumQueueCount: queues))
            + names(queues, pages))
    _ = FrontendNode.keys(limits: limits) { front[$0] }
    do throws(NegotiationError) {
        let read = try FrontendNode(limits: limits) { front[$0] }
        problems += check(read, limits)
    } catch {
        problems += check(error)
    }
    return problems
}

private func names(_ queues: Int, _ pages: Int) -> [String] {
    (0..<queues).flatMap { queue in
        let prefix = "queue-\(queue)/"
        return [prefix + "event-channel", prefix + "ring-ref"] + (0..<pages).map { prefix + "ring-ref\($0)" }
    } + ["event-channel", "ring-ref"] + (0..<pages).map { "ring-ref\($0)" }
}

/// What is read is within its limits, and reads itself.
private func check(_ node: FrontendNode, _ limits: FrontendLimits) -> [String] {
    let pages = node.rings.map(\.pageReferences.count)
    let references = node.rings.flatMap(\.pageReferences)
    let ports = node.rings.map(\.eventChannel)
    guard (1...limits.maximumQueueCount).contains(pages.count), Set(pages).count == 1, let first = pages.first,
        first >= 1, first <= limits.maximumRingPageCount, first.nonzeroBitCount == 1,
        Set(references).count == references.count, Set(ports).count == ports.count, !ports.contains(0)
    else { return ["a frontend against the rules: \(node)"] }
    let written = Dictionary(node.entries.map { ($0.key, Array($0.value.utf8)) }, uniquingKeysWith: { $1 })
    let again = try? FrontendNode(limits: limits) { written[$0] }
    return again == node ? [] : ["\(node) is written as \(node.entries) and read as \(again as Any)"]
}

/// A target of the toolstack, or what a script found.
private func readLocation(_ text: String) -> [String] {
    do throws(NegotiationError) {
        let location = try ImageLocation(parsing: text)
        return location.path.unicodeScalars.contains { $0.value < 0x20 }
            ? ["a location \(location.path.debugDescription)"] : []
    } catch {
        return check(error)
    }
}
