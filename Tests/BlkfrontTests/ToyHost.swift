// SPDX-License-Identifier: BSD-2-Clause
// A toolstack and a backend for one disk, over the real XenStore: what is needed to negotiate with.
import Base
import Blkfront
import Blkif
import CLinux
import Glibc
import Synchronization
import Testing
import Xen
import XenBus
import XenLoopback

/// What the backend offers and how it behaves.
struct ToySettings: Sendable {
    var maxRingPageOrder: Int? = 5
    var maxQueues: Int? = 4
    var sectors = 8192
    var keys = [
        "sector-size": "512", "physical-sector-size": "4096", "info": "0", "feature-flush-cache": "1",
        "feature-barrier": "1", "feature-discard": "1", "discard-granularity": "4096", "discard-alignment": "0",
    ]
    var mischief = Mischief.none
    var mischiefAt = 0
    /// Never leaves this state by itself.
    var stuckIn: XenbusState?
    /// Answers Initialised with Closing.
    var refuses = false
}

/// One disk of a domain, with its nodes.
final class ToyHost: @unchecked Sendable {
    let domain: DomainID
    let number: UInt32
    let disk: MemoryDisk
    let front: String
    let back: String
    private let store: LibXenStore
    private let toolstack: LibXenStore
    private let platform: LoopbackPlatform
    private let settings: ToySettings
    private var queues: [TestBackend] = []
    private let stopping = Atomic<Bool>(false)
    private let wake = eventfd(0, Int32(EFD_CLOEXEC | EFD_NONBLOCK))
    private var thread: FrontThread?
    /// The keys of the frontend at its last connection.
    let lastKeys = Mutex<[String: String]>([:])
    /// The states that the frontend showed.
    let frontStates = Mutex<[XenbusState]>([])
    let failure = Mutex<String?>(nil)

    init(_ platform: LoopbackPlatform, domain: DomainID, number: UInt32 = 51712, settings: ToySettings = .init()) throws
    {
        self.platform = platform
        self.domain = domain
        self.number = number
        self.settings = settings
        disk = MemoryDisk(sectors: UInt64(settings.sectors))
        front = "/local/domain/\(domain)/device/vbd/\(number)"
        back = "/local/domain/0/backend/vbd/\(domain)/\(number)"
        store = try #require(try platform.openStore() as? LibXenStore)
        toolstack = try #require(try platform.openStore() as? LibXenStore)
        try makeNodes()
        try store.watch("\(front)/state", token: "front")
        thread = try FrontThread(name: "toy-host") { [self] in run() }
    }

    /// What libxl writes.
    private func makeNodes() throws {
        let owners: [(String, [XenStorePermission], [(String, String)])] = [
            (
                front,
                [.init(domain: domain, read: false, write: false), .init(domain: 0, read: true, write: false)],
                [
                    ("backend", back), ("backend-id", "0"), ("state", "1"), ("virtual-device", String(number)),
                    ("device-type", "disk"), ("trusted", "1"),
                ]
            ),
            (
                back,
                [.init(domain: 0, read: false, write: false), .init(domain: domain, read: true, write: false)],
                [("frontend", front), ("frontend-id", String(domain)), ("online", "1"), ("state", "1"), ("mode", "w")]
            ),
        ]
        try toolstack.transaction { transaction throws(OperationError) in
            for (path, permissions, keys) in owners {
                try toolstack.makeDirectory(path, in: transaction)
                try toolstack.setPermissions(of: path, to: permissions, in: transaction)
                for (key, value) in keys { try toolstack.write("\(path)/\(key)", value, in: transaction) }
            }
        }
    }

    /// Runs `body` with the toolstack's connection.
    func asToolstack<Result>(_ body: (LibXenStore) throws -> Result) rethrows -> Result { try body(toolstack) }

    /// Makes the disk look larger or smaller, as a backend does: the size, then Connected again.
    func resize(sectors: Int) throws {
        try toolstack.write("\(back)/sectors", String(sectors))
        try toolstack.write("\(back)/state", "4")
    }

