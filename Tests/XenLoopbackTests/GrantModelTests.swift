// SPDX-License-Identifier: BSD-2-Clause
// Random grants, maps and copies against a model of Xen's rules, and copies of several threads from one grant.
import Base
import CXen
import Glibc
import Memory
import Synchronization
import TestSupport
import Testing
import Xen
import XenLoopback

@Suite struct GrantModelTests {
    /// What the model knows of a reference that is granted.
    private struct Grant {
        var domain: DomainID
        var frame: UInt32
        var readOnly: Bool
        var reads = 0
        var writes = 0
    }

    @Test(arguments: [1, 2, 3, 4, UInt64.random(in: 5 ... .max)])
    func randomOperationsMatchTheModel(seed: UInt64) throws {
        print("GrantModelTests: seed \(seed)")
        var random = SplitMix64(seed: seed)
        let lab = try Lab()
        let driver = try LoopbackControl(directory: lab.directory).createDomain(pages: 1)
        let guest = try lab.guest(pages: 32, entries: 48)
        let tables = [try lab.grants(), try lab.grants(), try lab.grants(of: driver)]
        let users: [DomainID] = [0, 0, driver]
        let host = try hostMemory()
        var model: [UInt32: Grant] = [:]
        var contents = [[UInt8]](repeating: [UInt8](repeating: 0, count: 8), count: 32)
        var maps: [(table: Int, references: [UInt32], writable: Bool, mapping: GrantMapping)] = []

        func mayUse(_ reference: UInt32, _ user: DomainID, write: Bool) -> Bool {
            guard let grant = model[reference] else { return false }
            return grant.domain == user && !(write && grant.readOnly)
        }
        func anyReference() -> UInt32 {
            Bool.random(using: &random)
                ? model.keys.sorted().randomElement(using: &random) ?? 9 : UInt32.random(in: 0..<50, using: &random)
        }

        for _ in 0..<3000 {
            switch Int.random(in: 0..<6, using: &random) {
            case 0:
                let grant = Grant(
                    domain: users.randomElement(using: &random) ?? 0, frame: UInt32.random(in: 0..<32, using: &random),
                    readOnly: Bool.random(using: &random))
                if model.count == 40 {
                    #expect(throws: OperationError.self) {
                        try guest.grantAccess(to: grant.domain, frame: grant.frame, readOnly: grant.readOnly)
                    }
                } else {
                    let reference = try guest.grantAccess(
                        to: grant.domain, frame: grant.frame, readOnly: grant.readOnly)
                    #expect(model[reference] == nil)
                    model[reference] = grant
                }
            case 1:
                guard let reference = model.keys.sorted().randomElement(using: &random) else { continue }
                let inUse = (model[reference].map { $0.reads + $0.writes } ?? 0) > 0
                #expect(guest.isInUse(reference) == inUse)
                #expect(guest.endAccess(reference) == !inUse)
                if !inUse { model[reference] = nil }
            case 2:
                let table = Int.random(in: 0..<3, using: &random)
                let writable = Bool.random(using: &random)
                let references = (0..<Int.random(in: 1...4, using: &random)).map { _ in anyReference() }
                let allowed = references.allSatisfy { mayUse($0, users[table], write: writable) }
                guard let mapping = try? tables[table].map(references, of: guest.id, writable: writable) else {
                    #expect(!allowed)
                    continue
                }
                #expect(allowed)
                for (index, reference) in references.enumerated() {
                    let frame = try #require(model[reference]?.frame)
                    #expect(mapping.pages.load(at: index * 4096) == guest.pages(at: frame).load(at: 0))
                    if writable { model[reference]?.writes += 1 } else { model[reference]?.reads += 1 }
                }
                maps.append((table, references, writable, mapping))
            case 3:
                guard !maps.isEmpty else { continue }
                let map = maps.remove(at: Int.random(in: 0..<maps.count, using: &random))
                try tables[map.table].unmap(map.mapping)
                for reference in map.references {
                    if map.writable { model[reference]?.writes -= 1 } else { model[reference]?.reads -= 1 }
                }
            default:
                let table = Int.random(in: 0..<3, using: &random)
                let copies = (0..<Int.random(in: 1...12, using: &random)).map { index in
                    Copy(
                        reference: anyReference(), domain: guest.id, length: 8, hostOffset: index * 64,
                        toGuest: Bool.random(using: &random))
                }
                var expected: [Int16] = []
                var results: [Int: [UInt8]] = [:]
                for (index, copy) in copies.enumerated() {
                    let bytes = (0..<8).map { _ in UInt8.random(in: 0...255, using: &random) }
                    host.store(bytes, at: index * 64)
                    let bad = copy.reference >= 48 ? GNTST_bad_gntref : GNTST_general_error
                    let allowed = mayUse(copy.reference, users[table], write: copy.toGuest)
                    expected.append(allowed ? 0 : Int16(bad))
                    results[index] = bytes
                    guard allowed, let frame = model[copy.reference]?.frame else { continue }
                    if copy.toGuest { contents[Int(frame)] = bytes } else { results[index] = contents[Int(frame)] }
                }
                #expect(try run(copies, on: tables[table], host: host) == expected)
                for (index, bytes) in results { #expect(host.bytes(at: index * 64, count: 8) == bytes) }
            }
        }
        for frame in 0..<32 { #expect(guest.read(frame: UInt32(frame), count: 8) == contents[frame]) }
        for map in maps { try tables[map.table].unmap(map.mapping) }
        let report = try #require(try lab.report(guest.id))
        #expect(report.grantedReferences == model.count)
        #expect(report.mappedGrants == 0)
        #expect(report.copyingReferences == 0)
        for reference in model.keys { #expect(guest.endAccess(reference)) }
    }

    /// What the threads of the next test share.
    private final class Race: Sendable {
        let reference = Atomic<UInt32>(0)
        let stop = Atomic<Bool>(false)
        let copied = Atomic<Int>(0)
        let refused = Atomic<Int>(0)
        let wrong = Atomic<Int>(0)
    }

    /// Two queues write into the page of one grant; once the frontend took the grant back, nobody writes any more.
    @Test func noCopyLandsAfterTheGrantWasTakenBack() throws {
        let lab = try Lab()
        let guest = try lab.guest(pages: 4, entries: 16)
        let race = Race()
        let id = guest.id
        let queues = (0..<2).map { queue in
            onThread {
                guard let table = try? lab.grants(), let host = HostMemory(byteCount: 4096) else { return }
                host.store([UInt8](repeating: 0x11 * UInt8(queue + 1), count: 4096), at: 0)
                while !race.stop.load(ordering: .relaxed) {
                    let reference = race.reference.load(ordering: .relaxed)
                    let copy = Copy(reference: reference, domain: id, length: 512, toGuest: true)
                    guard let statuses = try? run([copy, copy, copy], on: table, host: host) else { return }
                    for status in statuses {
                        if status == GrantCopyBatch.okay {
                            race.copied.add(1, ordering: .relaxed)
                        } else if status == Int16(GNTST_general_error) {
                            race.refused.add(1, ordering: .relaxed)
                        } else {
                            race.wrong.add(1, ordering: .relaxed)
                        }
                    }
                }
            }
        }
        var late = 0
        let ours = [UInt8](repeating: 0xee, count: 512)
        for _ in 0..<500 {
            let reference = try guest.grantAccess(to: 0, frame: 1, readOnly: false)
            let before = race.copied.load(ordering: .relaxed)
            race.reference.store(reference, ordering: .relaxed)
            while race.copied.load(ordering: .relaxed) < before + 3 { sched_yield() }
            while !guest.endAccess(reference) { sched_yield() }
            guest.write(ours, frame: 1)
            let refused = race.refused.load(ordering: .relaxed)
            while race.refused.load(ordering: .relaxed) < refused + 6 { sched_yield() }
            if guest.read(frame: 1, count: 512) != ours { late += 1 }
        }
        race.stop.store(true, ordering: .relaxed)
        for queue in queues { pthread_join(queue, nil) }
        #expect(late == 0)
        #expect(race.wrong.load(ordering: .relaxed) == 0)
        #expect(try lab.report(id)?.copyingReferences == 0)
        #expect(try lab.report(id)?.grantedReferences == 0)
    }

    /// Threads of one frontend take and give references; nobody gets one twice.
    @Test func referencesAreUniqueAmongThreads() throws {
        let lab = try Lab()
        let guest = try lab.guest(pages: 4, entries: 256)
        let race = Race()
        let owners = Owners()
        let threads = (0..<3).map { _ in
            onThread {
                var mine: [UInt32] = []
                for round in 0..<20_000 {
                    if round % 7 < 4, let reference = try? guest.grantAccess(to: 0, frame: 1, readOnly: true) {
                        if !owners.take(Int(reference)) { race.wrong.add(1, ordering: .relaxed) }
                        mine.append(reference)
                    } else if let reference = mine.popLast() {
                        owners.give(Int(reference))
                        if !guest.endAccess(reference) { race.wrong.add(1, ordering: .relaxed) }
                    }
                }
                for reference in mine {
                    owners.give(Int(reference))
                    _ = guest.endAccess(reference)
                }
            }
        }
        for thread in threads { pthread_join(thread, nil) }
        #expect(race.wrong.load(ordering: .relaxed) == 0)
        let all = try (0..<248).map { _ in try guest.grantAccess(to: 0, frame: 0, readOnly: true) }
        #expect(Set(all).count == 248)
        #expect(throws: OperationError.self) { try guest.grantAccess(to: 0, frame: 0, readOnly: true) }
    }

    private final class Owners: Sendable {
        private let taken = Mutex([Bool](repeating: false, count: 256))

        func take(_ index: Int) -> Bool {
            taken.withLock { list in
                defer { list[index] = true }
                return !list[index]
            }
        }

        func give(_ index: Int) {
            taken.withLock { $0[index] = false }
        }
    }
}
