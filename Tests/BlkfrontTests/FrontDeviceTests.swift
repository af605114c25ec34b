// SPDX-License-Identifier: BSD-2-Clause
// Negotiation over the real XenStore: keys, states, refusals, closing and connecting again.
import Blkfront
import Blkif
import Testing
import Xen
import XenBus
import XenLoopback

@Suite struct FrontDeviceTests {
    /// Connects, moves data through every queue, closes; the keys that the backend saw.
    private func roundTrip(
        _ settings: ToySettings = ToySettings(), _ change: (inout FrontOptions) -> Void
    ) throws -> (keys: [String: String], device: FrontDevice, states: [XenbusState]) {
        let lab = try DeviceLab()
        let host = try lab.host(settings: settings)
        let device = try lab.device(change)
        try device.connect()
        #expect(device.state == .connected)
        #expect(try device.backendState() == .connected)
        for (index, box) in device.queues.enumerated() {
            try box.withQueue { queue in
                let written = try queue.perform(.write, sector: UInt64(index * 88), byteCount: 45056, fill: 7)
                #expect(written.status == 0)
                queue.release(written.id)
            }
        }
        #expect(host.disk.bytes(at: 0, count: device.queues.count * 45056).allSatisfy { $0 == 7 })
        let keys = host.lastKeys.withLock { $0 }
        try device.close()
        #expect(device.state == .closed && device.leakedGrants.isEmpty)
        #expect(try device.backendState() == .closed)
        let report = try lab.report()
        #expect(report.grantedReferences == 0 && report.mappedGrants == 0 && report.boundPorts == 0)
        let states = host.frontStates.withLock { $0 }
        try lab.stop()
        return (keys, device, states)
    }

    @Test func onePageAsLinux() throws {
        let (keys, device, states) = try roundTrip { _ in }
        #expect(Set(keys.keys).isSuperset(of: ["ring-ref", "event-channel", "protocol", "feature-persistent"]))
        #expect(keys["ring-page-order"] == nil && keys["num-ring-pages"] == nil && keys["ring-ref0"] == nil)
        #expect(keys["multi-queue-num-queues"] == nil)
        #expect(keys["protocol"] == "x86_64-abi" && keys["feature-persistent"] == "0")
        #expect(device.info.byteCount == 8192 * 512 && device.info.physicalSectorSize == 4096)
        #expect(device.info.flush && device.info.barrier && device.info.discard && !device.info.readOnly)
        #expect(device.info.discardGranularity == 4096)
        #expect(states.suffix(4) == [.initialised, .connected, .closing, .closed])
    }

    @Test(arguments: [2, 4, 8, 16, 32])
    func morePagesAsLinux(pages: Int) throws {
        let (keys, device, _) = try roundTrip { $0.ringPages = pages }
        #expect(keys["ring-page-order"] == String(pages.trailingZeroBitCount))
        #expect(keys["ring-ref\(pages - 1)"] != nil && keys["ring-ref\(pages)"] == nil && keys["ring-ref"] == nil)
        #expect(device.ringPages == pages)
    }

    @Test(arguments: RingScheme.allCases)
    func everySchemeOfRingReferences(scheme: RingScheme) throws {
        let pages = scheme == .pageOrderZero ? 1 : 4
        let (keys, _, _) = try roundTrip {
            $0.ringPages = pages
            $0.ringScheme = scheme
        }
        switch scheme {
        case .automatic, .pageOrder: #expect(keys["ring-page-order"] == "2" && keys["num-ring-pages"] == nil)
        case .pageOrderZero: #expect(keys["ring-page-order"] == "0" && keys["ring-ref"] != nil)
        case .pageCount: #expect(keys["ring-page-order"] == nil && keys["num-ring-pages"] == "4")
        case .both: #expect(keys["ring-page-order"] == "2" && keys["num-ring-pages"] == "4")
        }
    }

    @Test func aSmallBackendGetsASmallRing() throws {
        var settings = ToySettings()
        settings.maxRingPageOrder = nil
        settings.maxQueues = nil
        let (keys, device, _) = try roundTrip(settings) {
            $0.ringPages = 32
            $0.queues = 8
        }
        #expect(device.ringPages == 1 && keys["ring-ref"] != nil && keys["multi-queue-num-queues"] == nil)
    }

    @Test(arguments: [1, 4])
    func queuesHaveTheirOwnDirectories(pages: Int) throws {
        let (keys, _, _) = try roundTrip {
            $0.queues = 8
            $0.ringPages = pages
        }
        #expect(keys["multi-queue-num-queues"] == "4")
        #expect(keys["ring-ref"] == nil && keys["event-channel"] == nil)
        for queue in 0..<4 {
            #expect(keys["queue-\(queue)/event-channel"] != nil)
            #expect(keys["queue-\(queue)/\(pages == 1 ? "ring-ref" : "ring-ref3")"] != nil)
        }
        #expect(keys["ring-page-order"] == (pages == 1 ? nil : "2"))
    }

