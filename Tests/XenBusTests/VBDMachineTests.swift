// SPDX-License-Identifier: BSD-2-Clause
// The transition table: what is done for each event, told as scripts of events and the actions that answer them.

import Testing

@testable import XenBus

@Suite struct VBDMachineTests {
    // MARK: Startup

    @Test func startWithHotplugScript() {
        var table = Table()
        #expect(
            table.update
                == StoreUpdate(
                    replacing: .initialising,
                    entries: [
                        .write("max-ring-page-order", "5"), .write("max-ring-pages", "32"),
                        .write("multi-queue-max-queues", "1"),
                    ], state: .initWait))
        table.expect(.updateDone, "")
        table.expect(.frontendChanged(.initialised), "")
        table.expect(.storageConfigured(goodRequest), "open")
        table.expect(.storageConfigured(goodRequest), "")
        table.expect(.deviceOpened(goodFacts), "keys")
        #expect(table.update?.entries == [.write("hotplug-status", "connected")])
        table.expect(.updateDone, "connect")
        table.expect(.ringsConnected(offered()), "start, 2>4")
        let described = BackendDescription(
            offered(), physicalSectorSize: 512, deviceType: .disk, isRemovable: false)
        #expect(table.update?.entries == described.entries + [.write("state", "4")])
        table.expect(.updateDone, "")
        table.expect(.frontendChanged(.connected), "")
        #expect(table.machine.state == .connected)
    }

    @Test func storageMayBeKnownBeforeInitWaitIsWritten() {
        var table = Table()
        table.expect(.storageConfigured(goodRequest), "")
        table.expect(.updateDone, "open")
    }

    @Test(arguments: [XenbusState.initialised, .connected])
    func aFrontendThatIsReadyAtAttachIsConnected(_ state: XenbusState) {
        var table = Table(.init(frontend: state))
        table.expect(.updateDone, "")
        table.expect(.storageConfigured(goodRequest), "open")
        table.expect(.deviceOpened(goodFacts), "keys")
        table.expect(.updateDone, "connect")
        table.expect(.ringsConnected(offered()), "start, 2>4")
    }

    @Test func aFrontendThatIsNotThereYetDidNotGoAway() {
        var table = Table(.init(frontend: nil))
        table.expect(.updateDone, "")
        table.expect(.frontendChanged(nil), "")
        table.expect(.frontendChanged(.initialising), "")
        table.expect(.frontendChanged(nil), "2>6")
    }

    @Test func anotherDriverThatTakesTheNodeIsLeftAlone() {
        for state in [XenbusState.initWait, .initialised, .connected, .unknown, .reconfiguring, .reconfigured] {
            var table = Table()
            table.expect(.backendChanged(state: state, isOnline: true), "exit conflict(XenBus.XenbusState.\(state))")
            table.expect(.storageConfigured(goodRequest), "")
        }
        _ = Table(.init(state: .initialised), "exit conflict(XenBus.XenbusState.initialised)")
    }

    // MARK: Errors

    @Test func storageThatCannotBeOpened() {
        var table = Table()
        table.expect(.updateDone, "")
        table.expect(.storageConfigured(goodRequest), "open")
        table.expect(.deviceOpenFailed("no such\u{7} file"), "timer, 2>5 error")
        #expect(
            table.update
                == StoreUpdate(
                    replacing: .initWait,
                    entries: [.write("hotplug-error", "no such\\x07 file"), .write("hotplug-status", "error")],
                    error: "no such\\x07 file", state: .closing))
        table.expect(.updateDone, "")
        table.expect(.storageConfigured(goodRequest), "")
        table.expect(.timerFired, "")
        table.expect(.backendChanged(state: .closing, isOnline: false), "5>6")
        #expect(table.update?.entries == [.remove("hotplug-status"), .write("state", "6")])
        table.expect(.updateDone, "exit detached")
    }

    @Test func keysThatBreakARule() {
        var table = Table()
        table.expect(.storageRejected("mode is missing"), "")
        table.expect(.updateDone, "2>5 error")
        table.expect(.updateDone, "")
        table.expect(.storageRejected("mode is missing"), "")
        table.expect(.storageRejected("mode is \"x\""), "error")
        table.expect(.updateDone, "")
        table.expect(.storageConfigured(goodRequest), "5>2")
        table.expect(.updateDone, "open")
        table.expect(.deviceOpened(goodFacts), "keys")
        #expect(table.update?.entries == [.write("hotplug-status", "connected"), .remove("hotplug-error")])
    }

    @Test func aFrontendWithBadRingsIsShownClosingAndMayComeAgain() {
        var table = Table()
        table.expect(.updateDone, "")
        table.expect(.storageConfigured(goodRequest), "open")
        table.expect(.deviceOpened(goodFacts), "keys")
        table.expect(.updateDone, "")
        table.expect(.frontendChanged(.initialised), "connect")
        table.expect(.ringsFailed("ring-ref is missing"), "2>5 error")
        #expect(table.update?.entries == [.write("state", "5")])
        #expect(table.update?.error == "ring-ref is missing")
        table.expect(.updateDone, "")
        table.expect(.frontendChanged(.connected), "")
        table.expect(.frontendChanged(.closed), "close")
        table.expect(.deviceClosed, "timer, 5>6")
        table.expect(.updateDone, "")
        table.expect(.frontendChanged(.initialising), "6>2")
        table.expect(.updateDone, "")
        table.expect(.timerFired, "open")
    }

    @Test(arguments: [XenbusState.unknown, .reconfiguring, .reconfigured])
    func aFrontendStateThatMakesNoSense(_ state: XenbusState) {
        var table = Table.connected()
        table.expect(.frontendChanged(state), "disconnect, error")
        table.expect(.updateDone, "")
        table.expect(.ringsDisconnected, "4>5")
        table.expect(.updateDone, "")
        table.expect(.frontendChanged(.initialising), "5>2")
        table.expect(.updateDone, "")
        table.expect(.frontendChanged(.initialised), "connect")
    }

    @Test func storageThatDiesIsShownClosingAndServedUntilTheFrontendLeaves() {
        var table = Table.connected()
        table.expect(.deviceLost("medium is gone"), "4>5 error")
        table.expect(.updateDone, "")
        table.expect(.deviceLost("medium is gone"), "")
        table.expect(.storageConfigured(goodRequest), "")
        table.expect(.frontendChanged(.closing), "disconnect empty")
        table.expect(.ringsDisconnected, "close")
        table.expect(.frontendChanged(.initialising), "5>2")
        table.expect(.updateDone, "")
        table.expect(.deviceClosed, "timer")
        table.expect(.timerFired, "open")
    }

    @Test func storageThatDiesUnusedIsNotOpenedAgainForTheSameFrontend() {
        var table = Table()
        table.expect(.updateDone, "")
        table.expect(.storageConfigured(goodRequest), "open")
        table.expect(.deviceOpened(goodFacts), "keys")
        table.expect(.updateDone, "")
        table.expect(.deviceLost("medium is gone"), "2>5 error, close")
        table.expect(.updateDone, "")
        table.expect(.deviceClosed, "timer")
        table.expect(.timerFired, "")
        table.expect(.frontendChanged(.closed), "5>6")
        table.expect(.updateDone, "")
        table.expect(.frontendChanged(.initialising), "6>2")
        table.expect(.updateDone, "open")
    }

    // MARK: Closing by the frontend

    @Test func stateFollowsOnlyWhenTheRingsAndTheStorageAreLetGo() {
        var table = Table.connected()
        table.expect(.frontendChanged(.closing), "disconnect empty")
        #expect(table.machine.state == .connected)
        table.expect(.ringsDisconnected, "4>5")
        table.expect(.updateDone, "")
        table.expect(.frontendChanged(.closed), "close")
        table.expect(.deviceClosed, "timer, 5>6")
        table.expect(.updateDone, "")
    }

    @Test(arguments: [XenbusState.closed, nil])
    func closedAtOnceGoesThroughClosing(_ state: XenbusState?) {
        var table = Table.connected()
        table.expect(.frontendChanged(state), state == nil ? "disconnect quiet" : "disconnect empty")
        table.expect(.ringsDisconnected, "4>5, close")
        table.expect(.updateDone, "")
        table.expect(.deviceClosed, "timer, 5>6")
        table.expect(.updateDone, "")
        table.expect(.timerFired, "")
    }

    @Test func reconnectAfterKexec() {
        var table = Table.connected()
        table.expect(.frontendChanged(.closed), "disconnect empty")
        table.expect(.frontendChanged(.initialising), "")
        table.expect(.ringsDisconnected, "4>2")
        table.expect(.updateDone, "")
        table.expect(.frontendChanged(.initialised), "connect")
        table.expect(.ringsConnected(offered()), "start, 2>4")
    }

    @Test func reconnectAfterACompleteClose() {
        var table = Table.connected()
        table.expect(.frontendChanged(.closed), "disconnect empty")
        table.expect(.ringsDisconnected, "4>5, close")
        table.expect(.updateDone, "")
        table.expect(.deviceClosed, "timer, 5>6")
        table.expect(.updateDone, "")
        table.expect(.frontendChanged(.initialising), "6>2")
        table.expect(.updateDone, "")
        table.expect(.frontendChanged(.initialised), "")
        table.expect(.timerFired, "open")
        table.expect(.deviceOpened(goodFacts), "keys")
        table.expect(.updateDone, "connect")
        table.expect(.ringsConnected(offered()), "start, 2>4")
    }

    @Test func storageCanBeKeptAcrossConnections() {
        var table = Table.connected(.init(storageRelease: .withDevice))
        table.expect(.frontendChanged(.closed), "disconnect empty")
        table.expect(.ringsDisconnected, "4>6")
        table.expect(.updateDone, "")
        table.expect(.frontendChanged(.initialising), "6>2")
        table.expect(.updateDone, "")
        table.expect(.frontendChanged(.initialised), "connect")
        table.expect(.backendChanged(state: .closing, isOnline: false), "")
        table.expect(.frontendChanged(.closed), "")
        table.expect(.ringsFailed("late"), "close")
        table.expect(.deviceClosed, "5>6")
    }

    @Test func fromConnectedBackToInitialisedMeansNewRings() {
        var table = Table.connected()
        table.expect(.frontendChanged(.initialised), "disconnect")
        table.expect(.ringsDisconnected, "4>2")
        table.expect(.updateDone, "connect")
        table.expect(.ringsConnected(offered()), "start, 2>4")
    }

    @Test func ringsThatTheFrontendGaveUpMeanwhileAreLetGoUnused() {
        var table = Table()
        table.expect(.updateDone, "")
        table.expect(.storageConfigured(goodRequest), "open")
        table.expect(.deviceOpened(goodFacts), "keys")
        table.expect(.updateDone, "")
        table.expect(.frontendChanged(.initialised), "connect")
        table.expect(.frontendChanged(.initialising), "")
        table.expect(.frontendChanged(.initialised), "")
        table.expect(.ringsConnected(offered()), "disconnect")
        table.expect(.ringsDisconnected, "connect")
        table.expect(.frontendChanged(.initialising), "")
        table.expect(.ringsFailed("ring-ref is missing"), "")
        table.expect(.frontendChanged(.connected), "connect")
    }
}
