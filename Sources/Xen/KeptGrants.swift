// SPDX-License-Identifier: BSD-2-Clause
// Which grant references are known, found by a hash and ordered by their last use. Pure: nothing is mapped here.
import Memory

/// What is known of a reference.
struct KeptGrant: BitwiseCopyable, Sendable {
    /// What became of it.
    enum State: UInt8, BitwiseCopyable, Sendable {
        /// It was used, and is not mapped.
        case seen
        /// Its page is mapped.
        case mapped
        /// It could not be mapped, and is not tried again while it is known.
        case refused
    }

    /// The reference, a number of the guest's.
    let reference: UInt32
    /// What became of it.
    var state = State.seen
    /// Times that it was used, 255 for all above.
    var uses: UInt8 = 0
    /// The page where it is mapped, and the number by which the grant table finds it.
    var address: UInt = 0
    /// See ``address``.
    var cookie: UInt64 = 0
    fileprivate var newer: Int32 = -1
    fileprivate var older: Int32 = -1
    /// Its place in the hash.
    fileprivate var slot: Int32 = 0

    fileprivate init(_ reference: UInt32) { self.reference = reference }
}

/// A bounded table of references: open addressing, and a list from the one used last to the one not used for the longest.
///
/// References are the guest's to choose: the hash has a secret factor, so that it cannot make many of them meet. Nothing is
/// allocated after init.
struct KeptGrants: ~Copyable {
    private var grants: FixedArray<KeptGrant>
    /// One more than the index of a grant; 0: free. A power of two, at least twice as many as there are grants.
    private var slots: FixedArray<Int32>
    private var free: FixedArray<Int32>
    private var freeCount: Int
    private let factor: UInt32
    private let shift: UInt32
    private var newest: Int32 = -1
    /// The one that was not used for the longest time; -1 where there is none.
    private(set) var oldest: Int32 = -1

    /// Room for `capacity` references. `secret` is any number that a guest does not know.
    init(capacity: Int, secret: UInt64) {
        var size = 4
        while size < capacity * 2 { size <<= 1 }
        grants = FixedArray(zeroed: capacity)
        slots = FixedArray(zeroed: size)
        free = FixedArray(zeroed: capacity)
        freeCount = capacity
        for index in 0..<capacity { free[index] = Int32(truncatingIfNeeded: capacity - 1 - index) }
        factor = UInt32(truncatingIfNeeded: secret) | 1
        shift = 32 - UInt32(truncatingIfNeeded: size.trailingZeroBitCount)
    }

    /// References that are known.
    var count: Int { grants.count - freeCount }
    /// No further reference can be added.
    var isFull: Bool { freeCount == 0 }

    /// What is known of a reference, by its index. State, uses and place can be changed; the rest is the table's.
    subscript(index: Int32) -> KeptGrant {
        get { grants[Int(index)] }
        set {
            grants[Int(index)].state = newValue.state
            grants[Int(index)].uses = newValue.uses
            grants[Int(index)].address = newValue.address
            grants[Int(index)].cookie = newValue.cookie
        }
    }

    private func home(_ reference: UInt32) -> Int {
        // The upper bits of the product depend on all bits of the reference.
        Int(((reference ^ (reference >> 16)) &* factor) >> shift)
    }

    /// The index of a reference, which counts as used now; nil if it is not known.
    mutating func use(_ reference: UInt32) -> Int32? {
        var slot = home(reference)
        while true {
            let index = slots[slot] - 1
            if index < 0 { return nil }
            if grants[Int(index)].reference == reference {
                if grants[Int(index)].uses < .max { grants[Int(index)].uses += 1 }
                if index != newest {
                    unlink(index)
                    linkAsNewest(index)
                }
                return index
            }
            slot = (slot + 1) & (slots.count - 1)
        }
    }

    /// Adds a reference that is not known, as used once; nil where there is no room.
    mutating func add(_ reference: UInt32) -> Int32? {
        if freeCount == 0 { return nil }
        freeCount -= 1
        let index = free[freeCount]
        grants[Int(index)] = KeptGrant(reference)
        grants[Int(index)].uses = 1
        var slot = home(reference)
        while slots[slot] != 0 { slot = (slot + 1) & (slots.count - 1) }
        slots[slot] = index + 1
        grants[Int(index)].slot = Int32(truncatingIfNeeded: slot)
        linkAsNewest(index)
        return index
    }

    /// Forgets a reference. Whoever does has unmapped it.
    mutating func remove(_ index: Int32) {
        unlink(index)
        free[freeCount] = index
        freeCount += 1
        // What stands behind moves up where it may, so that no search ends too early.
        let mask = slots.count - 1
        var gap = Int(grants[Int(index)].slot)
        var slot = gap
        slots[gap] = 0
        while true {
            slot = (slot + 1) & mask
            let other = slots[slot] - 1
            if other < 0 { return }
            let wanted = home(grants[Int(other)].reference)
            if (slot - wanted) & mask < (slot - gap) & mask { continue }
            slots[gap] = other + 1
            grants[Int(other)].slot = Int32(truncatingIfNeeded: gap)
            slots[slot] = 0
            gap = slot
        }
    }

    private mutating func unlink(_ index: Int32) {
        let (newer, older) = (grants[Int(index)].newer, grants[Int(index)].older)
        if newer >= 0 { grants[Int(newer)].older = older } else { newest = older }
        if older >= 0 { grants[Int(older)].newer = newer } else { oldest = newer }
    }

    private mutating func linkAsNewest(_ index: Int32) {
        grants[Int(index)].newer = -1
        grants[Int(index)].older = newest
        if newest >= 0 { grants[Int(newest)].newer = index } else { oldest = index }
        newest = index
    }
}
