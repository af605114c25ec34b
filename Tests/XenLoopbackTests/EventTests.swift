// SPDX-License-Identifier: BSD-2-Clause
// Event channels: binding, pending and mask, and who is woken.
import Base
import CLinux
import Glibc
import Synchronization
import TestSupport
import Testing
import Xen
import XenLoopback

@Suite struct EventTests {
    /// How often the descriptor was signalled since it was last drained.
    private func signals(_ descriptor: Int32) -> UInt64 {
        var count: UInt64 = 0
        return read(descriptor, &count, 8) == 8 ? count : 0
    }

    @Test func anEventGoesEachWay() throws {
        let lab = try Lab()
        let guest = try lab.guest()
        let events = try lab.events()
        let front = try guest.allocatePort(for: 0)
        #expect(!front.isBound)
        let port = try events.bind(front.number, of: guest.id)
        #expect(front.isBound)
        // The end that binds is pending at once.
        #expect(isReadable(events.fileDescriptor))
        #expect(try events.takePending() == port)
        try events.unmask(port)
        #expect(try events.takePending() == nil)
        #expect(!isReadable(events.fileDescriptor))

        try front.notify()
        #expect(isReadable(events.fileDescriptor))
        #expect(try events.takePending() == port)
        #expect(try events.takePending() == nil)
        try events.unmask(port)

        #expect(!isReadable(front.fileDescriptor))
        try events.notify(port)
        #expect(isReadable(front.fileDescriptor))
        #expect(front.isPending)
        #expect(front.takePending())
        #expect(!front.takePending())
        #expect(!isReadable(front.fileDescriptor))
        #expect(!front.wait(milliseconds: 0))
        #expect(!front.wait(milliseconds: 1))
    }

    /// A handle that was restricted to one guest cannot take another one's events, as Linux' evtchn.
    @Test func aRestrictedHandleBindsItsDomainAlone() throws {
        let lab = try Lab()
        let guest = try lab.guest()
        let other = try lab.guest()
        let events = try lab.events()
        let early = try other.allocatePort(for: 0)
        let before = try events.bind(early.number, of: other.id)
        func refusal(_ body: () throws -> Void) -> Int32 {
            do {
                try body()
                return 0
            } catch {
                return (error as? OperationError)?.code ?? -1
            }
        }
        #expect(refusal { try events.restrict(to: 0) } == EINVAL)
        #expect(refusal { try events.restrict(to: 0x7ff0) } == EINVAL)
        try events.restrict(to: guest.id)
        let port = try other.allocatePort(for: 0)
        #expect(refusal { _ = try events.bind(port.number, of: other.id) } == EACCES)
        #expect(!port.isBound)
        #expect(refusal { try events.restrict(to: other.id) } == EACCES)
        #expect(refusal { try events.restrict(to: guest.id) } == EACCES)
        let own = try guest.allocatePort(for: 0)
        let bound = try events.bind(own.number, of: guest.id)
        #expect(own.isBound)
        try events.notify(bound)
        #expect(own.takePending())
        // What was bound before stays.
        try events.notify(before)
        #expect(early.takePending())
        try events.unbind(before)
        try events.unbind(bound)
    }

    @Test func onlyTheFirstOfManyEventsWakes() throws {
        let lab = try Lab()
        let guest = try lab.guest()
        let events = try lab.events()
        let front = try guest.allocatePort(for: 0)
        let port = try events.bind(front.number, of: guest.id)
        #expect(signals(events.fileDescriptor) == 1)
        for _ in 0..<5 { try front.notify() }
        #expect(signals(events.fileDescriptor) == 0)
        #expect(try events.takePending() == port)

        // Masked now: a storm wakes nobody, and is one event after unmask (XSA-332).
        for _ in 0..<100_000 { try front.notify() }
        #expect(signals(events.fileDescriptor) == 0)
        #expect(try events.takePending() == nil)
        try events.unmask(port)
        #expect(signals(events.fileDescriptor) == 1)
        #expect(try events.takePending() == port)
        #expect(try events.takePending() == nil)
        try events.unmask(port)
        #expect(signals(events.fileDescriptor) == 0)

        for _ in 0..<5 { try events.notify(port) }
        #expect(signals(front.fileDescriptor) == 1)
        #expect(front.takePending())
        front.mask()
        for _ in 0..<5 { try events.notify(port) }
        #expect(signals(front.fileDescriptor) == 0)
        #expect(!front.takePending())
        front.unmask()
        #expect(isReadable(front.fileDescriptor))
        #expect(front.takePending())
    }

