// SPDX-License-Identifier: BSD-2-Clause
// All that a server sends: handshake and replies.
import NBD
import TestSupport

/// Requests that wait, with cookies that an input finds: reads of several sizes, and one of each other kind.
private func worldWithRequests(isStructured: Bool, context: UInt32?) -> ReplyWorld {
    var world = ReplyWorld(isStructured: isStructured, context: context)
    world.send(.read, 1, offset: 0, length: 512)
    world.send(.read, 2, offset: 65536, length: 1024)
    world.send(.write, 3, offset: 4096, length: 512)
    world.send(.flush, 4)
    world.send(.trim, 5, offset: 0, length: 4096)
    world.send(.blockStatus, 6, offset: 0, length: 1 << 20)
    world.send(.read, 7, offset: (1 << 63) - 4096, length: 4096)
    world.send(.writeZeroes, 8, offset: 0, length: .max)
    return world
}

private func shows(_ text: String) -> [String] {
    let isHarmless = text.unicodeScalars.allSatisfy { $0.value >= 0x20 && !(0x7f..<0xa0).contains($0.value) }
    return isHarmless && text.utf8.count < 2000 ? [] : ["a text that cannot be shown: \(text.debugDescription)"]
}

/// The handshake byte by byte or in one piece, then replies; or replies alone.
func readServer() -> [String] {
    guard let flags = FuzzInput.take(1) else { return [] }
    let bytes = FuzzInput.takeRest()
    if flags & 1 != 0 {
        return readReplies(bytes, isStructured: flags & 2 != 0, context: flags & 4 != 0 ? 1 : nil)
    }
    var wishes = Handshake.Wishes(exportName: flags & 2 != 0 ? [] : Array("disk\u{1b}".utf8), isTLS: flags & 4 != 0)
    (wishes.wantsStructuredReplies, wishes.avoidsGo) = (flags & 8 == 0, flags & 16 != 0)
    var shake = Handshake(wishes)
    var (place, sent, hasTLS) = (0, 0, false)
    do throws(HandshakeError) {
        while place < bytes.count {
            let end = flags & 32 != 0 ? bytes.count : place + 1
            var steps = try shake.receive(Array(bytes[place..<end]))
            place = end
            while !steps.isEmpty {
                switch steps.removeFirst() {
                case .send(let request):
                    sent += 1
                    if request.count > 9000 || sent > 6 {
                        return ["\(sent) options, the last of \(request.count) bytes"]
                    }
                case .startTLS:
                    if hasTLS || !wishes.isTLS { return ["TLS where it was not asked for"] }
                    hasTLS = true
                    steps += try shake.tlsStarted()
                case .done(let facts):
                    if wishes.isTLS, !hasTLS { return ["an export without TLS"] }
                    return judge(facts)
                        + readReplies(
                            Array(bytes[place...]), isStructured: facts.hasStructuredReplies,
                            context: facts.allocationContext)
                }
            }
        }
    } catch {
        return shows(error.message)
    }
    return shows(shake.endOfStream.message)
}

private func judge(_ facts: ExportFacts) -> [String] {
    let block = UInt64(max(512, facts.blocks.minimum))
    let isSound =
        facts.size < 1 << 63 && facts.usableSize <= facts.size && facts.usableSize % block == 0
        && facts.size - facts.usableSize < block && facts.blocks.minimum <= 4096 && facts.largestTransfer > 0
        && UInt64(facts.largestTransfer) % block == 0 && facts.largestTransfer <= facts.blocks.maximumPayload
        && (facts.allocationContext == nil || facts.hasStructuredReplies) && facts.isSameExport(as: facts)
    return isSound ? [] : ["\(facts)"]
}

/// The same stream twice, in different pieces: it means the same.
private func readReplies(_ bytes: [UInt8], isStructured: Bool, context: UInt32?) -> [String] {
    let fresh = worldWithRequests(isStructured: isStructured, context: context)
    var (one, other) = (fresh, fresh)
    var random = SplitMix64(seed: 1)
    let first = one.take(bytes, &random)
    let second = other.take(bytes, &random)
    var problems = one.faults + other.faults
    if first != second || one.answers != other.answers || one.data != other.data || one.arrivals != other.arrivals {
        problems.append("pieces make a difference: \(String(describing: first)), \(String(describing: second))")
    }
    if one.extents.values.contains(where: { $0.count > ReplyReader.keptExtents }) {
        problems.append("too many extents")
    }
    for extents in one.extents.values where extents.reduce(0, { $0 + UInt64($1.length) }) > 1 << 20 {
        problems.append("extents beyond the request")
    }
    return problems + (first.map { shows($0.message) } ?? []) + shows(one.reader.errorText)
}

/// A buffer, and a stream in pieces: what is found is what a slow search finds.
func scanAnswers() -> [String] {
    guard let flags = FuzzInput.take(1), let split = FuzzInput.take(1), let size = FuzzInput.take(1) else { return [] }
    let bytes = FuzzInput.takeRest()
    // Parts of cookies are alike, so that pieces of headers fit each other in many ways.
    let cookies =
        (0..<1 + flags % 16).map { 0x4141_4141_4141_4100 | $0 } + [0x6744_6698_6744_6698, 0x668e_33ef_0001_0000]
    let place = min(bytes.count, Int(split) * (flags & 128 != 0 ? 8 : 1))
    let (buffer, stream) = (Array(bytes[..<place]), Array(bytes[place...]))
    var scan = AnswerScan(outstanding: cookies)
    scan.scanBuffer(buffer)
    var start = 0
    while start < stream.count {
        let end = min(stream.count, start + 1 + Int(size))
        scan.append(Array(stream[start..<end]))
        start = end
    }
    let expected = Set(cookies).subtracting(AnswerOracle.answered(cookies, buffer: buffer, stream: stream))
    return scan.unanswered == expected ? [] : ["\(scan.unanswered) in the place of \(expected)"]
}

/// Any text as a URI.
func readURI() -> [String] {
    let text = String(decoding: FuzzInput.takeRest(), as: UTF8.self)
    do throws(ExportURIError) {
        let uri = try ExportURI(text)
        let shown = uri.description
        let again = try ExportURI(shown)
        guard again.transport == uri.transport, again.exportName == uri.exportName, again.isTLS == uri.isTLS,
            again.description == shown
        else { return ["\(shown) is not \(text.debugDescription)"] }
        if uri.exportName.count > 4096 || uri.exportName.contains(0) { return ["a name that cannot be"] }
        if let user = uri.tls?.userName, user.utf8.count > 20, shown.contains(user) { return ["a user name is shown"] }
        return []
    } catch {
        return shows(error.message)
    }
}
