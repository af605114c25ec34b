// SPDX-License-Identifier: BSD-2-Clause
// The transition table, second part, the ways out: what is done for each event, as scripts of events and their actions.

import Testing

@testable import XenBus

@Suite struct VBDMachineEndTests {
    // MARK: Detaching by the toolstack

    @Test func detachWaitsForTheFrontend() {
        var table = Table.connected()
        table.expect(.backendChanged(state: .closing, isOnline: false), "")
        table.expect(.frontendChanged(.closing), "disconnect empty")
        table.expect(.ringsDisconnected, "close")
        table.expect(.frontendChanged(.closed), "")
        table.expect(.deviceClosed, "5>6")
        #expect(table.update?.entries == [.remove("hotplug-status"), .write("state", "6")])
        table.expect(.updateDone, "exit detached")
        table.expect(.frontendChanged(.initialising), "")
    }

    @Test func aFrontendThatStaysConnectedHoldsOnlyASafeDetach() {
        var table = Table.connected()
        table.expect(.backendChanged(state: .closing, isOnline: false), "")
        table.expect(resized(1), "")
        table.expect(.backendChanged(state: .closing, isOnline: false), "")
        table.expect(.frontendChanged(nil), "disconnect quiet")
        table.expect(.ringsDisconnected, "close")
        table.expect(.deviceClosed, "5>6")
        table.expect(.updateDone, "exit detached")
    }

    @Test func onlineAloneIsAWishToDetach() {
        var table = Table.connected()
        table.expect(.backendChanged(state: .connected, isOnline: false), "4>5")
        table.expect(.updateDone, "")
        table.expect(.backendChanged(state: .closing, isOnline: true), "")
        table.expect(.frontendChanged(.closing), "disconnect empty")
    }

    @Test func aDeviceThatWasNeverConfiguredDetachesAtOnce() {
        var table = Table(.init(frontend: .initialised))
        table.expect(.updateDone, "")
        table.expect(.backendChanged(state: .closing, isOnline: false), "5>6")
        table.expect(.updateDone, "exit detached")
    }

    @Test func detachWhileTheStorageIsBeingOpened() {
        var table = Table()
        table.expect(.updateDone, "")
        table.expect(.storageConfigured(goodRequest), "open")
        table.expect(.backendChanged(state: .closing, isOnline: false), "")
        table.expect(.deviceOpened(goodFacts), "keys, close")
        table.expect(.updateDone, "")
        table.expect(.deviceClosed, "5>6")
    }

    @Test func theToolstacksClosedEndsEverythingAtOnce() {
        var table = Table.connected()
        table.expect(.backendChanged(state: .closed, isOnline: true), "disconnect")
        table.expect(.ringsDisconnected, "close")
        table.expect(.deviceClosed, "timer")
        table.expect(.timerFired, "")
        table.expect(.backendChanged(state: nil, isOnline: true), "exit vanished")
    }

    @Test func closingWithoutOfflineIsARequestToCloseOnce() {
        var table = Table.connected()
        table.expect(.backendChanged(state: .closing, isOnline: true), "")
        table.expect(.frontendChanged(.closed), "disconnect empty")
        table.expect(.ringsDisconnected, "close")
        table.expect(.deviceClosed, "timer, 5>6")
        table.expect(.updateDone, "")
        table.expect(.frontendChanged(.initialising), "6>2")
    }

    @Test func anUpdateThatCameTooLateGivesWayToTheToolstack() {
        var table = Table()
        table.expect(.updateDone, "")
        table.expect(.storageConfigured(goodRequest), "open")
        table.expect(.deviceOpened(goodFacts), "keys")
        table.expect(.updateDone, "")
        table.expect(.frontendChanged(.initialised), "connect")
        table.expect(.ringsConnected(offered()), "start, 2>4")
        table.expect(.backendChanged(state: .closing, isOnline: false), "")
        table.expect(.frontendChanged(.closed), "disconnect empty")
    }

    @Test func aDeletedNodeIsNeverWrittenAgain() {
        var table = Table.connected()
        table.expect(.backendChanged(state: nil, isOnline: true), "disconnect")
        table.expect(.frontendChanged(.closed), "")
        table.expect(.backendChanged(state: .initialising, isOnline: true), "")
        table.expect(.ringsDisconnected, "close")
        table.expect(.deviceClosed, "exit vanished")
    }

    @Test func aNodeThatWasMadeAnewBelongsToAnotherInstance() {
        var table = Table.connected()
        table.expect(.backendChanged(state: .initialising, isOnline: true), "disconnect")
        table.expect(.ringsDisconnected, "close")
        table.expect(.deviceClosed, "exit vanished")
    }

    @Test func noNodeAtAttach() {
        _ = Table(.init(state: nil), "exit vanished")
    }

    // MARK: Size

