// SPDX-License-Identifier: BSD-2-Clause
// Files as a loss of power leaves them: what was synced, and any part of what was not.
import TestSupport

/// What a write was for, by the tables of the file when it was made.
enum EffectRole: Sendable {
    case header
    case refcounts
    case l1
    case l2
    case other

    /// The role of each effect of a log.
    static func roles(of log: EffectLog) -> [EffectRole] {
        var replay = LogReplay(log)
        return log.effects.indices.map { index in
            replay.advance(to: index)
            guard let range = log.effects[index].range, let layout = ImageLayout(replay.image) else { return .other }
            return role(range.lowerBound, layout)
        }
    }

    private static func role(_ offset: Int, _ layout: ImageLayout) -> EffectRole {
        if offset < layout.clusterSize { return .header }
        let cluster = offset & ~(layout.clusterSize - 1)
        let table = layout.refcountOffset..<layout.refcountOffset + layout.refcountClusters * layout.clusterSize
        if table.contains(offset) || layout.refcountBlocks.contains(cluster) { return .refcounts }
        for l1 in layout.l1Tables {
            if (l1.offset..<l1.offset + l1.count * 8).contains(offset) { return .l1 }
            if (0..<l1.count).contains(where: { layout.l2Offset(l1.offset, $0) == cluster }) { return .l2 }
        }
        return .other
    }
}

/// An order that an engine did not keep, simulated on the log of one that does.
enum OrderVice: Sendable {
    case none
    /// Writes of this role are durable only so many syncs later than they should be.
    case late(EffectRole, syncs: Int)
    /// Writes of this role get into the file before the sync that they should wait for.
    case early(EffectRole)
    /// Writes of this role wait in the memory of the process for the next sync.
    case heldBack(EffectRole)
    /// Of an entry of two words one gets to the disk without the other.
    case torn(EffectRole)
    /// Only a guest's flush syncs.
    case engineNeverSyncs
}

/// Derives states after a loss of power from a log, for rising positions.
struct PowerCut {
    private let log: EffectLog
    private let vice: OrderVice
    private let roles: [EffectRole]
    private let durable: ByteImage
    private let scratch = ByteImage()
    private var position = 0
    private var pending: [(index: Int, syncs: Int)] = []

    init(_ log: EffectLog, vice: OrderVice = .none) {
        (self.log, self.vice) = (log, vice)
        if case .none = vice { roles = [] } else { roles = EffectRole.roles(of: log) }
        durable = log.base.copy()
    }

    private mutating func advance(to target: Int) {
        while position < min(target, log.effects.count) {
            if case .sync(let isGuest) = log.effects[position] {
                if case .engineNeverSyncs = vice, !isGuest {} else { sync() }
            } else {
                var syncs = 1
                if case .late(let role, let more) = vice, roles[position] == role { syncs += more }
                pending.append((position, syncs))
            }
            position += 1
        }
    }

    /// Makes durable what is due; what waits keeps later writes of the same place waiting.
    private mutating func sync() {
        var rest: [(index: Int, syncs: Int)] = []
        for (index, syncs) in pending {
            let effect = log.effects[index]
            let isBlocked =
                syncs <= 1
                && rest.contains { entry in
                    guard let mine = effect.range, let other = log.effects[entry.index].range else { return false }
                    return mine.overlaps(other)
                }
            if syncs > 1 || isBlocked {
                rest.append((index, max(syncs - 1, 1)))
            } else {
                effect.apply(to: durable)
            }
        }
        pending = rest
    }

    /// A state after `target` effects, one of very many. The image is valid until the next call.
    mutating func state(at target: Int, _ random: inout SplitMix64) -> ByteImage {
        advance(to: target)
        scratch.take(durable)
        let mode = random.below(7)
        let chosen = pending.isEmpty ? 0 : random.below(pending.count)
        let percent = random.pick([10, 50, 90] as [UInt64])
        for (number, entry) in pending.enumerated() {
            let effect = log.effects[entry.index]
            switch mode {
            case 0: continue
            case 1: effect.apply(to: scratch)
            case 2: if random.chance(percent) { effect.apply(to: scratch) }
            case 3: effect.applySectors(to: scratch) { random.chance(percent) }
            case 4: if number == chosen { land(entry.index, &random) }
            case 5: if number != chosen { effect.apply(to: scratch) }
            default:
                // In order until the cut, the last one torn.
                if number < chosen { effect.apply(to: scratch) }
                if number == chosen { effect.applySectors(to: scratch) { random.chance(50) } }
            }
        }
        applyEarly(to: scratch)
        return scratch
    }

    /// One that was not synced gets to the disk.
    private func land(_ index: Int, _ random: inout SplitMix64) {
        let effect = log.effects[index]
        guard case .torn(let role) = vice, roles[index] == role, case .write(let offset, let bytes) = effect,
            bytes.count == 16
        else { return effect.apply(to: scratch) }
        let start = random.onceIn(2) ? 0 : 8
        scratch.write(Array(bytes[start..<start + 8]), at: offset + start)
    }

    private func applyEarly(to image: ByteImage) {
        guard case .early(let role) = vice else { return }
        var seenSync = false
        for index in position..<min(position + 40, log.effects.count) {
            if log.effects[index].isSync { seenSync = true }
            if seenSync && roles[index] == role { return log.effects[index].apply(to: image) }
        }
    }
}

/// Derives what a killed process leaves, for rising positions.
struct KillCut {
    private let log: EffectLog
    private let heldBack: EffectRole?
    private let roles: [EffectRole]
    private let image: ByteImage
    private var waiting: [Int] = []
    private var position = 0

    init(_ log: EffectLog, vice: OrderVice = .none) {
        self.log = log
        if case .heldBack(let role) = vice {
            (heldBack, roles) = (role, EffectRole.roles(of: log))
        } else {
            (heldBack, roles) = (nil, [])
        }
        image = log.base.copy()
    }

    /// The file after `target` effects, and perhaps some pages of the next one: a write is not cut elsewhere. Valid until the
    /// next call.
    mutating func state(at target: Int, _ random: inout SplitMix64) -> ByteImage {
        let image = state(at: target)
        guard heldBack == nil, target < log.effects.count, random.onceIn(3) else { return image }
        if case .write(let offset, let bytes) = log.effects[target] {
            let pages = (offset + bytes.count - 1) / 4096 - offset / 4096
            let end = min((offset / 4096 + random.below(pages + 1)) * 4096 - offset, bytes.count)
            if end > 0 { image.write(Array(bytes.prefix(end)), at: offset) }
        }
        return image
    }

    /// The file after `target` effects. Valid until the next call.
    mutating func state(at target: Int) -> ByteImage {
        while position < min(target, log.effects.count) {
            let effect = log.effects[position]
            if effect.isSync {
                for index in waiting { log.effects[index].apply(to: image) }
                waiting = []
            }
            if let heldBack, roles[position] == heldBack {
                waiting.append(position)
            } else {
                effect.apply(to: image)
            }
            position += 1
        }
        return image
    }
}
