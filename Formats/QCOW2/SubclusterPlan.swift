// SPDX-License-Identifier: BSD-2-Clause
// What a change of a guest's cluster needs in an image with extended L2 entries. The rules R1 to R6 of docs/qcow.md hold for each
// subcluster: one without data may have anything in its place, so what stands there is durable before its bit is set; one with
// data is never zeroed, punched or written with anything but what the guest writes.

/// How a change of some subclusters is done.
public enum SubclusterPlan: Sendable, Equatable {
    /// Nothing: they read as wanted, or there is no way to give them back.
    case nothing
    /// Write the data into the cluster where it stands: all of them have data.
    case inPlace(UInt64)
    /// Take a reserved cluster, which reads as zeroes as these subclusters do now, publish it with them, and then write in place.
    case fresh(SubclusterMask)
    /// Write these subclusters, whole, where the cluster has a place for them, and the others in place; make them durable, and then
    /// publish the entry.
    case fill(UInt64, SubclusterMask, L2Entry)
    /// Write these subclusters, whole, into a reserved cluster, make them durable, publish the cluster with `allocated`, and then
    /// give the old one back. What is allocated and not written reads as zeroes, as the reserved cluster does.
    case copy(written: SubclusterMask, allocated: SubclusterMask)
    /// Write this entry instead; `frees`: the old cluster is given back then.
    case publish(L2Entry, frees: Bool)
}

extension PlanRules {
    /// Subclusters that nothing but zeroes can be read of.
    public func zeroReading(_ entry: L2Entry) -> SubclusterMask {
        if entry.isCompressed { return [] }
        return hasLower ? entry.zeroed : SubclusterMask.all.subtracting(entry.allocated)
    }

    /// New data for these subclusters, or for parts of them.
    public func planData(_ touched: SubclusterMask, _ entry: L2Entry) -> SubclusterPlan {
        if entry.isOwn {
            let missing = touched.subtracting(entry.allocated)
            guard !missing.isEmpty else { return .inPlace(entry.place) }
            let new = L2Entry(
                entry.raw, allocated: entry.allocated.union(missing), zeroed: entry.zeroed.subtracting(missing))
            return .fill(entry.place, missing, new)
        }
        let zeroes = zeroReading(entry)
        if entry.raw == 0, touched.isSubset(of: zeroes) { return .fresh(zeroes) }
        let written = touched.union(entry.isCompressed ? .all : entry.allocated)
        return .copy(written: written, allocated: written.union(zeroes))
    }

    /// Zeroes in all of these subclusters, by their bits; with `mayFree` a cluster that has no data then is given back. Of a
    /// compressed cluster only all of them can become zeroes in this way.
    public func planZeroes(_ covered: SubclusterMask, _ entry: L2Entry, mayFree: Bool) -> SubclusterPlan {
        guard !covered.isEmpty, !entry.isCompressed || covered == .all else { return .nothing }
        let allocated = entry.allocated.subtracting(covered)
        // A cluster that was empty before stays: somebody wanted it there.
        let loses = entry.isCompressed || covered == .all || !entry.allocated.isDisjoint(with: covered)
        let zeroed = entry.zeroed.union(covered)
        if entry.isCompressed || entry.place != 0 && (mayFree || !entry.isOwn) && loses && allocated.isEmpty {
            return .publish(L2Entry(0, allocated: [], zeroed: hasLower ? zeroed : []), frees: true)
        }
        if covered.isSubset(of: zeroReading(entry)) { return .nothing }
        return .publish(L2Entry(entry.raw, allocated: allocated, zeroed: zeroed), frees: false)
    }
}