    @Test func aNewSizeIsToldByWritingConnectedAgain() {
        var table = Table.connected()
        table.expect(resized(4096), "4>4")
        #expect(
            table.update
                == StoreUpdate(replacing: .connected, entries: [.write("sectors", "4096")], state: .connected))
        table.expect(resized(8192), "")
        table.expect(.updateDone, "4>4")
        #expect(table.update?.entries.first == .write("sectors", "8192"))
        table.expect(.updateDone, "")
        table.expect(resized(8192), "")
    }

    @Test func aSizeThatChangesBeforeTheConnectionIsToldWithIt() {
        var table = Table()
        table.expect(.updateDone, "")
        table.expect(.storageConfigured(goodRequest), "open")
        table.expect(.deviceOpened(goodFacts), "keys")
        table.expect(.updateDone, "")
        table.expect(resized(77), "")
        table.expect(.frontendChanged(.initialised), "connect")
        table.expect(resized(78), "")
        table.expect(.ringsConnected(offered(sectorCount: 78)), "start, 2>4")
        #expect(table.update?.entries.first == .write("sectors", "78"))
    }

    @Test func anotherStorageIsTakenWhenNoFrontendUsesTheOldOne() {
        var other = goodRequest
        other.image = ImageLocation(path: "/dev/vg/other", format: .raw)
        var table = Table.connected()
        table.expect(.storageConfigured(other), "")
        table.expect(.frontendChanged(.initialising), "disconnect")
        table.expect(.ringsDisconnected, "4>2, close")
        table.expect(.updateDone, "")
        table.expect(.deviceClosed, "timer")
        table.expect(.timerFired, "open")
        #expect(table.last == [.openDevice(other)])
    }

    // MARK: A process that follows another

    @Test(arguments: [XenbusState.initialised, .connected])
    func liveRingsAreTakenOverWhileConnectedStays(_ frontend: XenbusState) {
        var table = Table(.init(state: .connected, frontend: frontend, publishedSectorCount: 2048), "")
        table.expect(.storageConfigured(goodRequest), "open")
        table.expect(.deviceOpened(goodFacts), "keys")
        table.expect(.updateDone, "resume")
        table.expect(.ringsConnected(offered()), "start")
        table.expect(resized(4096), "4>4")
        table.expect(.updateDone, "")
        table.expect(.frontendChanged(.closed), "disconnect empty")
    }

    @Test func aSizeThatChangedMeanwhileIsTold() {
        var table = Table(.init(state: .connected, frontend: .connected, publishedSectorCount: 1), "")
        table.expect(.storageConfigured(goodRequest), "open")
        table.expect(.deviceOpened(goodFacts), "keys")
        table.expect(.updateDone, "resume")
        table.expect(.ringsConnected(offered()), "start, 4>4")
    }

    @Test func inheritedRingsAreServedDuringADetach() {
        var table = Table(.init(state: .closing, isOnline: false, frontend: .connected), "")
        table.expect(.storageConfigured(goodRequest), "open")
        table.expect(.deviceOpened(goodFacts), "keys")
        table.expect(.updateDone, "resume")
        table.expect(.ringsConnected(offered()), "start")
        table.expect(.frontendChanged(.closed), "disconnect empty")
        table.expect(.ringsDisconnected, "close")
        table.expect(.deviceClosed, "5>6")
        table.expect(.updateDone, "exit detached")
    }

    @Test func ringsThatCannotBeTakenOverAreAnError() {
        var table = Table(.init(state: .connected, frontend: .connected), "")
        table.expect(.storageConfigured(goodRequest), "open")
        table.expect(.deviceOpenFailed("gone"), "timer, 4>5 error")
        table.expect(.updateDone, "")
        table.expect(.frontendChanged(.closed), "5>6")
    }

    @Test func whatAnEarlierProcessLeft() {
        _ = Table(.init(state: .initWait), "")
        _ = Table(.init(state: .connected), "4>2")
        _ = Table(.init(state: .connected, frontend: .closing), "4>5")
        _ = Table(.init(state: .connected, frontend: .closed), "4>6")
        _ = Table(.init(state: .closing, frontend: .initialised), "")
        _ = Table(.init(state: .closed, frontend: .closed), "")
        _ = Table(.init(state: .closed, frontend: .initialising), "6>2")
        _ = Table(.init(state: .closed, isOnline: false, frontend: .closed), "exit detached")
        _ = Table(.init(state: .initialising, isOnline: false), "1>6")
        _ = Table(.init(state: .closing, isOnline: false, frontend: nil), "5>6")
    }

    // MARK: Ends of the service

    @Test func stoppingAsksTheFrontendToClose() {
        var table = Table.connected()
        table.expect(.stopRequested(.closeDevice), "4>5")
        table.expect(.updateDone, "")
        table.expect(.frontendChanged(.closed), "disconnect empty")
        table.expect(.ringsDisconnected, "close")
        table.expect(.deviceClosed, "5>6")
        #expect(table.update?.entries == [.write("state", "6")], "only the toolstack's detach ends the hotplug status")
        table.expect(.updateDone, "exit detached")
    }

    @Test func handingOverLeavesTheNodeAsItIs() {
        var table = Table.connected()
        table.expect(.stopRequested(.handOver), "disconnect")
        table.expect(.ringsDisconnected, "close")
        table.expect(.deviceClosed, "exit handedOver")
        var late = Table.connected()
        late.expect(.stopRequested(.closeDevice), "4>5")
        late.expect(.updateDone, "")
        late.expect(.stopRequested(.handOver), "disconnect")
    }

    @Test func aStoreThatFailsEndsEverything() {
        var table = Table.connected()
        table.expect(.storeFailed("EIO"), "disconnect")
        table.expect(.ringsDisconnected, "close")
        table.expect(.deviceClosed, "exit storeFailed(\"EIO\")")
    }
}
