// SPDX-License-Identifier: BSD-2-Clause
// Domains: made, listed, joined, destroyed; and a broker that no client can stop.
import Base
import CLinux
import Glibc
import TestSupport
import Testing
import Xen
import XenLoopback

@Suite struct DomainTests {
    private func code(_ body: () throws -> Void, _ location: SourceLocation = #_sourceLocation) -> Int32? {
        (#expect(throws: OperationError.self, sourceLocation: location) { try body() })?.code
    }

    @Test func domainsAreMadeListedAndDestroyed() throws {
        let lab = try Lab()
        let control = try LoopbackControl(directory: lab.directory)
        #expect(try control.domains().map(\.id) == [0])
        let first = try control.createDomain(pages: 100, grantEntries: 1000)
        let second = try control.createDomain(7)
        let third = try control.createDomain()
        #expect([first, second, third] == [1, 7, 2])
        #expect(code { _ = try control.createDomain(7) } == EEXIST)
        #expect(code { _ = try control.createDomain(0) } == EEXIST)
        #expect(code { _ = try control.createDomain(0x7ff0) } == EINVAL)
        #expect(code { _ = try control.createDomain(pages: 0) } == EINVAL)
        #expect(code { _ = try control.createDomain(pages: 1 << 40) } == EINVAL)
        #expect(code { _ = try control.createDomain(grantEntries: 0) } == EINVAL)
        #expect(code { _ = try control.createDomain(grantEntries: (1 << 20) + 1) } == EINVAL)

        let report = try #require(try control.domain(1))
        #expect(report.pages == 100)
        #expect(report.grantEntries == 1000)
        #expect(report.isAlive && report.frontends == 0 && !report.isDestroyedOnExit)
        try control.destroyDomain(7)
        #expect(code { try control.destroyDomain(7) } == ESRCH)
        #expect(code { try control.destroyDomain(0) } == EPERM)
        #expect(try control.domains().map(\.id) == [0, 1, 2])
        // Numbers come again as late as possible.
        #expect(try control.createDomain() == 3)
        #expect(try control.createDomain(7) == 7)
    }

    @Test func frontendsOfADomainShareNothing() throws {
        let lab = try Lab()
        let id = try LoopbackControl(directory: lab.directory).createDomain(pages: 16, grantEntries: 1000)
        #expect(code { _ = try LoopbackDomain(joining: 99, directory: lab.directory) } == ESRCH)
        #expect(try LoopbackDomain(joining: 0, directory: lab.directory).id == 0)
        let guests = try (0..<3).map { _ in try LoopbackDomain(joining: id, directory: lab.directory) }
        #expect(try lab.report(id)?.frontends == 3)
        var references: [UInt32] = []
        var frames: [UInt32] = []
        for round in 0..<150 {
            for guest in guests {
                references.append(try guest.grantAccess(to: 0, frame: 0, readOnly: true))
                if round < 5 { frames.append(try guest.allocateFrames(1)) }
            }
        }
        #expect(Set(references).count == 450)
        #expect(Set(frames).count == 15)
        #expect(guests.allSatisfy { $0.grantedReferences.count == 150 })
        #expect(try lab.report(id)?.grantedReferences == 450)
        for guest in guests {
            for reference in guest.grantedReferences { #expect(guest.endAccess(reference)) }
        }
        try guests[0].destroy()
        #expect(guests.allSatisfy { !$0.isAlive })
        #expect(code { try guests[1].destroy() } == ESRCH)
        #expect(code { _ = try guests[2].allocateFrames(1) } == ESRCH)
        guests[2].freeFrames(frames[2], count: 1)
    }

    @Test func whatABackendUsesWhenItsFrontendGoesIsGivenToNobodyUntilItIsDone() throws {
        let lab = try Lab()
        let id = try LoopbackControl(directory: lab.directory).createDomain(pages: 8, grantEntries: 16)
        let table = try lab.grants()
        let mapping: GrantMapping
        var isGranted: Bool { get throws { try lab.report(id)?.grantedReferences != 0 } }
        do {
            let guest = try LoopbackDomain(joining: id, directory: lab.directory)
            #expect(try guest.allocateFrames(6) == 0)
            guest.freeFrames(4, count: 1)
            let used = try guest.grantAccess(to: 0, frame: 1, readOnly: false)
            _ = try guest.grantAccess(to: 0, frame: 2, readOnly: false)
            mapping = try table.map([used], of: id, writable: true)
        }
        try lab.eventually(id) { $0?.frontends == 0 }
        #expect(try lab.report(id)?.grantedReferences == 1)
        let heir = try LoopbackDomain(joining: id, directory: lab.directory)
        #expect(code { _ = try heir.allocateFrames(3) } == ENOMEM)
        #expect(try heir.allocateFrames(1) == 4)
        let references = try (0..<7).map { _ in try heir.grantAccess(to: 0, frame: 7, readOnly: true) }
        #expect(references == [9, 10, 11, 12, 13, 14, 15])
        #expect(code { _ = try heir.grantAccess(to: 0, frame: 7, readOnly: true) } == ENOSPC)
        mapping.pages.store(1, at: 0)
        try table.unmap(mapping)
        #expect(try heir.grantAccess(to: 0, frame: 7, readOnly: true) == 8)
        #expect(try heir.allocateFrames(4) == 0)
    }

    @Test func aDomainGoesWithItsObject() throws {
        let lab = try Lab()
        let id: DomainID
        do {
            let guest = try lab.guest()
            id = guest.id
            let report = try #require(try lab.report(id))
            #expect(report.frontends == 1 && report.isDestroyedOnExit)
        }
        try lab.eventually(id) { $0 == nil }
    }

    @Test func framesAreGivenOnceAndComeBack() throws {
        let lab = try Lab()
        let guest = try lab.guest(pages: 16)
        var random = SplitMix64(seed: 99)
        var mine: [(first: UInt32, count: Int)] = []
        var taken = Set<UInt32>()
        for _ in 0..<2000 {
            let count = Int.random(in: 1...6, using: &random)
            if Bool.random(using: &random), let first = try? guest.allocateFrames(count) {
                for frame in first..<first + UInt32(count) { #expect(taken.insert(frame).inserted && frame < 16) }
                mine.append((first, count))
            } else if !mine.isEmpty {
                let range = mine.remove(at: Int.random(in: 0..<mine.count, using: &random))
                guest.freeFrames(range.first, count: range.count)
                for frame in range.first..<range.first + UInt32(range.count) { taken.remove(frame) }
            }
        }
        for range in mine { guest.freeFrames(range.first, count: range.count) }
        #expect(try guest.allocateFrames(16) == 0)
        #expect(code { _ = try guest.allocateFrames(1) } == ENOMEM)
        guest.freeFrames(3, count: 5)
        #expect(try guest.allocateFrames(5) == 3)
        guest.freeFrames(0, count: 16)
        #expect(code { _ = try guest.allocateFrames(0) } == ENOMEM)
        #expect(code { _ = try guest.allocateFrames(17) } == ENOMEM)
    }

    @Test func guestMemoryCannotShrinkOrGrow() throws {
        let lab = try Lab()
        let guest = try LoopbackDomain(directory: lab.directory, domain: 4321, pages: 5)
        // The broker runs in this process, so its descriptors are here.
        var sealed = 0
        for descriptor in Int32(3)..<20_000 {
            var name = [UInt8](repeating: 0, count: 256)
            let length = readlink("/proc/self/fd/\(descriptor)", &name, 256)
            if length <= 0 { continue }
            let target = String(decoding: name.prefix(length), as: UTF8.self)
            if !target.hasPrefix("/memfd:xbb-domain-\(guest.id) ") { continue }
            sealed += 1
            #expect(ftruncate(descriptor, 0) == -1)
            #expect(ftruncate(descriptor, 1 << 20) == -1)
        }
        #expect(sealed > 0)
        #expect(guest.read(frame: 4, count: 4096).count == 4096)
    }

    @Test func oneDirectoryHasOneHypervisor() throws {
        let lab = try Lab()
        #expect(code { _ = try LoopbackXen(directory: lab.directory) } == EADDRINUSE)
        #expect(try lab.xen.domains().count == 1)
        lab.xen.stop()
        lab.xen.stop()
        #expect(code { _ = try lab.guest() } != nil)
        #expect(code { _ = try LoopbackControl(directory: "/nonexistent") } == ENOENT)
        #expect(
            code { _ = try LoopbackControl(directory: "/" + String(repeating: "x", count: 200)) } == ENAMETOOLONG)
    }

    @Test func aKilledHypervisorLeavesADirectoryThatCanBeUsedAgain() async throws {
        let directory = try temporaryDirectory()
        defer { removeDirectory(directory) }
        await #expect(processExitsWith: .signal(SIGKILL)) { [directory = directory as String] in
            let xen = try LoopbackXen(directory: directory)
            let count = try xen.domains().count
            precondition(count == 1)
            kill(getpid(), SIGKILL)
        }
        let xen = try LoopbackXen(directory: directory)
        #expect(try xen.domains().count == 1)
    }

    /// Clients that break the protocol in every way the socket lets them; the others are served.
    @Test func noClientStopsTheBroker() throws {
        let lab = try Lab()
        let guest = try lab.guest()
        var random = SplitMix64(seed: 7)
        let path = lab.directory + "/hypervisor.sock"
        for round in 0..<400 {
            let socket = clinux_unix_connect(path, Int32(SOCK_SEQPACKET.rawValue))
            try #require(socket >= 0)
            // Odd rounds say hello first.
            var hello: [UInt32] = [1, 1, 0]
            if round % 2 == 1 { send(socket, &hello, 12, Int32(MSG_NOSIGNAL)) }
            for _ in 0..<8 {
                var words = (0..<Int.random(in: 0..<10, using: &random)).map { _ in
                    UInt32.random(in: 0..<16, using: &random)
                }
                if words.isEmpty { words = [UInt32.random(in: 0 ... .max, using: &random)] }
                let length = words.count * 4 - Int.random(in: 0..<4, using: &random)
                var descriptors = [Int32](repeating: socket, count: Int.random(in: 0...6, using: &random))
                // Nobody destroys the domain of this test.
                if words[0] == 3 { words[0] = 30 }
                clinux_send_fds(socket, &words, length, &descriptors, Int32(descriptors.count))
            }
            close(socket)
        }
        // A client that asks and never takes an answer is dropped, and nobody waits for it.
        let silent = clinux_unix_connect(path, Int32(SOCK_SEQPACKET.rawValue))
        var question: [UInt32] = [1, 1, 0]
        for _ in 0..<5000 {
            if send(silent, &question, 12, Int32(MSG_NOSIGNAL) | Int32(MSG_DONTWAIT)) < 0 { break }
            question = [4, 0]
        }
        #expect(guest.isAlive)
        let port = try guest.allocatePort(for: 0)
        let events = try lab.events()
        _ = try events.bind(port.number, of: guest.id)
        close(silent)
        try lab.eventually(0) { $0?.grantHandles == 0 && $0?.unboundPorts == 0 && $0?.boundPorts == 1 }
    }

    @Test func descriptorsAndMemoryOfClientsAreGivenBack() throws {
        let lab = try Lab()
        func descriptors() -> Int { (0..<4096).count { fcntl($0, F_GETFD) >= 0 } }
        func lifecycle() throws {
            let guest = try LoopbackDomain(directory: lab.directory, domain: 5, pages: 4, grantEntries: 64)
            let front = try guest.allocatePort(for: 0)
            let events = try lab.events()
            let port = try events.bind(front.number, of: 5)
            let table = try lab.grants()
            let mapping = try table.map(
                [try guest.grantAccess(to: 0, frame: 0, readOnly: false)], of: 5, writable: true)
            try events.notify(port)
            try table.unmap(mapping)
            try guest.destroy()
        }
        try lifecycle()
        let before = descriptors()
        for _ in 0..<50 { try lifecycle() }
        // Other tests of this process open and close descriptors meanwhile; 50 lives would leave hundreds.
        for _ in 0..<2000 where descriptors() > before + 100 { usleep(5000) }
        #expect(descriptors() <= before + 100)
    }
}
