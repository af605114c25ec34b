// SPDX-License-Identifier: BSD-2-Clause
// The handshake with servers of each age, and with those that break its rules.
import Testing
import TestSupport

@testable import NBD

private let size: UInt64 = 1 << 20
private let options = wire(UInt64(0x4948_4156_454f_5054))

private func option(_ number: UInt32, _ data: [UInt8] = []) -> [UInt8] {
    options + wire(number) + wire(UInt32(data.count)) + data
}
private let structured = option(8)
private func context(_ name: String) -> [UInt8] {
    let query = Array("base:allocation".utf8)
    return option(
        10, wire(UInt32(name.utf8.count)) + Array(name.utf8) + wire(UInt32(1)) + wire(UInt32(query.count)) + query)
}
private func go(_ name: String) -> [UInt8] {
    option(7, wire(UInt32(name.utf8.count)) + Array(name.utf8) + wire(UInt16(1)) + wire(UInt16(3)))
}

private func handshake(_ name: String = "disk", isTLS: Bool = false) -> Handshake {
    Handshake(Handshake.Wishes(exportName: Array(name.utf8), isTLS: isTLS))
}

/// A server's messages, each the answer to what was sent before.
private func run(
    _ messages: [[UInt8]], name: String = "disk", isTLS: Bool = false
) throws(HandshakeError) -> (sent: [[UInt8]], facts: ExportFacts?) {
    var shake = handshake(name, isTLS: isTLS)
    var (sent, facts): ([[UInt8]], ExportFacts?) = ([], nil)
    for message in messages {
        var steps = try shake.receive(message)
        while !steps.isEmpty {
            switch steps.removeFirst() {
            case .send(let bytes): sent.append(bytes)
            case .startTLS: steps = try shake.tlsStarted()
            case .done(let found): facts = found
            }
        }
    }
    return (sent, facts)
}

private func failure(_ messages: [[UInt8]], name: String = "disk", isTLS: Bool = false) -> HandshakeError? {
    do throws(HandshakeError) {
        _ = try run(messages, name: name, isTLS: isTLS)
        return nil
    } catch {
        return error
    }
}

/// A server that knows all, up to the answer to GO.
private let known = [Server.greeting(), Server.consent(8), Server.context(4) + Server.consent(10)]

@Suite struct HandshakeTests {
    @Test func aModernServerIsAskedInOrder() throws {
        let last =
            Server.export(size: size, flags: 0b1_0110_1101) + Server.blocks(512, 4096, 1 << 25) + Server.consent(7)
        let (sent, facts) = try run(known + [last])
        #expect(sent == [wire(UInt32(3)) + structured, context("disk"), go("disk")])
        let found = try #require(facts)
        #expect(found.size == size && found.hasStructuredReplies && found.allocationContext == 4 && !found.isReadOnly)
        #expect(found.flags == [.hasFlags, .flush, .forcedAccess, .trim, .writeZeroes, .severalConnections])
        #expect(found.blocks.minimum == 512 && found.blocks.preferred == 4096 && found.blocks.maximumPayload == 1 << 25)
    }

    @Test func theFirstOptionIsTLSIfItIsDemanded() throws {
        let messages =
            [Server.greeting(), Server.consent(5)] + known.dropFirst() + [
                Server.export(size: size, flags: 1) + Server.consent(7)
            ]
        let (sent, facts) = try run(messages, isTLS: true)
        #expect(sent.prefix(2) == [wire(UInt32(3)) + option(5), structured] && facts?.size == size)
    }

    /// A server without TLS is never spoken to in clear.
    @Test func aServerWithoutTLSIsRefused() {
        for error in 1...9 as ClosedRange<UInt32> where error != 7 {
            let found = failure([Server.greeting(), Server.refusal(5, error, "no\u{7}")], isTLS: true)
            #expect(found?.kind == .withoutTLS && found?.message.contains("it says: no?") == true)
        }
        #expect(failure([Server.greeting(2)], isTLS: true)?.kind == .withoutTLS)
        #expect(failure([Server.oldstyle(size: 1, flags: 1)], name: "", isTLS: true)?.kind == .withoutTLS)
        var shake = handshake(isTLS: true)
        _ = try? shake.receive(Server.greeting())
        #expect(shake.endOfStream.kind == .withoutTLS)
    }

