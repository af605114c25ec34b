// SPDX-License-Identifier: BSD-2-Clause
// Processes that are killed with kill -9 while they use a domain: whatever they held is released.
import CXen
import Glibc
import Memory
import Synchronization
import Testing
import Xen
import XenLoopback

/// Exit tests run their body in a process of its own, which ends as the body says. While it lives it keeps a thread of
/// the tests' pool, so whatever has to go on meanwhile goes on in a thread outside the pool.
@Suite struct DomainDeathTests {
    /// What a thread saw while the other process lived.
    private final class Sight: Sendable {
        struct Facts {
            var isBound = false
            var value: UInt32 = 0
            var ended = true
            var mapped: Int?
            var wasAsleep = false
        }
        let facts = Mutex(Facts())
    }

    @Test func aKilledBackendLeavesNothing() async throws {
        let lab = try Lab()
        let guest = try lab.guest()
        let directory = lab.directory
        let id = guest.id
        let front = try guest.allocatePort(for: 0)
        let number = front.number
        let reference = try guest.grantAccess(to: 0, frame: 0, readOnly: false)
        let sight = Sight()
        let observer = onThread {
            // The backend has mapped; it dies when it gets our event.
            _ = front.wait(milliseconds: -1)
            let mapped = (try? lab.report(id))??.mappedGrants
            sight.facts.withLock { facts in
                facts.isBound = front.isBound
                facts.value = guest.pages(at: 0).load(at: 0)
                facts.ended = guest.endAccess(reference)
                facts.mapped = mapped
            }
            try? front.notify()
        }
        await #expect(processExitsWith: .signal(SIGKILL)) {
            [
                directory = directory as String, id = id as DomainID, number = number as EventPort,
                reference = reference as UInt32
            ] in
            let platform = LoopbackPlatform(directory: directory)
            let table = try platform.openGrants()
            let events = try platform.openEvents()
            let port = try events.bind(number, of: id)
            let mapping = try table.map([reference, reference], of: id, writable: true)
            mapping.pages.store(4711, at: 0)
            _ = try events.takePending()
            try events.unmask(port)
            try events.notify(port)
            while try events.takePending() == nil {
                var entry = pollfd(fd: events.fileDescriptor, events: Int16(POLLIN), revents: 0)
                poll(&entry, 1, -1)
            }
            kill(getpid(), SIGKILL)
        }
        pthread_join(observer, nil)
        sight.facts.withLock { facts in
            #expect(facts.isBound)
            #expect(facts.value == 4711)
            #expect(!facts.ended)
            #expect(facts.mapped == 2)
        }

        // Not at some later time: whoever knows of the end may count on it.
        guest.settle()
        #expect(!guest.isInUse(reference))
        try lab.eventually(id) { $0?.mappedGrants == 0 && $0?.grantHandles == 0 && $0?.unboundPorts == 1 }
        #expect(!front.isBound)
        #expect(guest.entryFlags(reference) & UInt16(GTF_reading | GTF_writing) == 0)
        try front.notify()

