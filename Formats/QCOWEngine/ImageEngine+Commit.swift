// SPDX-License-Identifier: BSD-2-Clause
// The committer: one sync makes durable what many operations wait for. One thread at a time.
import Glibc
import ImageCore
import ImageWriting
import QCOW2

extension ImageEngine: CommittingEngine {
    /// What there is to do. Any thread.
    public var pending: CommitNeed {
        let (isWaited, isFreeing) = listLock.locked {
            (!commits.isEmpty || !scanWaiters.isEmpty, !unmapped.isEmpty)
        }
        if isWaited || needsReserve { return .now }
        if failure != 0 { return .nothing }
        if isScanning { return scan?.isSettling == true && !grace.isQuiet ? .later : .now }
        return isFreeing || !waiting.isEmpty || !released.isEmpty || isReadingAhead ? .later : .nothing
    }

    /// There is something to do.
    public var needsCommit: Bool { pending != .nothing }

    private var needsReserve: Bool {
        failure == 0 && counters.allocated.load(ordering: .relaxed) > 0 && !reserveFailed.load(ordering: .relaxed)
            && poolCount.load(ordering: .relaxed) < reserveSize.load(ordering: .relaxed) / 2
    }

    /// The scan has begun, or is to begin, which the first allocation or a waiting change of a device causes.
    private var isScanning: Bool {
        !isScanned.load(ordering: .acquiring) && failure == 0
            // After an error only somebody who waits makes it begin anew.
            && (scanError == 0 || listLock.locked { !scanWaiters.isEmpty })
            && (options.followsUncleanEnd && isPrepared.load(ordering: .relaxed)
                || counters.allocated.load(ordering: .relaxed) > 0 || counters.copied.load(ordering: .relaxed) > 0
                || listLock.locked { !scanWaiters.isEmpty || !unmapped.isEmpty })
    }

    /// One cycle: reserves, syncs once, publishes what was copied, lets go of what is free, and goes on with the scan.
    ///
    /// - Returns: true if there is more to do at once.
    @discardableResult
    public func commit() -> Bool {
        // Everything that is taken here was put into the file before the sync below.
        let records = takeWork()
        let owned = needsReserve ? reserve() : []
        let synced = released
        if !records.isEmpty || !owned.isEmpty || !synced.isEmpty || !waiting.isEmpty && !waitingIsDurable {
            if failure == 0, sync() == 0 { examineEnd() }
            counters.commits.wrappingAdd(1, ordering: .relaxed)
            guard failure == 0 else {
                abandon(records)
                return false
            }
            waitingIsDurable = true
        }
        addToPool(owned)
        if !synced.isEmpty {
            metadataLock.locked { allocator.recycle(synced) }
            counters.freed.wrappingAdd(UInt64(synced.count), ordering: .relaxed)
            released = []
        }
        for record in records { publish(record) }
        if !waiting.isEmpty, waitingIsDurable, grace.isQuiet { releaseWaiting() }
        if isScanning { goOnScanning() } else if isReadingAhead { readAhead() }
        if failure != 0 { failWaiters(failure) }
        return pending == .now
    }

    private func takeWork() -> [CommitRecord] {
        // Nothing is counted down before it is known that the refcounts are true.
        let mayTurn = waiting.isEmpty && isScanned.load(ordering: .acquiring)
        let (records, fresh) = listLock.locked { () -> ([CommitRecord], [FreedCluster]) in
            let taken = (commits, mayTurn ? unmapped : [])
            commits = []
            if mayTurn { unmapped = [] }
            return taken
        }
        if !fresh.isEmpty {
            (waiting, waitingIsDurable) = (fresh, false)
            grace.turn()
        }
        return records
    }

    private func reserve() -> [Range<UInt64>] {
        metadataLock.locked {
            do throws(ImageError) {
                return try own()
            } catch {
                // Who needs a cluster gets the reason.
                reserveFailed.store(true, ordering: .relaxed)
                return []
            }
        }
    }

    private func releaseWaiting() {
        var damage: String?
        metadataLock.locked {
            // After a scan that could not read everything they are leaks.
            guard allocator.knowsFree else { return }
            do throws(ImageError) {
                released = try allocator.release(waiting, givesBack: options.discards)
            } catch {
                allocator.refcounts.forgetChanges()
                if case .unreadable = error.kind { return }
                damage = error.damage
            }
        }
        waiting = []
        if let damage { damaged(damage) }
    }

    /// Nothing is published any more.
    private func abandon(_ records: [CommitRecord]) {
        for record in records {
            record.operation.finish(failure == 0 ? -EIO : failure)
            release(record.key)
        }
        failWaiters(failure == 0 ? -EIO : failure)
    }

    // MARK: R3: publish

    /// What the entries will point to is durable.
    private func publish(_ record: CommitRecord) {
        var status: Int32 = 0
        for publication in record.publications {
            if status == 0 { status = publish(publication) } else { discardUnused(unpublished(publication)) }
        }
        record.operation.finish(status)
        release(record.key)
    }

    private func publish(_ publication: Publication) -> Int32 {
        let piece: ClusterMap.Piece
        do throws(ReadFault) {
            guard let found = try map.lockPiece(of: publication.cluster) else { return -EIO }
            piece = found
        } catch {
            discardUnused(unpublished(publication))
            return -error.code
        }
        let index = map.index(publication.cluster)
        // The range of the disk is held, so nobody else has changed it; a piece that was read again may lack its flag.
        let (now, old, filled) = (piece[index], publication.old, publication.filled)
        guard now.raw | L2Entry.copied == old.raw | L2Entry.copied,
            filled.isEmpty ? now.bitmap == old.bitmap : now.allocated.isDisjoint(with: filled)
        else {
            map.unlock(piece)
            discardUnused(unpublished(publication))
            return -EIO
        }
        let new =
            filled.isEmpty
            ? publication.new
            : L2Entry(
                publication.new.raw, allocated: now.allocated.union(filled), zeroed: now.zeroed.subtracting(filled))
        let code = put(new, piece, index)
        map.unlock(piece)
        guard code == 0 else {
            // The entry may be there nevertheless: the scan of the next time decides.
            return code
        }
        if publication.new.place != publication.old.place { unmap(publication.old) }
        counters.allocated.wrappingAdd(1, ordering: .relaxed)
        return 0
    }

    // MARK: The end

    /// Settles what is under way and gives the reserve back. Nothing may be in flight.
    public func close() {
        // A scan that is nearly over, too; a long one begins anew the next time.
        for _ in 0..<128 where failure == 0 {
            let isBusy = listLock.locked { !commits.isEmpty || !unmapped.isEmpty || !scanWaiters.isEmpty }
            guard isBusy || !waiting.isEmpty || !released.isEmpty || isScanning else { break }
            commit()
        }
        guard failure == 0 else { return }
        let runs = poolLock.locked { pool.takeAll() }
        poolCount.store(0, ordering: .relaxed)
        metadataLock.locked {
            do throws(ImageError) {
                if !runs.isEmpty { try allocator.giveBack(runs) }
            } catch {
                allocator.refcounts.forgetChanges()
            }
        }
        // What was given back is not needed by anybody, so this may fail.
        _ = storage.sync()
    }
}