    /// Bytes in clear behind the consent to TLS may be an attacker's.
    @Test func bytesInClearBehindTheConsentToTLSAreRefused() throws {
        #expect(
            failure([Server.greeting(), Server.consent(5) + [0]], isTLS: true)?.message.contains("in clear") == true)
        #expect(
            failure([Server.greeting(), Server.consent(5) + Server.consent(8)], isTLS: true)?.message.contains(
                "in clear") == true)
        var shake = handshake(isTLS: true)
        _ = try shake.receive(Server.greeting())
        #expect(try shake.receive(Server.consent(5)) == [.startTLS])
        #expect(throws: HandshakeError.self) { try shake.receive(Server.consent(8)) }
        #expect(throws: HandshakeError.self) { try shake.tlsStarted() }
    }

    @Test func tlsBeginsOnlyWhereItWasAgreedOn() {
        var shake = handshake()
        #expect(throws: HandshakeError.self) { try shake.tlsStarted() }
    }

    @Test func aServerThatWantsTLSIsTold() {
        #expect(failure([Server.greeting(), Server.refusal(8, 5)])?.kind == .wantsTLS)
        #expect(failure(known + [Server.refusal(7, 5, "TLS!")])?.message.contains("nbds") == true)
        #expect(failure([Server.greeting(), Server.consent(5), Server.refusal(8, 5)], isTLS: true)?.kind == .broken)
    }

    /// Structured replies and extents are done without; GO is replaced by EXPORT_NAME.
    @Test func olderServersAreUnderstood() throws {
        let facts = wire(size) + wire(UInt16(0b11))
        let zeroes = [UInt8](repeating: 0, count: 124)
        let old = try run([Server.greeting(3), Server.refusal(8, 1), Server.refusal(7, 1), facts])
        #expect(old.sent == [wire(UInt32(3)) + structured, go("disk"), option(1, Array("disk".utf8))])
        #expect(old.facts?.isReadOnly == true && old.facts?.hasStructuredReplies == false)
        let padded = try run([Server.greeting(1), Server.refusal(8, 1), Server.refusal(7, 1), facts + zeroes])
        #expect(padded.sent.first?.prefix(4) == wire(UInt32(1))[...] && padded.facts?.size == size)
        let halfNew = try run([
            Server.greeting(), Server.consent(8), Server.refusal(10, 1), Server.refusal(7, 1), facts,
        ])
        #expect(halfNew.facts?.hasStructuredReplies == true && halfNew.facts?.allocationContext == nil)
        // Not "fixed": one option, and nothing else.
        let unfixed = try run([Server.greeting(2), facts])
        #expect(unfixed.sent == [wire(UInt32(2)) + option(1, Array("disk".utf8))] && unfixed.facts?.size == size)
        let oldest = try run([Server.greeting(0), facts + zeroes])
        #expect(oldest.facts?.size == size && oldest.facts?.blocks == .unsaid)
    }

    @Test func goIsAvoidedWhereItIsWished() throws {
        var wishes = Handshake.Wishes(exportName: [65], isTLS: false)
        (wishes.avoidsGo, wishes.wantsStructuredReplies) = (true, false)
        var shake = Handshake(wishes)
        #expect(try shake.receive(Server.greeting()) == [.send(wire(UInt32(3)) + option(1, [65]))])
    }

    @Test func oldstyleServersHaveOneExportWithoutAName() throws {
        let facts = try run([Server.oldstyle(size: size, flags: 0b101)], name: "").facts
        #expect(facts?.size == size && facts?.flags == [.hasFlags, .flush])
        #expect(failure([Server.oldstyle(size: size, flags: 0)])?.kind == .noSuchExport)
    }

    /// Any pieces of the stream come to the same.
    @Test func messagesMayBeCutAnywhere() throws {
        for whole in [
            known + [Server.export(size: size, flags: 1) + Server.blocks(1, 512, .max) + Server.consent(7)],
            [Server.oldstyle(size: size, flags: 1)],
        ] {
            let name = whole.count == 1 ? "" : "disk"
            var shake = handshake(name)
            var steps: [Handshake.Step] = []
            for byte in whole.joined() { steps += try shake.receive([byte]) }
            let expected = try run(whole, name: name)
            #expect(steps == expected.sent.map { .send($0) } + [.done(try #require(expected.facts))])
            #expect(shake.isDone)
        }
    }

    @Test func aServerSaysNothingUnasked() {
        #expect(failure([Server.greeting() + [0]])?.kind == .broken)
        #expect(failure([Server.greeting(), Server.consent(8) + Server.consent(10)])?.kind == .broken)
        let last = Server.export(size: size, flags: 1) + Server.consent(7)
        #expect(failure(known + [last + [0]])?.kind == .broken)
        #expect(failure(known + [last, [0]])?.kind == .broken)
        #expect(failure([Server.oldstyle(size: 1, flags: 0) + [0]], name: "")?.kind == .broken)
    }

    @Test func whatIsNoServerOfNBDIsSaidSo() {
        #expect(failure([Array("SSH-2.0-OpenSSH_9.2\r\n".utf8)])?.message.contains("does not speak NBD") == true)
        #expect(failure([Array("HTTP/1.1".utf8)])?.message.contains("does not speak NBD") == true)
        #expect(failure([Array("NBDMAGICNBDMAGIC".utf8)])?.kind == .broken)
        #expect(handshake().endOfStream.message.contains("may be no NBD server"))
    }

    @Test func refusalsSayWhatTheServerSays() {
        let unknown = failure(known + [Server.refusal(7, 6, "export 'disk' not present\n\u{1b}[31m")])
        #expect(unknown?.kind == .noSuchExport)
        #expect(
            unknown?.message
                == "the server refuses the export 'disk': it has no such export (it says: export 'disk' not present??[31m)"
        )
        #expect(failure(known + [Server.refusal(7, 2)])?.kind == .refused)
        #expect(failure(known + [Server.refusal(7, 77)])?.message.contains("error 77") == true)
        #expect(failure([Server.greeting(), Server.refusal(8, 7)])?.kind == .shutdown)
        #expect(
            failure(known + [Server.refusal(7, 2, String(repeating: "x", count: 60_000))]).map {
                $0.message.utf8.count < 500
            } == true)
        var shake = handshake()
        for message in [Server.greeting(), Server.refusal(8, 1), Server.refusal(7, 1)] {
            _ = try? shake.receive(message)
        }
        #expect(shake.endOfStream.message.contains("no export 'disk'"))
    }

    /// A hostile server fills no memory.
    @Test func lengthsAndNumbersAreBounded() {
        let long = Array(Server.consent(8).prefix(16)) + wire(UInt32(65537))
        #expect(failure([Server.greeting(), long])?.message.contains("65537 bytes") == true)
        let many = (0..<65).flatMap { _ in Server.reply(7, 3, wire(UInt16(9))) }
        #expect(failure(known + [many])?.message.contains("more than 64 times") == true)
    }

    @Test func repliesBelongToTheirOption() {
        #expect(failure([Server.greeting(), Server.consent(7)])?.kind == .broken)
        #expect(failure([Server.greeting(), Server.reply(8, 2)])?.kind == .broken)
        #expect(failure([Server.greeting(), Server.reply(8, 3, [0, 0])])?.kind == .broken)
        #expect(failure([Server.greeting(), Server.reply(8, 1, [0])])?.kind == .broken)
        #expect(failure([Server.greeting(), [UInt8](repeating: 0, count: 8)])?.kind == .broken)
        #expect(failure(known + [Server.consent(7)])?.message.contains("how large") == true)
        #expect(failure(known + [Server.reply(7, 3, [0])])?.kind == .broken)
        #expect(failure(known + [Server.reply(7, 3, [0, 0, 1])])?.kind == .broken)
        #expect(failure(known + [Server.reply(7, 3, [0, 3, 1])])?.kind == .broken)
    }

    @Test func metaContextsAreThoseThatWereAskedFor() throws {
        let start = Array(known.prefix(2))
        #expect(failure(start + [Server.context(1, "qemu:dirty")])?.kind == .broken)
        #expect(failure(start + [Server.context(1) + Server.context(2)])?.kind == .broken)
        let last = Server.export(size: size, flags: 1) + Server.consent(7)
        #expect(try run(start + [Server.consent(10), last]).facts?.allocationContext == nil)
        #expect(try run(start + [Server.context(1) + Server.refusal(10, 3), last]).facts?.allocationContext == nil)
    }

    @Test func sizesAreChecked() throws {
        func facts(_ size: UInt64, _ blocks: [UInt8] = []) throws(HandshakeError) -> ExportFacts? {
            try run(known + [Server.export(size: size, flags: 1) + blocks + Server.consent(7)]).facts
        }
        for size in [1 << 63, UInt64.max] { #expect(throws: HandshakeError.self) { try facts(size) } }
        #expect(try facts(0)?.usableSize == 0)
        #expect(try facts((1 << 63) - 1)?.usableSize == (1 << 63) - 512)
        #expect(try facts(1023)?.usableSize == 512)
        #expect(try facts(10000, Server.blocks(4096, 4096, 1 << 20))?.usableSize == 8192)
        for blocks in [
            Server.blocks(0, 4096, 1 << 25), Server.blocks(3, 4096, 1 << 25), Server.blocks(1 << 17, 1 << 17, 1 << 25),
            Server.blocks(1, 3000, 1 << 25), Server.blocks(1024, 512, 1 << 25), Server.blocks(1, 0, 1 << 25),
            Server.blocks(1, 512, 511), Server.blocks(4096, 4096, 2048), Server.blocks(1, 4096, 0),
        ] {
            #expect(failure(known + [Server.export(size: 1, flags: 1) + blocks])?.kind == .broken)
        }
        #expect(failure(known + [Server.blocks(8192, 8192, 1 << 25)])?.kind == .unsupported)
        #expect(try facts(size, Server.blocks(1, 4096, .max))?.largestTransfer == 1 << 25)
        #expect(try facts(size, Server.blocks(4096, 4096, 10_000))?.largestTransfer == 8192)
        #expect(try facts(size, Server.blocks(1, 4096, 1000))?.largestTransfer == 512)
        #expect(try facts(size)?.largestTransfer == 1 << 25)
    }

    /// Without the flag that says that there are flags nothing is known; nobody writes all the same where it is forbidden.
    @Test func flagsWithoutHasFlagsMeanNothing() throws {
        let facts = try run(known + [Server.export(size: size, flags: 0b1111_1110) + Server.consent(7)]).facts
        #expect(facts?.flags == .readOnly)
    }

    @Test func otherConnectionsLeadToTheSameExport() throws {
        func facts(_ size: UInt64, _ flags: UInt16, _ minimum: UInt32) throws -> ExportFacts {
            try #require(
                try run(
                    known + [
                        Server.export(size: size, flags: flags) + Server.blocks(minimum, 4096, .max) + Server.consent(7)
                    ]
                )
                .facts)
        }
        let first = try facts(4096, 1, 512)
        #expect(try first.isSameExport(as: facts(4096, 1, 512)))
        #expect(try !first.isSameExport(as: facts(8192, 1, 512)))
        #expect(try !first.isSameExport(as: facts(4096, 3, 512)))
        #expect(try !first.isSameExport(as: facts(4096, 1, 1)))
    }

    @Test func aHandshakeThatIsGivenUpEndsPolitely() throws {
        var shake = handshake()
        #expect(shake.farewell == [])
        _ = try shake.receive(Server.greeting())
        #expect(shake.farewell == option(2))
    }
}