    @Test(
        arguments: [
            (RingABI.x86_32, ProtocolKey.ofABI, "x86_32-abi"), (.x86_64, .ofABI, "x86_64-abi"), (.native, .absent, nil),
            (.native, .text("native"), "native"),
        ] as [(RingABI, ProtocolKey, String?)])
    func theKeyProtocol(abi: RingABI, key: ProtocolKey, text: String?) throws {
        let (keys, _, _) = try roundTrip {
            $0.abi = abi
            $0.protocolKey = key
        }
        #expect(keys["protocol"] == text)
    }

    @Test func connectingDirectlyIsPossible() throws {
        let (keys, _, states) = try roundTrip {
            $0.connectsDirectly = true
            $0.offersPersistentGrants = true
            $0.grants = .pooled
            $0.requestsPerQueue = 8
        }
        #expect(keys["feature-persistent"] == "1")
        #expect(!states.contains(.initialised))
    }

    @Test func connectingAgainAndAgain() throws {
        let lab = try DeviceLab()
        _ = try lab.host()
        let device = try lab.device()
        for round in 0..<5 {
            device.options.queues = 1 + round % 3
            device.options.ringPages = 1 << (round % 3)
            try device.connect()
            #expect(device.queues.count == 1 + round % 3)
            try device.queues[0].withQueue { queue in
                queue.release(try queue.perform(.write, sector: 0, byteCount: 4096).id)
            }
            try device.close()
            #expect(try lab.report().grantedReferences == 0)
        }
        try lab.stop()
    }

    @Test func whatAnEarlierFrontendLeftOpenIsClosedFirst() throws {
        let lab = try DeviceLab()
        let host = try lab.host()
        let first = try lab.device()
        try first.connect()
        // The process dies without a word, its domain lives; a new frontend comes.
        let second = try lab.device()
        try second.connect()
        let states = host.frontStates.withLock { $0 }
        #expect(states.contains(.closing) && states.contains(.closed))
        try second.close()
        first.dismantle()
        #expect(first.leakedGrants.isEmpty)
        try lab.stop()
    }

    @Test func aBackendThatIsStuckIsNamed() throws {
        for (stuck, word) in [(XenbusState.initialising, "reach InitWait"), (.initWait, "connect")] {
            let lab = try DeviceLab()
            var settings = ToySettings()
            settings.stuckIn = stuck
            _ = try lab.host(settings: settings)
            let device = try lab.device { $0.timeout = 200 }
            let error = #expect(throws: BlkfrontError.self) { try device.connect() }
            #expect("\(try #require(error))".contains(word))
            #expect(try lab.report().grantedReferences == 0)
            try lab.stop()
        }
    }

    @Test func aBackendThatRefusesIsNamed() throws {
        let lab = try DeviceLab()
        var settings = ToySettings()
        settings.refuses = true
        let host = try lab.host(settings: settings)
        try host.asToolstack { try $0.write("\(host.back)/hotplug-error", "no such image") }
        let device = try lab.device()
        let error = #expect(throws: BlkfrontError.self) { try device.connect() }
        #expect(error == .closed("the backend refuses to connect: no such image"))
        try lab.stop()
    }

    @Test(arguments: ["sectors", "info", "sector-size"], ["", "x", "-1"])
    func keysOfTheBackendThatMakeNoSense(key: String, value: String) throws {
        let lab = try DeviceLab()
        var settings = ToySettings()
        settings.keys[key] = value
        _ = try lab.host(settings: settings)
        let device = try lab.device()
        let error = #expect(throws: BlkfrontError.self) { try device.connect() }
        guard case .badKey(let path, _) = error else {
            Issue.record("\(String(describing: error))")
            return
        }
        #expect(path.hasSuffix(key))
        try lab.stop()
    }

    @Test func optionsThatMakeNoSense() throws {
        let lab = try DeviceLab()
        let changes: [(inout FrontOptions) -> Void] = [
            { $0.ringPages = 0 }, { $0.ringPages = 3 }, { $0.ringPages = 64 }, { $0.queues = 0 },
            { $0.requestsPerQueue = 0 },
            {
                $0.ringScheme = .pageOrderZero
                $0.ringPages = 2
            },
        ]
        for change in changes {
            let device = try lab.device(change)
            guard case .invalid = #expect(throws: BlkfrontError.self, performing: { try device.connect() }) else {
                Issue.record("not refused")
                continue
            }
        }
        let missing = try lab.device()
        #expect(throws: BlkfrontError.badKey(path: "\(missing.path)/backend", value: nil)) { try missing.connect() }
        try lab.stop()
    }

    @Test func aDomainWithoutMemoryGivesBackWhatItGave() throws {
        let lab = try DeviceLab(pages: 512)
        _ = try lab.host()
        let device = try lab.device { $0.queues = 4 }
        guard case .domain = #expect(throws: BlkfrontError.self, performing: { try device.connect() }) else {
            Issue.record("connected")
            return
        }
        #expect(try lab.report().grantedReferences == 0)
        device.options.queues = 1
        try device.connect()
        try device.close()
        try lab.stop()
    }
}
