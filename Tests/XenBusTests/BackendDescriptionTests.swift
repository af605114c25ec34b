// SPDX-License-Identifier: BSD-2-Clause
import Blkif
import Testing
import XenBus

@Suite struct BackendDescriptionTests {
    static func describe(
        _ request: DeviceRequest = goodRequest, _ facts: DeviceFacts = goodFacts,
        _ change: (inout OfferedFeatures) -> Void = { _ in }
    ) -> Node {
        var offered = OfferedFeatures(request: request, device: facts)
        change(&offered)
        return StoreUpdate.node(
            BackendDescription(
                offered, physicalSectorSize: facts.physicalSectorSize, deviceType: request.deviceType,
                isRemovable: request.isRemovable
            ).entries)
    }

    @Test func aPlainDisk() {
        #expect(
            Self.describe() == [
                "sectors": "2048", "sector-size": "512", "physical-sector-size": "512", "info": "0",
                "feature-flush-cache": "1", "feature-barrier": "1", "feature-persistent": "0", "feature-discard": "0",
                "discard-granularity": "(removed)", "discard-alignment": "(removed)", "discard-secure": "(removed)",
                "feature-max-indirect-segments": "(removed)",
            ])
    }

    @Test func infoBitsAreThoseOfBlkifHeader() {
        var request = goodRequest
        request.isReadOnly = true
        #expect(Self.describe(request)["info"] == "4")
        request.isRemovable = true
        #expect(Self.describe(request)["info"] == "6")
        request.deviceType = .cdrom
        #expect(Self.describe(request)["info"] == "7")
        #expect(Self.describe(goodRequest, DeviceFacts(sectorCount: 8, isReadOnly: true))["info"] == "4")
    }

    @Test func discardNeedsStoragePermissionAndWrites() {
        let facts = DeviceFacts(
            sectorCount: 8, discard: .init(granularity: 4096, alignment: 512, isSecure: true))
        let node = Self.describe(goodRequest, facts)
        #expect(node["feature-discard"] == "1")
        #expect(node["discard-granularity"] == "4096")
        #expect(node["discard-alignment"] == "512")
        #expect(node["discard-secure"] == "1")
        var request = goodRequest
        request.mayDiscard = false
        #expect(Self.describe(request, facts)["feature-discard"] == "0")
        request = goodRequest
        request.isReadOnly = true
        #expect(Self.describe(request, facts)["feature-discard"] == "0")
    }

    @Test func whereNothingIsToBeFlushedThereAreNoBarriersEither() {
        #expect(Self.describe()["feature-barrier"] == "1")
        #expect(Self.describe()["feature-flush-cache"] == "1")
        let noFlush = Self.describe(goodRequest, DeviceFacts(sectorCount: 8, canFlush: false))
        #expect(noFlush["feature-barrier"] == "0")
        #expect(noFlush["feature-flush-cache"] == "0")
    }

    /// A successor reads in the node what its predecessor has told the frontend.
    @Test(arguments: [TransferOffer(), TransferOffer(maximumIndirectSegments: 256), TransferOffer(keepsGrants: true)])
    func whatWasPublishedIsReadAgain(offer: TransferOffer) throws {
        let offered = OfferedFeatures(request: goodRequest, device: goodFacts, transfer: offer)
        #expect(offered.maximumIndirectSegments == offer.maximumIndirectSegments)
        #expect(offered.keepsGrants == offer.keepsGrants)
        var node = Self.describe { $0 = offered }.filter { $0.value != "(removed)" }
        node["frontend-id"] = "1"
        node["frontend"] = "/local/domain/1/device/vbd/51712"
        #expect(try BackendNode(read: reader(node)).publishedTransfer == offer)
        #expect(TransferOffer(maximumIndirectSegments: .max).maximumIndirectSegments == 4096)
    }

    @Test func optionalFeatures() {
        let node = Self.describe {
            $0.keepsGrants = true
            $0.maximumIndirectSegments = 256
        }
        #expect(node["feature-persistent"] == "1")
        #expect(node["feature-max-indirect-segments"] == "256")
    }

    @Test(arguments: [
        (UInt64(2048), UInt32(4096), "4096"), (2047, 4096, "512"), (2046, 4096, "1024"), (0, 4096, "4096"),
        (8, 0, "512"), (8, 520, "512"), (8, 1 << 31, "4096"), (1 << 40, 1 << 31, "2147483648"), (.max, 4096, "512"),
    ])
    func physicalSectorsDivideTheDisk(_ sectors: UInt64, _ size: UInt32, _ published: String) {
        let node = Self.describe(goodRequest, DeviceFacts(sectorCount: sectors, physicalSectorSize: size))
        #expect(node["physical-sector-size"] == published)
        #expect(node["sector-size"] == "512")
    }

    @Test func theOfferSpeaksBothSchemes() {
        let offer = BackendOffer(limits: FrontendLimits(maximumRingPageOrder: 3, maximumQueueCount: 2))
        #expect(
            StoreUpdate.node(offer.entries) == [
                "max-ring-page-order": "3", "max-ring-pages": "8", "multi-queue-max-queues": "2",
            ])
    }

    @Test func updatesWriteTheStateLast() {
        let update = StoreUpdate(replacing: .initWait, entries: [.write("sectors", "8")], state: .connected)
        #expect(update.entries == [.write("sectors", "8"), .write("state", "4")])
    }
}