    @Test func anEventThatComesWhileThePortIsServedIsSeenAfterUnmask() throws {
        let lab = try Lab()
        let guest = try lab.guest()
        let events = try lab.events()
        let front = try guest.allocatePort(for: 0)
        let port = try events.bind(front.number, of: guest.id)
        for _ in 0..<10 {
            // The undrained signal of the event that is being served is enough to wake for the next one.
            #expect(isReadable(events.fileDescriptor))
            #expect(try events.takePending() == port)
            try front.notify()
            try events.unmask(port)
        }
        #expect(try events.takePending() == port)
        #expect(try events.takePending() == nil)
        try front.notify()
        #expect(!isReadable(events.fileDescriptor))
        try events.unmask(port)
        #expect(isReadable(events.fileDescriptor))
    }

    @Test func portsAreBoundByTheRulesOfXen() throws {
        let lab = try Lab()
        let control = try LoopbackControl(directory: lab.directory)
        let driver = try control.createDomain(pages: 1)
        let guest = try lab.guest()
        let zero = try lab.events()
        let other = try lab.events(of: driver)
        let front = try guest.allocatePort(for: 0)
        func code(_ body: () throws -> Void) -> Int32? {
            (#expect(throws: OperationError.self) { try body() })?.code
        }
        #expect(code { _ = try zero.bind(front.number, of: 99) } == ESRCH)
        #expect(code { _ = try zero.bind(front.number + 1, of: guest.id) } == EINVAL)
        #expect(code { _ = try zero.bind(0, of: guest.id) } == EINVAL)
        #expect(code { _ = try zero.bind(0xffff_ffff, of: guest.id) } == EINVAL)
        #expect(code { _ = try other.bind(front.number, of: guest.id) } == EINVAL)
        let port = try zero.bind(front.number, of: guest.id)
        #expect(code { _ = try zero.bind(front.number, of: guest.id) } == EINVAL)
        #expect(code { _ = try lab.events().bind(front.number, of: guest.id) } == EINVAL)
        #expect(code { try zero.notify(port + 1) } == ENOTCONN)
        #expect(code { try zero.unbind(port + 1) } == ENOTCONN)
        try zero.unmask(port + 1)
        #expect(try lab.report(guest.id)?.boundPorts == 1)
        #expect(try lab.report(0)?.boundPorts == 1)

        // Unbound again, and nobody hears it.
        #expect(try zero.takePending() == port)
        #expect(try zero.takePending() == nil)
        try zero.unbind(port)
        #expect(!front.isBound)
        try front.notify()
        #expect(code { try zero.notify(port) } == ENOTCONN)
        #expect(try lab.report(guest.id)?.unboundPorts == 1)
        #expect(try lab.report(0)?.boundPorts == 0)
        #expect(code { _ = try other.bind(front.number, of: guest.id) } == EINVAL)

        // The frontend reaches whoever binds next; the lowest free number comes again.
        let next = try lab.events()
        #expect(try next.bind(front.number, of: guest.id) == port)
        #expect(try next.takePending() == port)
        try next.unmask(port)
        #expect(try next.takePending() == nil)
        try front.notify()
        #expect(isReadable(next.fileDescriptor))
        #expect(!isReadable(zero.fileDescriptor))
        #expect(try next.takePending() == port)
        try next.notify(port)
        #expect(front.wait(milliseconds: -1))
    }

    @Test func aFrontendThatClosesLeavesAnUnboundPort() throws {
        let lab = try Lab()
        let guest = try lab.guest()
        let events = try lab.events()
        let front = try guest.allocatePort(for: 0)
        let port = try events.bind(front.number, of: guest.id)
        front.close()
        #expect(throws: OperationError.self) { try front.notify() }
        try events.notify(port)
        #expect(try lab.report(0)?.unboundPorts == 1)
        #expect(try lab.report(guest.id)?.unboundPorts == 0)
        // Xen lets the domain whose end was closed bind the surviving end.
        let back = try lab.events(of: guest.id)
        let again = try back.bind(port, of: 0)
        #expect(try back.takePending() == again)
        try back.unmask(again)
        #expect(try back.takePending() == nil)
        try events.notify(port)
        #expect(try back.takePending() == again)
        try events.unbind(port)
        #expect(try lab.report(0)?.unboundPorts == 0)
    }

    @Test func aDestroyedDomainClosesItsPorts() throws {
        let lab = try Lab()
        let guest = try lab.guest()
        let events = try lab.events()
        let fronts = try (0..<3).map { _ in try guest.allocatePort(for: 0) }
        let ports = try fronts.prefix(2).map { try events.bind($0.number, of: guest.id) }
        try guest.destroy()
        for port in ports { try events.notify(port) }
        #expect(try lab.report(0)?.unboundPorts == 2)
        #expect(!fronts[0].isBound)
        try fronts[0].notify()
        #expect(throws: OperationError.self) { try guest.allocatePort(for: 0) }
        for port in ports { try events.unbind(port) }
        #expect(try lab.report(0)?.unboundPorts == 0)
    }

    @Test func noPortOfAHandleStarvesAnother() throws {
        let lab = try Lab()
        let guest = try lab.guest()
        let events = try lab.events()
        let fronts = try (0..<4).map { _ in try guest.allocatePort(for: 0) }
        let ports = try fronts.map { try events.bind($0.number, of: guest.id) }
        var taken: [EventPort: Int] = [:]
        for _ in 0..<400 {
            for front in fronts { try front.notify() }
            let port = try #require(try events.takePending())
            taken[port, default: 0] += 1
            try events.unmask(port)
        }
        for port in ports { #expect(taken[port] == 100) }
    }

    @Test func aDomainHas4095Ports() throws {
        let lab = try Lab()
        let guest = try lab.guest()
        // The descriptors of the ports are the process's: stay below the usual limit.
        var limit = rlimit()
        getrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit)
        let count = min(4095, Int(limit.rlim_cur) / 8)
        var ports: [LoopbackPort] = []
        for number in 1...count {
            ports.append(try guest.allocatePort(for: 0))
            #expect(ports.last?.number == EventPort(number))
        }
        ports.remove(at: 10)
        #expect(try guest.allocatePort(for: 0).number == 11)
        #expect(try lab.report(guest.id)?.unboundPorts == count - 1)
    }

    private final class Counts: Sendable {
        let sent = Atomic<Int>(0)
        let seen = Atomic<Int>(0)
        let done = Atomic<Bool>(false)
    }

    /// A sender that stops only when its last event was served: a lost wake-up would stop the test for ever.
    @Test func noWakeUpIsLost() throws {
        let lab = try Lab()
        let guest = try lab.guest()
        let front = try guest.allocatePort(for: 0)
        let counts = Counts()
        let number = front.number
        let id = guest.id
        let server = onThread {
            guard let events = try? lab.events(), let port = try? events.bind(number, of: id) else { return }
            while !counts.done.load(ordering: .acquiring) {
                var entry = pollfd(fd: events.fileDescriptor, events: Int16(POLLIN), revents: 0)
                if poll(&entry, 1, 20_000) != 1 { return }
                while let pending = try? events.takePending() {
                    // What was sent is read after the event was taken, as a ring is drained.
                    counts.seen.store(counts.sent.load(ordering: .acquiring), ordering: .releasing)
                    try? events.notify(port)
                    try? events.unmask(pending)
                }
            }
        }
        var random = SplitMix64(seed: 1)
        var lost = 0
        for round in 1...50_000 {
            counts.sent.store(round, ordering: .releasing)
            try front.notify()
            // Sometimes several in a row, sometimes a full round trip.
            if random.next() % 4 == 0 {
                while counts.seen.load(ordering: .acquiring) != round {
                    if !front.wait(milliseconds: 20_000) { lost += 1 }
                    if lost > 0 { break }
                }
            }
            if lost > 0 { break }
        }
        counts.done.store(true, ordering: .releasing)
        try front.notify()
        pthread_join(server, nil)
        #expect(lost == 0)
    }
}
