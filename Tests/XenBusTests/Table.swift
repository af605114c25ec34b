// SPDX-License-Identifier: BSD-2-Clause
// A machine on a table, for tests that compare what it does after each event.

import Testing

@testable import XenBus

/// A machine on a table: events go in, the actions are compared in brief.
struct Table {
    var machine: VBDMachine
    var last: [VBDMachine.Action] = []

    init(
        _ attachment: VBDMachine.Attachment = .init(), configuration: VBDMachine.Configuration = .init(),
        _ expected: String = "1>2"
    ) {
        machine = VBDMachine(attachment: attachment, configuration: configuration)
        last = machine.start()
        #expect(last.map(\.brief).joined(separator: ", ") == expected)
    }

    mutating func expect(
        _ event: VBDMachine.Event, _ expected: String, sourceLocation: SourceLocation = #_sourceLocation
    ) {
        last = machine.handle(event)
        #expect(last.map(\.brief).joined(separator: ", ") == expected, sourceLocation: sourceLocation)
    }

    /// The update among the last actions.
    var update: StoreUpdate? {
        for case .update(let update) in last { return update }
        return nil
    }

    /// Up to Connected on both sides.
    static func connected(_ configuration: VBDMachine.Configuration = .init()) -> Table {
        var table = Table(configuration: configuration)
        table.expect(.updateDone, "")
        table.expect(.storageConfigured(goodRequest), "open")
        table.expect(.deviceOpened(goodFacts), "keys")
        table.expect(.updateDone, "")
        table.expect(.frontendChanged(.initialised), "connect")
        table.expect(.ringsConnected(offered()), "start, 2>4")
        table.expect(.updateDone, "")
        table.expect(.frontendChanged(.connected), "")
        return table
    }
}