    func stop() throws {
        stopping.store(true, ordering: .releasing)
        _ = eventfd_write(wake, 1)
        thread?.join()
        thread = nil
        try stopQueues()
        close(wake)
        #expect(failure.withLock { $0 } == nil)
    }

    // MARK: The backend's thread

    private func run() {
        do {
            try offer()
            while !stopping.load(ordering: .acquiring) {
                var changed = false
                while try store.nextWatchEvent() != nil { changed = true }
                if changed { try followFrontend() }
                var items = [
                    pollfd(fd: store.watchFileDescriptor, events: Int16(POLLIN), revents: 0),
                    pollfd(fd: wake, events: Int16(POLLIN), revents: 0),
                ]
                _ = poll(&items, 2, -1)
            }
        } catch {
            failure.withLock { $0 = "\(error)" }
        }
    }

    private func setState(_ state: XenbusState) throws {
        try store.write("\(back)/state", state.text)
    }

    private func offer() throws {
        if settings.stuckIn == .initialising { return }
        if let order = settings.maxRingPageOrder { try store.write("\(back)/max-ring-page-order", String(order)) }
        if let queues = settings.maxQueues { try store.write("\(back)/multi-queue-max-queues", String(queues)) }
        try setState(.initWait)
    }

    private func followFrontend() throws {
        let state = XenbusState(try store.text("\(front)/state"))
        frontStates.withLock { if $0.last != state { $0.append(state) } }
        let own = XenbusState(try store.text("\(back)/state"))
        if own == settings.stuckIn { return }
        switch (state, own) {
        case (.initialised, .initWait), (.connected, .initWait):
            if settings.refuses { try setState(.closing) } else { try connect() }
        case (.initialising, .closed): try offer()
        case (.closing, .initWait), (.closing, .connected): try setState(.closing)
        case (.closed, _) where own != .closed && own != .initWait, (.unknown, .connected), (.unknown, .closing):
            try stopQueues()
            try setState(.closed)
        default: break
        }
    }

    private func connect() throws {
        var keys: [String: String] = [:]
        for name in try store.list(front, in: .none) { keys[name] = try store.text("\(front)/\(name)") }
        let count = keys["multi-queue-num-queues"].flatMap { Int($0) } ?? 1
        for queue in 0..<count where count > 1 {
            for name in try store.list("\(front)/queue-\(queue)", in: .none) {
                keys["queue-\(queue)/\(name)"] = try store.text("\(front)/queue-\(queue)/\(name)")
            }
        }
        lastKeys.withLock { $0 = keys }
        for queue in 0..<count {
            let prefix = count > 1 ? "queue-\(queue)/" : ""
            var references: [UInt32] = []
            if let reference = keys["\(prefix)ring-ref"].flatMap({ UInt32($0) }) {
                references = [reference]
            } else {
                let order = keys["ring-page-order"].flatMap { Int($0) }.map { 1 << $0 }
                let pages = order ?? keys["num-ring-pages"].flatMap { Int($0) } ?? 1
                references = (0..<pages).compactMap { keys["\(prefix)ring-ref\($0)"].flatMap { UInt32($0) } }
                if references.count != pages { throw OperationError(EINVAL, "ring references of queue \(queue)") }
            }
            guard let port = keys["\(prefix)event-channel"].flatMap({ UInt32($0) }) else {
                throw OperationError(EINVAL, "event channel of queue \(queue)")
            }
            queues.append(
                try TestBackend(
                    platform, domain: domain, references: references, port: port,
                    abi: keys["protocol"] == "x86_32-abi" ? .x86_32 : .native, disk: disk,
                    mischief: settings.mischief, at: settings.mischiefAt))
        }
        try store.transaction { transaction throws(OperationError) in
            try store.write("\(back)/sectors", String(settings.sectors), in: transaction)
            for (key, value) in settings.keys { try store.write("\(back)/\(key)", value, in: transaction) }
            try store.write("\(back)/state", "4", in: transaction)
        }
    }

    private func stopQueues() throws {
        for queue in queues { try queue.stop() }
        queues = []
    }
}
