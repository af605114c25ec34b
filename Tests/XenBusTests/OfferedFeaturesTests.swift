// SPDX-License-Identifier: BSD-2-Clause
// What is published is what is enforced: requests are checked against the value whose keys a frontend reads.
import Blkif
import Memory
import Testing
import XenBus

@Suite struct OfferedFeaturesTests {
    @Test(arguments: [RingABI.x86_64, .x86_32])
    func aRequestGetsThroughExactlyIfTheKeysAllowIt(_ abi: RingABI) {
        let layout = RingLayout(abi)
        let request = ParsedRequest()
        for made in OfferCase.all {
            let (keys, offered) = (made.keys, made.offered)
            for probe in OfferProbe.all(sectorCount: made.facts.sectorCount) {
                let problem = request.parse(probe.slot(layout), layout: layout, disk: offered)
                #expect((problem == nil) == probe.isAllowed(by: keys), "\(probe) of \(made): \(keys)")
            }
        }
    }

    @Test func theMachinePublishesTheValueThatTheQueuesHave() {
        for made in OfferCase.all {
            var table = Table()
            table.expect(.updateDone, "")
            table.expect(.storageConfigured(made.request), "open")
            // The negotiation's own view of the storage is of no influence.
            table.expect(.deviceOpened(DeviceFacts(sectorCount: 3)), "keys")
            table.expect(.updateDone, "")
            table.expect(.frontendChanged(.initialised), "connect")
            table.expect(.ringsConnected(made.offered), "start, 2>4")
            var keys = StoreUpdate.node(table.update?.entries ?? [])
            #expect(keys.removeValue(forKey: "state") == "4")
            #expect(keys == made.keys)
        }
    }

    @Test func aNewSizeChangesTheOneValue() throws {
        var table = Table.connected()
        var grown = offered()
        grown.sectorCount = 4096
        table.expect(.deviceResized(sectorCount: 4096, offered: grown), "4>4")
        let keys = StoreUpdate.node(table.update?.entries ?? [])
        let probe = OfferProbe(operation: 0, first: 4095)
        let request = ParsedRequest()
        let layout = RingLayout(.native)
        #expect(keys["sectors"] == "4096")
        #expect(request.parse(probe.slot(layout), layout: layout, disk: grown) == nil)
        #expect(request.parse(probe.slot(layout), layout: layout, disk: offered()) == .beyondEndOfDisk)
    }
}
