// SPDX-License-Identifier: BSD-2-Clause
// XenStore and the hypervisor together: domains appear in the store and disappear from it.
import Base
import Glibc
import Synchronization
import Testing
import Xen
import XenLoopback

@Suite struct DomainStoreTests {
    @Test func aDomainSeesItsOwnHome() throws {
        let lab = try Lab()
        let guest = try lab.guest()
        let store = try guest.openStore()
        let zero = try lab.xen.platform().openStore()
        let home = "/local/domain/\(guest.id)"
        #expect(try store.domainPath(guest.id) == home)
        #expect(try store.text("domid") == "\(guest.id)")
        #expect(try zero.isDomainIntroduced(guest.id))
        try store.write("device/vbd/51712/state", "1")
        #expect(try zero.text(home + "/device/vbd/51712/state") == "1")
        #expect(throws: OperationError.self) { try store.write("/local/domain/0/backend/vbd/1/51712/state", "4") }
        try zero.write("/local/domain/0/backend/vbd/1/51712/state", "4")
    }

    @Test func aDestroyedDomainLeavesTheStore() throws {
        let lab = try Lab()
        let zero = try lab.xen.platform().openStore()
        try zero.watch("@releaseDomain", token: "gone")
        // The first event comes with the watch.
        while try zero.nextWatchEvent() == nil { usleep(1000) }
        let id: DomainID
        do {
            let guest = try lab.guest()
            id = guest.id
            #expect(try zero.isDomainIntroduced(id))
        }
        var event = try zero.nextWatchEvent()
        while event == nil {
            usleep(1000)
            event = try zero.nextWatchEvent()
        }
        #expect(event?.token == "gone")
        #expect(try !zero.isDomainIntroduced(id))
        #expect(throws: OperationError.self) { try zero.read("/local/domain/\(id)/domid", in: .none) }
        #expect(throws: OperationError.self) { try lab.xen.platform(domain: id).openStore() }
    }

    @Test func theSocketDecidesWhoConnects() throws {
        let lab = try Lab()
        let guests = try (0..<4).map { _ in try lab.guest() }
        let count = WrongCount()
        // XENSTORED_PATH belongs to the process: threads that open stores of several domains must not mix them up.
        let threads = guests.map { guest in
            onThread {
                for _ in 0..<50 {
                    guard let store = try? guest.openStore(), (try? store.text("domid")) == "\(guest.id)" else {
                        count.value.add(1, ordering: .relaxed)
                        return
                    }
                }
            }
        }
        for thread in threads { pthread_join(thread, nil) }
        #expect(count.value.load(ordering: .relaxed) == 0)
    }

    private final class WrongCount: Sendable {
        let value = Atomic<Int>(0)
    }

    @Test func aKilledFrontendsDomainLeavesTheStore() async throws {
        let lab = try Lab()
        let directory = lab.directory
        await #expect(processExitsWith: .signal(SIGKILL)) { [directory = directory as String] in
            let guest = try LoopbackDomain(directory: directory, domain: 12, pages: 4)
            let store = try guest.openStore()
            try store.write("device/vbd/51712/state", "3")
            kill(getpid(), SIGKILL)
        }
        try lab.eventually(12) { $0 == nil }
        let zero = try lab.xen.platform().openStore()
        #expect(try !zero.isDomainIntroduced(12))
        #expect(try !zero.list("/local/domain", in: .none).contains("12"))
    }
}