        // The next backend takes over where the old one was.
        let events = try lab.events()
        let port = try events.bind(number, of: id)
        let table = try lab.grants()
        let mapping = try table.map([reference], of: id, writable: true)
        #expect(mapping.pages.load(at: 0) == 4711)
        try events.notify(port)
        #expect(front.takePending())
        try table.unmap(mapping)
        #expect(guest.endAccess(reference))
    }

    @Test func aBackendKilledWhileItCopiesLeavesNoMarks() async throws {
        let lab = try Lab()
        let guest = try lab.guest(pages: 256, entries: 512)
        let directory = lab.directory
        let id = guest.id
        let first = try guest.allocateFrames(128)
        let references = try (0..<128).map { try guest.grantAccess(to: 0, frame: first + $0, readOnly: false) }
        for _ in 0..<3 {
            let lowest = references[0]
            await #expect(processExitsWith: .signal(SIGKILL)) {
                [directory = directory as String, id = id as DomainID, lowest = lowest as UInt32] in
                let table = try LoopbackPlatform(directory: directory).openGrants()
                let host = try hostMemory(pages: 1)
                let copies = (0..<128).map { Copy(reference: lowest + $0, domain: id, toGuest: true) }
                let done = onThread {
                    usleep(20_000)
                    kill(getpid(), SIGKILL)
                }
                while true { _ = try run(copies, on: table, host: host) }
                pthread_join(done, nil)
            }
            guest.settle()
            for reference in references { #expect(!guest.isInUse(reference)) }
            try lab.eventually(id) { $0?.grantHandles == 0 && $0?.copyingReferences == 0 }
        }
        for reference in references { #expect(guest.endAccess(reference)) }
    }

    @Test func aDomainGoesWithItsFrontendIfItWasMadeSo() async throws {
        let lab = try Lab()
        let directory = lab.directory
        await #expect(processExitsWith: .signal(SIGKILL)) { [directory = directory as String] in
            let guest = try LoopbackDomain(directory: directory, domain: 9, pages: 4, destroyOnExit: true)
            _ = try guest.grantAccess(to: 0, frame: 0, readOnly: false)
            _ = try guest.allocatePort(for: 0)
            kill(getpid(), SIGKILL)
        }
        try lab.eventually(9) { $0 == nil }
        #expect(try lab.xen.domains().map(\.id) == [0])
    }

    @Test func aDomainThatStaysCanBeJoinedAgain() async throws {
        let lab = try Lab()
        let directory = lab.directory
        await #expect(processExitsWith: .signal(SIGKILL)) { [directory = directory as String] in
            let guest = try LoopbackDomain(directory: directory, domain: 9, pages: 4, destroyOnExit: false)
            guest.write([1, 2, 3], frame: 2)
            let reference = try guest.grantAccess(to: 0, frame: 2, readOnly: false)
            let port = try guest.allocatePort(for: 0)
            precondition(reference == 8 && port.number == 1)
            kill(getpid(), SIGKILL)
        }
        try lab.eventually(9) { $0?.frontends == 0 }
        let report = try #require(try lab.report(9))
        #expect(report.unboundPorts == 0 && report.grantedReferences == 0)
        let guest = try LoopbackDomain(joining: 9, directory: directory)
        #expect(guest.grantedReferences == [])
        #expect(try guest.allocateFrames(4) == 0)
        #expect(guest.read(frame: 2, count: 3) == [1, 2, 3])
        #expect(try guest.grantAccess(to: 0, frame: 0, readOnly: false) == 8)
        try guest.destroy()
    }

    /// A frontend that is killed between setting the pending bit and waking must not leave the backend asleep.
    @Test func aFrontendKilledWhileItNotifiesDoesNotStopTheBackend() async throws {
        let lab = try Lab()
        let directory = lab.directory
        let sight = Sight()
        for _ in 0..<4 {
            let backend = onThread {
                guard let events = try? lab.events() else { return }
                var bound: EventPort?
                while bound == nil {
                    bound = try? events.bind(1, of: 9)
                    usleep(1000)
                }
                while (try? lab.report(9)) != .some(nil) {
                    while let pending = try? events.takePending() { try? events.unmask(pending) }
                }
                // What is pending has woken the handle.
                let isAwake = isReadable(events.fileDescriptor)
                let pending = try? events.takePending()
                if pending != nil && !isAwake { sight.facts.withLock { $0.wasAsleep = true } }
            }
            await #expect(processExitsWith: .signal(SIGKILL)) { [directory = directory as String] in
                let guest = try LoopbackDomain(directory: directory, domain: 9, pages: 4)
                let front = try guest.allocatePort(for: 0)
                while !front.isBound { usleep(1000) }
                let killer = onThread {
                    usleep(20_000)
                    kill(getpid(), SIGKILL)
                }
                while true { try front.notify() }
                pthread_join(killer, nil)
            }
            pthread_join(backend, nil)
        }
        #expect(sight.facts.withLock { !$0.wasAsleep })
        try lab.eventually(0) { $0?.unboundPorts == 0 }
    }
}
