// SPDX-License-Identifier: BSD-2-Clause
// What a change of a guest's cluster needs, by what its L2 entry says now. The rules R1 to R6 of docs/qcow.md follow from it.

/// What a guest wants of a cluster.
public enum ClusterChange: Sendable, Equatable {
    /// New data for all of it, or for a part.
    case data(isWhole: Bool)
    /// Zeroes in a part of it.
    case partZeroes
    /// Zeroes in all of it; its cluster may be given back.
    case zeroes(mayFree: Bool)
    /// It is needed no more.
    case discard
}

/// How a change is done.
public enum ClusterPlan: Sendable, Equatable {
    /// Nothing: it reads as wanted, or there is no way to give it back.
    case nothing
    /// Write the data into the cluster where it stands.
    case inPlace(UInt64)
    /// Take a reserved cluster, which reads as zeroes like this one does now, publish it, and then write in place.
    case fresh
    /// Write a whole cluster elsewhere, make it durable, publish it, then give the old one back. `keepsOld`: what the guest
    /// does not write is what the disk shows now.
    case copy(keepsOld: Bool)
    /// As `copy`, into the cluster that stands behind the zero flag.
    case refill(UInt64)
    /// Write this entry instead; `frees`: the old clusters are given back then.
    case publish(L2Entry, frees: Bool)
    /// Take a reserved cluster, publish it as it is, zeroes, and give back what the old entry has.
    case freshZeroes
    /// Make the cluster at this place of the data file zeroes; its entry stays.
    case punch(UInt64)
}

/// What the plan depends on, beside the entry.
public struct PlanRules: Sendable, Equatable {
    /// 2 or 3.
    public let version: UInt32
    /// The disk shows something else than zeroes where this layer has a hole, at this cluster.
    public let hasLower: Bool
    /// The cluster's place in the file that has the data alone; nil: they stand in the image.
    public let home: UInt64?

    /// Rules.
    public init(version: UInt32, hasLower: Bool, home: UInt64? = nil) {
        self.version = version
        self.hasLower = hasLower
        self.home = home
    }

    /// How `change` is done to a cluster with this entry.
    public func plan(_ change: ClusterChange, _ entry: L2Entry) -> ClusterPlan {
        if let home { return plan(change, entry, at: home) }
        return switch change {
        case .data(let isWhole): data(entry, isWhole: isWhole)
        case .partZeroes: readsAsZeroes(entry) ? .nothing : data(entry, isWhole: false)
        case .zeroes(let mayFree): zeroes(entry, mayFree: mayFree)
        case .discard: discard(entry)
        }
    }

    /// A data file has a place for each cluster, which is nobody else's: nothing is allocated there and nothing given back. What
    /// stands at the place of a cluster without data may be old, so all of the cluster is written before its entry says that it
    /// has data; zeroes of one that has data are written or punched there, so that a raw data file shows what the disk shows.
    private func plan(_ change: ClusterChange, _ entry: L2Entry, at home: UInt64) -> ClusterPlan {
        let isOwn = entry.raw == home | L2Entry.copied
        switch change {
        case .data: return isOwn ? .inPlace(home) : .refill(home)
        case .partZeroes: return isOwn ? .inPlace(home) : readsAsZeroes(entry) ? .nothing : .refill(home)
        case .zeroes(mayFree: false) where isOwn: return .inPlace(home)
        case .zeroes, .discard:
            if isOwn { return .punch(home) }
            return readsAsZeroes(entry) ? .nothing : .publish(.zeroes, frees: false)
        }
    }

    /// Nothing but zeroes can be read there.
    public func readsAsZeroes(_ entry: L2Entry) -> Bool { entry.isZero || entry.raw == 0 && !hasLower }

    private func data(_ entry: L2Entry, isWhole: Bool) -> ClusterPlan {
        if entry.isOwn { return .inPlace(entry.place) }
        if entry.isEmpty, readsAsZeroes(entry) { return .fresh }
        if entry.isZero {
            // A cluster that nobody else has, below zeroes: old data of somebody may stand there.
            let isOwn =
                entry.raw & ~(L2Entry.offsetMask | L2Entry.copied) == L2Entry.zero && entry.raw & L2Entry.copied != 0
            return isOwn && entry.place != 0 ? .refill(entry.place) : .copy(keepsOld: !isWhole)
        }
        return .copy(keepsOld: !isWhole)
    }

    private func zeroes(_ entry: L2Entry, mayFree: Bool) -> ClusterPlan {
        if readsAsZeroes(entry), !mayFree || entry.isEmpty { return .nothing }
        guard version >= 3 else {
            // Version 2 has no zero flag: a hole is zeroes only with nothing below.
            if !hasLower, mayFree { return .publish(.hole, frees: true) }
            return entry.isOwn ? .inPlace(entry.place) : .freshZeroes
        }
        if entry.isOwn, !mayFree { return .publish(L2Entry(entry.raw | L2Entry.zero), frees: false) }
        return .publish(hasLower ? .zeroes : .hole, frees: entry.raw & ~L2Entry.zero != 0)
    }

    private func discard(_ entry: L2Entry) -> ClusterPlan {
        if entry.isEmpty, readsAsZeroes(entry) { return .nothing }
        if !hasLower { return .publish(.hole, frees: true) }
        // What lies below must not come back into sight, and what is in sight goes, as with QEMU.
        return version >= 3 ? .publish(.zeroes, frees: entry.raw != 0) : .nothing
    }
}
