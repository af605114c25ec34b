// SPDX-License-Identifier: BSD-2-Clause
import Testing
import XenBus

@Suite struct XenbusStateTests {
    @Test func numbersAreThoseOfXenbusHeader() throws {
        #expect(XenbusState.allCases.map(\.rawValue) == Array(0...8))
        for state in XenbusState.allCases {
            #expect(try XenbusState(parsing: Array(state.text.utf8)) == state)
        }
        #expect(XenbusState.initialising.rawValue == 1)
        #expect(XenbusState.initWait.rawValue == 2)
        #expect(XenbusState.initialised.rawValue == 3)
        #expect(XenbusState.connected.rawValue == 4)
        #expect(XenbusState.closing.rawValue == 5)
        #expect(XenbusState.closed.rawValue == 6)
    }

    @Test func everySingleByteIsAStateOrAnError() {
        for byte in UInt8.min...UInt8.max {
            let isState = (UInt8(ascii: "0")...UInt8(ascii: "8")).contains(byte)
            #expect((try? XenbusState(parsing: [byte])).map { Int($0.rawValue) } == (isState ? Int(byte) - 48 : nil))
        }
    }

    @Test(arguments: hostileValues) func junkIsATypedError(_ value: [UInt8]) {
        let error = #expect(throws: NegotiationError.self) { try XenbusState(parsing: value, key: "state") }
        #expect(error?.rule == .notAState)
        #expect(XenbusState.reading(value) == .unknown)
    }

    @Test func twoDigitsAreNoState() {
        #expect(throws: NegotiationError(.notAState, key: "s", value: Array("04".utf8))) {
            try XenbusState(parsing: Array("04".utf8), key: "s")
        }
    }

    @Test func aMissingNodeIsNil() {
        #expect(XenbusState.reading(nil) == nil)
    }
}
